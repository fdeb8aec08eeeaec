"""Alternative texts for the figures of a chapter's HTML: the captions that it shows below them.

``python -m companion.descriptions PAGE`` rewrites a page that nbconvert has made, which says of
every figure that no description has been provided.
"""

import html
import re
import sys
from pathlib import Path

from blockspectra.files import write_text

MISSING = 'alt="No description has been provided for this image"'
_CAPTION = re.compile(r"<p>(<strong>[^<]*\.</strong>.*?)</p>", re.DOTALL)


def describe(page: str) -> str:
    """Return the page with the next caption as the text of every figure that has none."""
    first, *parts = page.split(MISSING)
    described = [first]
    for i, part in enumerate(parts):
        found = next(filter(None, map(_CAPTION.search, parts[i:])), None)
        text = re.sub(r"<[^>]+>", "", found[1]) if found else "Figure"
        described += [f'alt="{html.escape(html.unescape(text))}"', part]
    return "".join(described)


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), describe(Path(sys.argv[1]).read_text(encoding="utf-8")))
