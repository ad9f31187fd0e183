"""The list of mutations fits the source, and the runner tells a catch from a survivor and from a mistake of its own."""

import re
from pathlib import Path

import pytest

from tests.mutation.run import REPORT, ROOT, Failure, Mutation, MutationError, Verdict, judge, load_mutations, report

MUTATIONS = load_mutations()
SOURCE = "def doubled(x):\n    return 2 * x\n"
TEST = "from source import doubled\n\ndef test_doubled():\n    assert doubled(2) == 4\n"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_snippet_occurs_exactly_once_and_its_replacement_is_python(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert mutation.applied_to(source) != source


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_tests_that_must_notice_exist(mutation: Mutation) -> None:
    assert mutation.tests
    for test in mutation.tests:
        path, _, name = test.partition("::")
        assert not name or f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")
        assert (ROOT / path).is_file()


def test_at_least_25_different_guarantees_are_broken() -> None:
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 25


def test_page_says_of_each_mutation_which_test_caught_it() -> None:
    page = (ROOT / REPORT).read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([^|]+?) \| [^|]+ \| [^|]+ \| `([^|]+)` \|$", page, flags=re.MULTILINE))
    assert listed.keys() == {mutation.name for mutation in MUTATIONS}
    assert "**nobody**" not in page
    for test in listed.values():
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "test_source.py").write_text(TEST, encoding="utf-8")
    return tmp_path


def mutation(replacement: str, snippet: str = "2 * x", test: str = "test_source.py") -> Mutation:
    return Mutation("m", "b", "source.py", snippet, replacement, (test,))


def test_mutation_that_a_test_notices_is_caught_and_undone(folder: Path) -> None:
    verdict = judge(mutation("3 * x"), folder, 60.0)
    assert verdict.catch is not None
    assert verdict.catch.test == "test_source.py::test_doubled"
    assert "assert 6 == 4" in verdict.catch.message
    assert (folder / "source.py").read_text(encoding="utf-8") == SOURCE


def test_mutation_that_no_test_notices_survives(folder: Path) -> None:
    assert judge(mutation("x + x"), folder, 60.0).catch is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (mutation("3 * x", snippet="x"), "occurs 2 times"),
        (mutation("3 * x", snippet="nosuch"), "occurs 0 times"),
        (mutation("3 *"), "not Python"),
        (mutation("nosuch * x"), "misfit: NameError"),
        (mutation("3 * x", test="test_nosuch.py"), "pytest ended with status 4"),
        (mutation("3 * x", snippet="def doubled(x):\n    return 2 * x"), "pytest ended with status 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistake_in_the_list_is_no_catch(folder: Path, wrong: Mutation, message: str) -> None:
    with pytest.raises(MutationError, match=message):
        judge(wrong, folder, 60.0)
    assert (folder / "source.py").read_text(encoding="utf-8") == SOURCE


def test_tests_that_do_not_end_are_no_catch(folder: Path) -> None:
    endless = mutation("2 * x", snippet="return 2 * x")
    endless = Mutation("m", "b", "source.py", "return 2 * x", "\n    while True: pass", endless.tests)
    with pytest.raises(MutationError, match="did not end within"):
        judge(endless, folder, 3.0)


def test_report_names_survivors() -> None:
    caught = Verdict(mutation("3 * x"), Failure("test_source.py::test_doubled", "assert 6 == 4"), 1.0)
    page = report([caught, Verdict(mutation("x + x"), None, 1.0)])
    assert "1 of 2 were caught" in page
    assert "| m | b | `source.py` | **nobody** |" in page
