"""Functions of PyTorch written out so that their gradient is cheap to differentiate again."""
