"""How Sphinx builds the pages; `pages.py` gathers and writes them first."""

import sys
from pathlib import Path

from blockspectra import __version__

sys.path.insert(0, str(Path(__file__).parent))  # for rendering.py

project = "blockspectra"
author = "The blockspectra contributors"
copyright = author
release = version = __version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "rendering",
]
default_role = "py:obj"
nb_execution_mode = "off"  # pages show the committed outputs
nb_merge_streams = True
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
nb_render_markdown_format = "myst"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["ref.python"]  # a short name in a signature may be that of several classes

autodoc_inherit_docstrings = False  # those of torch refer to pages that are not here
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "blockspectra"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"top_of_page_buttons": []}
