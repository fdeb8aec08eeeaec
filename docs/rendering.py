"""What Sphinx does not render by itself: MathML, images and links to them, breaks, signs."""

import re
from html import escape

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import download_reference
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

_SIGN = re.compile(r"(?<!\\)\||(?<![\w*\\])\*(?=\w+[),])")
_CODE = re.compile(r"(:\w+:`[^`]*`|``.+?``|`[^`]*`)")


def formula(writer, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers draw by themselves: no script and no network."""
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def formula_block(writer, node: nodes.math_block) -> None:
    """Write a formula on a line of its own, which scrolls where the page is narrow."""
    mathml = convert(node.astext().rstrip(), display="block")
    writer.body.append(f'<div class="formula">{mathml}</div>\n')
    raise nodes.SkipNode


def describe_figures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link every image to its file, and describe it by its caption, the paragraph after it."""
    undescribed: list[nodes.image] = []
    for node in doctree.findall(lambda n: isinstance(n, nodes.image | nodes.paragraph)):
        if isinstance(node, nodes.image):
            node.setdefault("scale", 100)  # Sphinx links what has a scale
            if not node.get("alt"):
                undescribed.append(node)
        else:
            for image in undescribed:
                image["alt"] = node.astext()
            undescribed = []


def open_images(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let a link to an image open it, where MyST would have it downloaded as any other file."""
    place = relative_uri(app.builder.get_target_uri(docname), "_downloads")
    for node in list(doctree.findall(download_reference)):
        if node.get("filename", "").endswith(".png"):
            target = f"{place}/{node['filename']}"
            node.replace_self(nodes.reference("", "", *node.children, refuri=target))


def break_names(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let linked names in tables break after an underscore rather than anywhere."""
    for cell in doctree.findall(nodes.entry):
        for link in cell.findall(nodes.reference):
            for text in [t for t in link.findall(nodes.Text) if "_" in t]:
                name = escape(text).replace("_", "_<wbr>")
                text.parent.replace(text, nodes.raw("", name, format="html"))


def escape_signs(app: Sphinx, what, name, thing, options, lines: list[str]) -> None:
    """Escape the bars of |λ| and the star of (…, *shape), except in code, formulas and examples."""
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
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", (formula, None), (formula_block, None))
    app.config.html_math_renderer = "mathml"
    app.connect("doctree-resolved", describe_figures)
    app.connect("doctree-resolved", open_images)
    app.connect("doctree-resolved", break_names)
    app.connect("autodoc-process-docstring", escape_signs, priority=100)  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
