"""The documentation leads somewhere: links, the names of the reference, the figure, the list of decisions."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

import fedsim_userdp
from fedsim_userdp import acc

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_links_to_files_that_exist(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = [link for link in LINK.findall(text) if "://" not in link]
    assert not [link for link in links if not (page.parent / link).exists()]


def directives(page: str) -> set[str]:
    return set(re.findall(r"^::: (\S+)$", (DOCS / "reference" / page).read_text(encoding="utf-8"), re.M))


def test_the_reference_has_every_public_name() -> None:
    face = {f"fedsim_userdp.{name}" for name in fedsim_userdp.__all__ if name != "acc"}
    assert directives("README.md") == face | {"fedsim_userdp.Study.of"}
    accounting = {f"fedsim_userdp.privacy.accounting.{name}" for name in acc.__all__}
    no_class = {f"fedsim_userdp.privacy.accounting.{name}" for name in ("Unamplified", "Description")}
    assert directives("accounting.md") == accounting - no_class
    page = (DOCS / "reference" / "accounting.md").read_text(encoding="utf-8")
    assert all(f"`acc.{name.rpartition('.')[2]}`" in page for name in no_class)


def test_every_mechanism_has_a_page_and_every_decision_a_line() -> None:
    described = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "mechanisms").glob("*.md"))
    for file in (ROOT / "conf" / "mechanism").glob("*.yaml"):
        assert f"mechanism{file.stem})" in described  # a link to its settings
    listed = (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\((\d{4}-\S+\.md)\)", listed) == sorted(path.name for path in DOCS.glob("decisions/0*.md"))


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert not [page for page in pages if page not in text and not page.startswith("decisions/0")]


def test_the_site_asks_no_other_host_for_anything() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert not [value for value in _texts(settings) if "://" in value]


def test_a_link_out_of_the_pages_leads_to_a_page_that_is_made_of_the_file() -> None:
    page_for = runpy.run_path(str(ROOT / "scripts" / "site.py"))["_page_for"]
    assert page_for("", "../examples/corpus.py") == "source/examples/corpus.py.md"
    assert page_for("mechanisms", "../../README.md") == "index.md"
    assert page_for("reference", "../tutorial.ipynb") == "tutorial.md"
    assert page_for("mechanisms", "../settings.md") is None


def _texts(node: object) -> list[str]:
    if isinstance(node, dict):
        return [text for value in node.values() for text in _texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in _texts(value)]
    return [str(node)]


def test_the_citation_names_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fedsim_userdp.__version__
    assert citation["license"] == "Apache-2.0"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
