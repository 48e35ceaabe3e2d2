"""What a release carries agrees with the code: version, license, citation, changelog, the pages of the site."""

import re
import tomllib

import mutants
from conftest import ROOT

import mpgraph as mg

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation_names_this_version_and_license():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^version: {re.escape(mg.__version__)}$", text, re.MULTILINE)
    assert re.search(rf"^license: {re.escape(PROJECT['license'])}$", text, re.MULTILINE)
    assert mg.__version__ == PROJECT["version"]


def test_the_changelog_has_this_version():
    assert re.search(rf"^## {re.escape(mg.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_page_of_the_site_is_there_and_every_document_is_reached():
    listed = set(re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert listed <= pages
    links = set(re.findall(r"\((\w+\.md)", "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))))
    assert pages - listed <= links  # a page beside the menu is linked from another one


def test_templates_have_a_name_and_a_purpose():
    found = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert found
    for path in found:
        assert re.match(r"---\nname: .+\nabout: .+\n---\n", path.read_text()), path


def test_faults_that_mutants_plant_have_their_line_and_their_test():
    assert len(mutants.FAULTS) >= 10
    for fault in mutants.FAULTS:
        assert (ROOT / fault.path).read_text().count(fault.line) == 1, fault.path
        assert fault.fault != fault.line
        assert (ROOT / "tests" / fault.tests).is_file(), fault.tests
