"""What a benchmark says of known figures."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from fedsim_userdp.simulations.measurements.plot import plot_cost_curves
from fedsim_userdp.simulations.measurements.results import (
    GOALS,
    CohortDraw,
    Comparison,
    CostCurve,
    Goal,
    PartResult,
    Startup,
    benchmark_table,
    in_words,
    speed,
    write_benchmark,
)

SLOWER = {"cohort": [2.0, 2.0, 4.0], "plain": [1.0, 2.0, 3.0]}


def test_speed_is_the_others_seconds_over_ones_own() -> None:
    found = speed("cohort_vs_plain", {"cohort": [2.0], "plain": [5.0]}, of="cohort", against="plain")
    assert found.ratio == 2.5  # two and a half times as fast
    assert found.is_met


def test_the_ratio_is_the_median_of_the_pairs_not_of_the_sides() -> None:
    found = speed("cohort_vs_plain", SLOWER, of="cohort", against="plain")
    assert found.ratios == [0.5, 1.0, 0.75]
    assert found.ratio == 0.75
    assert not found.is_met


def test_rates_count_work_per_second() -> None:
    seconds = {"cohort": [2.0, 2.0], "plain": [4.0, 4.0]}
    found = speed("cohort_vs_plain", seconds, "cohort", "plain", work={"tokens": 1000})
    assert found.rates() == {"tokens_per_second": {"cohort": 500.0, "plain": 250.0}}
    assert Comparison("memory_512_vs_64", seconds, "cohort", "plain", unit="bytes", work={"users": 1}).rates() == {}


@pytest.mark.parametrize(
    ("ratio", "goal", "is_met"),
    [
        (0.95, Goal(0.95, is_lower=True), True),
        (0.94, Goal(0.95, is_lower=True), False),
        (1.1, Goal(1.1, is_lower=False), True),
        (1.11, Goal(1.1, is_lower=False), False),
    ],
)
def test_a_goal_is_met_on_its_own_side_of_the_bound(ratio: float, goal: Goal, is_met: bool) -> None:
    assert goal.is_met_by(ratio) is is_met


def test_a_slope_is_the_power_with_which_seconds_grow() -> None:
    for power in (0.0, 1.0, 2.0):
        curve = CostCurve("length", {value: [3.0 * value**power] * 2 for value in (16, 32, 64, 128)})
        assert curve.slope == pytest.approx(power, abs=1e-12)


def all_findings() -> dict[str, PartResult]:
    comparison = speed("cohort_vs_plain", SLOWER, "cohort", "plain", {"tokens": 10}, {"relative_distance": 1e-7})
    memory = Comparison("memory_512_vs_64", {"512": [11e6], "64": [10e6]}, "512", "64", unit="bytes")
    return {
        "cohort_vs_plain": PartResult(comparison),
        "cohort_vs_pfl": PartResult(absent="pfl is not installed"),
        "population_1e6_vs_1e3": PartResult(draws=[CohortDraw(1000, 0.001, 0.004, 0.002, 100.0)]),
        "memory_512_vs_64": PartResult(memory),
        "cost_curves": PartResult(curves=[CostCurve("rank", {1: [1.0, 1.0], 2: [1.0, 3.0]})]),
        "startup": PartResult(startup=Startup([0.2, 0.3], [5.0])),
    }


def test_the_json_holds_every_ratio_with_its_raw_figures(tmp_path: Path) -> None:
    write_benchmark(tmp_path, all_findings(), {"device": "cpu"})
    stored = json.loads((tmp_path / "benchmark.json").read_text())
    assert stored["ratios"] == dict.fromkeys(GOALS) | {"cohort_vs_plain": 0.75, "memory_512_vs_64": 1.1}
    assert stored["seconds"] == {"cohort_vs_plain": SLOWER}
    assert stored["bytes"] == {"memory_512_vs_64": {"512": [11e6], "64": [10e6]}}
    assert stored["absent"] == {"cohort_vs_pfl": "pfl is not installed"}
    assert stored["cohort_draw"][0]["num_users"] == 1000
    assert stored["cost_curves"]["rank"]["median_seconds"] == [1.0, 2.0]
    assert stored["cost_curves"]["rank"]["slope"] == pytest.approx(1.0)
    assert stored["startup"]["help_seconds"] == [0.2, 0.3]


def test_table_and_words_say_what_was_found() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(benchmark_table(all_findings()))
    table = console.export_text()
    for text in ("0.75", ">= 0.95", "no", "plain 2 s / cohort 2 s", "512 11 MB / 64 10 MB", "pfl is not installed"):
        assert text in table
    words = "\n".join(in_words(all_findings()))
    for text in ("1,000 users", "4.0 ms", "rank: 1 at 1 to 2 at 2, log-log slope 1.00", "0.25 s", "5.00 s"):
        assert text in words


def test_the_plot_has_a_panel_for_each_curve(tmp_path: Path) -> None:
    curves = [CostCurve(axis, {1: [0.1, 0.2], 2: [0.2, 0.4]}) for axis in ("cohort", "rank")]
    plot_cost_curves(tmp_path / "two.png", curves)
    plot_cost_curves(tmp_path / "one.png", curves[:1])
    assert (tmp_path / "two.png").stat().st_size > (tmp_path / "one.png").stat().st_size > 5_000
