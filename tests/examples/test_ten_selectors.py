"""The ten selectors of examples/ten_selectors.py: short, run, and promising what docs/selection.md says."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import Study, UserWise, acc, run
from fedsim_userdp.participation import Cohorts, declared_release
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.streams import RunKey

FILE = Path(__file__).parents[2] / "examples" / "ten_selectors.py"
TREE = ast.parse(FILE.read_text())
CLASSES = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
PROMISES: dict[str, type] = {
    "Poisson": acc.PoissonGroups, "FixedSize": acc.FixedSize, "Cyclic": acc.NoAmplification,
    "Stratified": acc.PoissonGroups, "Availability": acc.PoissonGroups, "Importance": acc.PoissonGroups,
    "Growing": acc.PoissonGroups, "RoundRobin": acc.PoissonGroups, "PowerOfChoice": acc.PoissonGroups,
    "LongestAgo": acc.NoAmplification,
}  # fmt: skip
FACTS: dict[str, list[Any]] = {
    "user_id": [f"u{user}" for user in range(20)],
    "region": [["n", "s", "w"][user % 3] for user in range(20)],
    "records": [1 + user % 5 for user in range(20)],
    "available_from": [user % 24 for user in range(20)],
    "available_to": [(user + 12) % 24 for user in range(20)],
}


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ten_selectors", FILE)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["ten_selectors"] = found  # so that it can be imported again, as a run demands
    spec.loader.exec_module(found)
    return found


def test_there_are_ten_of_at_most_twelve_lines() -> None:
    assert list(CLASSES) == list(PROMISES)
    lines = FILE.read_text().splitlines()
    for node in CLASSES.values():
        written = [line for line in lines[node.lineno - 1 : node.end_lineno] if line.strip()]
        assert len(written) <= 12, node.name


@pytest.mark.parametrize("name", PROMISES)
def test_each_runs_and_promises_what_it_may(name: str, module: ModuleType, tmp_path: Path) -> None:
    words = "the house of the people and so it was said government by law a great year"
    pairs = [(f"u{user}", f"{words} {user}") for user in range(20)]
    selector = getattr(module, name)()
    study = Study.of(
        pairs, selection=selector, public=FACTS, heldout_users=3, min_words=0, window=16, threads=1,
        evaluation={"every": 100},
    )  # fmt: skip
    result = run(study, UserWise(rounds=3), tmp_path / "run")
    release = result.statement("user_wise").release
    inner = acc.inner_run(release)  # type: ignore[arg-type]
    assert isinstance(inner, PROMISES[name])
    assert isinstance(release, acc.PaidSignals) is (name == "PowerOfChoice")
    assert result.rows[0].epsilon == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize("name", [name for name, kind in PROMISES.items() if kind is not acc.FixedSize])
def test_what_each_draws_fits_what_it_promises(name: str, module: ModuleType) -> None:
    columns = {key: np.array(values) for key, values in FACTS.items() if key != "user_id"}
    population = Population(np.arange(20, dtype=np.uint64), columns)
    selector = getattr(module, name)()
    declared = declared_release(selector, 1.0, population, 6)
    counts = np.zeros(20)
    for seed in range(200):
        cohorts = Cohorts(selector, population, RunKey.seeded(seed), declared)
        for round in range(1, 7):
            counts[cohorts.draw(round)] += 1
    if isinstance(declared, acc.NoAmplification):
        assert counts.max() <= 200 * declared.max_participations
        return
    assert isinstance(declared, acc.PoissonGroups)
    most = max(sum(q * times for q, _, times in group) for group in declared.groups)
    assert counts.max() / 200 <= most + 6 * np.sqrt(6 * 0.25 / 200)
