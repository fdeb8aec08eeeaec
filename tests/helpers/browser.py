"""How wide a page is in a browser, where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TELL = (
    "<script>addEventListener('load', () => "
    "parent.postMessage(document.documentElement.scrollWidth, '*'))</script>"
)
# in a frame, since no window of a browser is as narrow as a phone
FRAME = (
    "<script>addEventListener('message', told => document.title = 'wide: ' + told.data)</script>"
    '<iframe width="{}" height="800" frameborder="0" src="{}"></iframe>'
)


def width(path: Path, profile: Path, window: int = 390) -> int:
    """Width of a page with all that sticks out of a window; ``profile`` is a folder."""
    copy, frame = (path.with_name(f"{kind}-{path.name}") for kind in ("measured", "frame"))
    copy.write_text(path.read_text(encoding="utf-8") + TELL, encoding="utf-8")
    frame.write_text(FRAME.format(window, copy.name), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    options += ["--virtual-time-budget=5000", "--dump-dom"]
    try:
        command = [CHROMIUM, *options, frame.as_uri()]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    finally:
        copy.unlink()
        frame.unlink()
    return int(re.search(r"<title>wide: (\d+)", shown)[1])
