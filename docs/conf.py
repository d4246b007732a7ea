"""Sphinx: `sphinx-build -W docs out/docs` builds the site, warnings are errors."""

from pathlib import Path

from docutils import nodes
from sphinx import addnodes

import bregjax

project = "bregjax"
author = "The bregjax developers"
copyright = "2026, the bregjax developers"  # noqa: A001
version = release = bregjax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"bregjax {version}"
html_copy_source = False

# A name in single backticks is a link where there is such an object, and code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say what arguments are
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_admonition_for_notes = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3


def setup(app):
    """Folders of the repository are no pages: links to them become their names."""
    app.connect("doctree-read", _name_folders)


def _name_folders(app, doctree):
    page, root = Path(doctree["source"]), Path(app.srcdir).parent
    for link in list(doctree.findall(addnodes.pending_xref)):
        if link["reftype"] == "myst" and (page.parent / link["reftarget"]).is_dir():
            folder = (page.parent / link["reftarget"]).resolve().relative_to(root)
            link.replace_self(nodes.literal(text=folder.as_posix()))
