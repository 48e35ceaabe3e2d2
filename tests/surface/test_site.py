"""Pages of the site that are written from the code: the gallery and the reference."""

import re

import pytest
import site_api
import site_gallery
from conftest import ROOT

from mpgraph.protocols import KolenPollack

NAV = (ROOT / "mkdocs.yml").read_text()


def test_every_page_of_the_reference_is_in_the_menu():
    pages = site_api.pages()
    assert {f"api/{page}.md" for page in site_api.PAGES} | {"api/index.md"} == set(pages)
    assert all(page in NAV for page in pages)
    assert "gallery/index.md" in NAV


def test_the_reference_has_every_public_name_and_links_that_lead_there():
    pages = site_api.pages()
    for one in site_api.public():
        assert f"\n## {one.name} {{#{one.name}}}\n" in pages[f"api/{one.page}.md"]
    for address, text in pages.items():
        for page, anchor in re.findall(r"\]\((\w+\.md)#([^)]*)\)", text):
            assert f"{{#{anchor}}}" in pages[f"api/{page}"], f"{address}: {page}#{anchor}"


def test_measured_pages_have_every_rule_that_ships():
    """The gallery takes figures from these two pages, by the names of rules."""
    (matrix,) = site_gallery.tables("matrix.md").values()
    bench = site_gallery.tables("bench.md")
    assert set(matrix) == set(site_gallery.shipped())
    problems = [rows for rows in bench.values() if "ms a step" in next(iter(rows.values()))]
    assert problems
    assert set(site_gallery.shipped()) <= {rule for rows in problems for rule in rows}
    assert "digits: " + site_gallery.NETWORK in bench


def test_what_the_bench_refuses_stands_on_the_page_of_the_rule():
    bench, page = site_gallery.tables("bench.md"), (ROOT / "docs" / "bench.md").read_text()
    for rule in site_gallery.shipped():
        refused = len(re.findall(rf"^- `{rule}`", page, re.MULTILINE))
        assert len(re.findall(r"^- ", site_gallery._measured(rule, bench), re.MULTILINE)) == refused


@pytest.fixture(scope="module")
def page():
    return site_gallery.page("kolen_pollack")


def test_a_page_of_the_gallery_says_what_the_rule_says(page):
    assert "b_ji <- b_ji - lr (<e_j x_i> + decay b_ji)" in page.text  # its header
    assert "mpgraph.protocols import KolenPollack" in page.text
    for name, option in KolenPollack.declared.items():
        assert f"| `{name}` | `{option.default!r}` | " in page.text
    assert "`Literal['mean', 'sum']`" in page.text  # by its words, not by the name of the type
    assert "@inproceedings{kolen1994backpropagation," in page.text
    assert "(backprop.md)" in page.text
    assert "### Alignment, of which it is a case" in page.text


def test_a_page_of_the_gallery_counts_and_draws(page):
    """Counted by hand: backpropagation's two products forward, one back, two outer ones; b makes one more of those."""
    products = 2 * 32 * (2 * (64 * 32 + 32 * 10) + 32 * 10)
    ratio = float(re.search(r"([\d.]+) times those of backpropagation", page.text)[1])
    assert products < site_gallery._usual() < 1.1 * products
    assert 1.0 < ratio < 1.3
    assert page.picture.startswith("<?xml")
    assert page.row.count(" | ") == 3
