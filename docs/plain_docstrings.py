"""Docstrings that write |λ| and (…, *shape) as they are: such bars and stars are only signs."""

import re

from sphinx.application import Sphinx

_SIGN = re.compile(r"(?<!\\)\||(?<![\w*\\])\*(?=\w+[),])")
_CODE = re.compile(r"(:\w+:`[^`]*`|``.+?``|`[^`]*`)")


def escape(app: Sphinx, what, name, thing, options, lines: list[str]) -> None:
    """Escape them in place, except in code, in formulas and in examples."""
    formula: int | None = None  # how far the directive around this line is indented
    for i, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if formula is not None and line.strip() and indent <= formula:
            formula = None
        if line.lstrip().startswith(".. math::"):
            formula = indent
        if formula is None and not line.lstrip().startswith((">>>", "...")):
            parts = _CODE.split(line)
            parts[::2] = [_SIGN.sub(r"\\\g<0>", part) for part in parts[::2]]
            lines[i] = "".join(parts)


def setup(app: Sphinx) -> dict:
    """Register with Sphinx, ahead of napoleon."""
    app.connect("autodoc-process-docstring", escape, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
