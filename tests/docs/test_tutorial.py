"""The tutorial runs, and the outputs that it is committed with are those that come out."""

import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")
COLOURS = re.compile(r"\x1b\[[\d;]*m")
TOLERANCE = 0.03  # of perplexities: other CPUs round otherwise; noise and cohorts are the same


def outputs(notebook: Any) -> list[str]:
    """What each code cell printed or showed, as text without colours."""
    return [
        COLOURS.sub("", "".join(one.get("text") or one.get("data", {}).get("text/plain", "") for one in cell.outputs))
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.fixture(scope="module")
def committed() -> Any:
    return nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)


def test_the_tutorial_gives_the_outputs_that_it_is_committed_with(
    committed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("FEDSIM_CACHE_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR", "working"):
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    again = outputs(runpy.run_path(str(ROOT / "scripts" / "tutorial.py"))["executed"](tmp_path / "working"))
    assert not list((tmp_path / "working").iterdir())
    for before, now in zip(outputs(committed), again, strict=True):
        assert NUMBER.sub("#", before).split() == NUMBER.sub("#", now).split()
        assert numbers(now) == pytest.approx(numbers(before), rel=TOLERANCE, abs=1e-6)
        for claim in re.findall(r"^What .*$|^target .*$|^\S+ users are trained on.*$", before, re.M):
            assert claim in now


def test_the_committed_outputs_hold_a_claim_within_the_budget_and_four_rows(committed: Any) -> None:
    shown = "\n".join(outputs(committed))
    (claim,) = set(re.findall(r"has \(([\d.]+), ([\d.]+)\)-DP for users", shown))
    epsilon, delta = map(float, claim)
    assert 7.9 < epsilon <= 8
    assert delta < 0.0031
    table = re.findall(r"│ (zero_shot|user_wise|example_level_tight|non_private) .* ([\d.]+) │$", shown, re.M)
    rows = {name: float(perplexity) for name, perplexity in table[-4:]}
    assert rows["non_private"] < min(rows["user_wise"], rows["example_level_tight"])
    assert rows["zero_shot"] > max(rows["user_wise"], rows["example_level_tight"])


def test_the_committed_outputs_tell_nothing_of_a_machine(committed: Any) -> None:
    for cell in committed.cells:
        assert not set(cell.metadata) - {"tags"}
        for output in cell.get("outputs", []):
            assert output.output_type in ("stream", "execute_result", "display_data")
            assert output.get("name") != "stderr"
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|usr|opt|work|var|Users)\b", "\n".join(outputs(committed)))
