"""Other processes, as a user starts them."""

import os
import subprocess
import sys


def run(*arguments, cwd, **variables):
    """Run a module of this Python; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
