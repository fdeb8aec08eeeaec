"""Models with weights that were trained before: the nano GPT, MiniLM, a GPT2 of the reader's."""
