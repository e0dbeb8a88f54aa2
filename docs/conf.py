"""Sphinx's configuration: the pages of docs/, the notebook and two pages of the root, as one site.

The source folder is the root of the repository (`sphinx-build -c docs . build/docs`). So a link means on the site what
it means on a code host: to a page it leads to that page, to any other file of the tree it offers that file.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # autodoc
os.environ["PYTHONPATH"] = str(ROOT)  # the notebook's kernel, which works in a temporary folder and finds configs/ so

from sem_jax import __version__  # noqa: E402

project = "sem_jax"
author = "The authors of sem_jax"
version = release = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]

root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "runs", "sem_jax", "tests", "benchmarks", "configs"]  # not even to be walked through

# A link or an anchor that leads nowhere is a warning, and `make docs` takes warnings as errors.
nitpicky = True
myst_heading_anchors = 3  # of `page.md#a-heading`, spelt as code hosts spell them
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]  # ```math, which code hosts render, too

highlight_language = "none"  # where a block names no language
nb_execution_mode = "cache"  # beside the site; a notebook that has not changed is not run again
nb_execution_in_temp = True
nb_execution_timeout = 1800  # seconds a cell, for machines with other work to do
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"  # docstrings write `names` as Markdown does
autodoc_member_order = "bysource"
napoleon_use_rtype = False
autodoc_typehints = "none"  # docstrings say shapes and units, which types do not

html_theme = "sphinx_book_theme"
html_title = "sem_jax"
html_theme_options = {"use_download_button": False, "navbar_persistent": []}  # the sidebar has a search field
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False


def setup(app):
    """Hooks of this site."""
    app.connect("autodoc-process-docstring", _from_markdown, priority=400)  # before napoleon
    app.connect("build-finished", _lead_to_the_front_page)


def _from_markdown(app, what, name, obj, options, lines):
    """Tells reStructuredText what docstrings mean, which are written as Markdown is.

    An indented block after a blank line is preformatted, and a bar outside of `code` is a bar: |z|² is no substitution.
    """
    if lines and lines[0].startswith("Alias for field number"):  # Python's own words for a field of a tuple
        lines[0] = ""
    literal = False
    found = []
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("    ") and not before and not literal:
            found += ["::", ""]
            literal = True
        elif line and not line.startswith("    "):
            literal = False
        code = literal or line.lstrip().startswith((">>> ", "... "))
        found.append(line if code else _SPECIAL.sub(_as_rst, line))
    lines[:] = found


_SPECIAL = re.compile(r"(?P<code>`[^`]*`)|docs/(?P<page>\w+)\.md|\|")


def _as_rst(match):
    if match["page"]:
        return f":doc:`/docs/{match['page']}`"
    return match["code"] or r"\|"


def _lead_to_the_front_page(app, error):
    if error is None and app.builder.name == "html":
        page = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=docs/index.html">'
        Path(app.outdir, "index.html").write_text(f"{page}<title>sem_jax</title>\n")
