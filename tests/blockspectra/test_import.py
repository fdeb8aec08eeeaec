"""Only this file sees `import blockspectra` become slow, or need what not every system has."""

import subprocess
import sys

SLOW = {"matplotlib", "pandas", "scipy", "jinja2", "blockspectra.diagnosis"}


def test_the_library_imports_little_beside_torch():
    windows = "import sys, psutil; sys.modules['resource'] = None"  # which is not there
    code = f"{windows}; import blockspectra; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not SLOW & set(run.stdout.split())
