"""The paper's architectures, one readable file each; their sizes are constants of the files."""
