"""The documentation's site: it builds without a warning, and no link on it leads nowhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from commands import run_module
from docutils.utils.math import latex2mathml

ROOT = Path(__file__).parents[1]


def build(folder, *options):
    done = run_module("sphinx", "-q", "-W", *options, "-c", "docs", ".", folder, folder=ROOT, timeout=1200)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    assert build(folder, "-D", "nb_execution_mode=off") == ""
    return folder


class Page(HTMLParser):
    """The anchors of a page and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.references = set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.references |= {found[name] for name in ("href", "src") if found.get(name)}


def test_every_link_of_the_site_leads_to_a_file_and_an_anchor_of_it(site):
    pages = {path: Page(path) for path in [*site.glob("*.html"), *site.glob("[!_]*/*.html")]}
    wrong, followed = [], 0
    for path, page in pages.items():
        for reference in page.references:
            parts = urlsplit(reference)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            followed += 1
            anchored = target not in pages or parts.fragment in pages[target].anchors | {""}
            if not target.is_file() or not anchored:
                wrong.append(f"{path.relative_to(site)} -> {reference}")
    assert wrong == []
    assert followed > 1000  # a menu on every page, at least


def test_every_page_in_the_folder_is_on_the_site(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / "docs" / f"{page.stem}.html").is_file()
    assert "url=docs/index.html" in (site / "index.html").read_text()


def test_the_reference_has_every_public_name(site):
    import sem_jax

    anchors = Page(site / "docs" / "api.html").anchors
    missing = [name for name in sem_jax.__all__ if f"sem_jax.{name}" not in anchors]
    assert missing == ["__version__"]


PAGES_WITH_FORMULAS = [page for page in (ROOT / "docs").glob("*.md") if "```math" in page.read_text()]


def formulas(page):
    """(those in a block, those in a line)."""
    block = re.compile(r"^ *```math\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    text = page.read_text()
    return block.findall(text), re.findall(r"\$([^$]+)\$", re.sub(r"`[^`]*`", "", block.sub("", text)))


@pytest.mark.parametrize("page", PAGES_WITH_FORMULAS, ids=lambda page: page.stem)
def test_every_formula_is_tex_that_can_be_read(page):
    blocks, lines = formulas(page)
    assert len(blocks) > 2
    for formula in blocks + lines:
        latex2mathml.tex2mathml(formula)  # raises where a command is unknown or a brace is missing


@pytest.mark.parametrize("page", PAGES_WITH_FORMULAS, ids=lambda page: page.stem)
def test_no_formula_in_a_line_holds_what_a_code_host_takes_for_markdown(page):
    # An escaped sign loses its backslash, a bar ends a cell of a table, and two of these open and close an emphasis.
    taken = re.compile(r"\\[^A-Za-z]|[|*]|<(?! )|(?<![A-Za-z0-9])_")
    assert [formula for formula in formulas(page)[1] if taken.search(formula)] == []


@pytest.mark.slow
def test_the_site_shows_what_the_notebook_does_when_it_is_run(tmp_path):
    build(tmp_path)  # the notebook's kernel has its own say on stderr
    page = (tmp_path / "notebooks" / "colab.html").read_text()
    assert "step 300/300" in page
    assert "finished: True" in page
