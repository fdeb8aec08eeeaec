"""Alternative text of a chapter's figures: the caption that the chapter shows below each."""

from docutils import nodes
from sphinx.application import Sphinx


def describe(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Give every image without a text that of the next paragraph."""
    waiting: list[nodes.image] = []
    for node in doctree.findall(lambda n: isinstance(n, nodes.image | nodes.paragraph)):
        if isinstance(node, nodes.image):
            if not node.get("alt"):
                waiting.append(node)
        else:
            for image in waiting:
                image["alt"] = node.astext()
            waiting = []


def setup(app: Sphinx) -> dict:
    """Register with Sphinx."""
    app.connect("doctree-resolved", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
