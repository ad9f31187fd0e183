"""Cells of a grid, intervals over seeds, and what is said of two mechanisms."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim_userdp.studies.grid import Cell, CellResult, Choice, Entry, cells_of
from fedsim_userdp.studies.intervals import holm, over_seeds, paired
from fedsim_userdp.studies.summary import lines_of, pairs_of
from fedsim_userdp.studies.tuning import Range, settings_to_try, space_of

ENTRIES = [
    Entry("zero_shot", "ZeroShot", {"mechanism": "zero_shot"}),
    Entry("user_wise", "UserWise", {"mechanism": "user_wise"}),
    Entry("group_privacy", "RecordLevelDP", {"mechanism": "group_privacy"}),
    Entry("non_private", "NonPrivate", {"mechanism": "non_private"}),
]
EPSILONS = [Choice(value, {"privacy.epsilon": value}) for value in (1.0, 8.0)]
STEPS = [Choice(value, {"local.steps": value}) for value in (1, 4)]


def test_a_mechanism_is_run_once_for_all_values_of_an_axis_it_does_not_depend_on() -> None:
    cells = cells_of(ENTRIES, {"epsilon": EPSILONS, "local_steps": STEPS}, [0, 1])
    number = {name: sum(cell.mechanism == name for cell in cells) for name in ("zero_shot", "user_wise", "non_private")}
    assert number == {"zero_shot": 1, "user_wise": 8, "non_private": 2}
    assert sum(cell.mechanism == "group_privacy" for cell in cells) == 4
    assert len({cell.name for cell in cells}) == len(cells)
    (untrained,) = [cell for cell in cells if cell.mechanism == "zero_shot"]
    assert untrained.axes == {"epsilon": None, "local_steps": None}
    assert untrained.changes == {"mechanism": "zero_shot", "seed": 0}
    one = next(cell for cell in cells if cell.name == "user_wise-epsilon8.0-local_steps4-seed1")
    assert one.changes == {"mechanism": "user_wise", "seed": 1, "privacy.epsilon": 8.0, "local.steps": 4}


def test_cells_whose_names_would_be_one_are_both_there() -> None:
    values = [Choice("a/b", {"data.path": "a/b"}), Choice("a_b", {"data.path": "a_b"})]
    assert len({cell.name for cell in cells_of(ENTRIES[1:2], {"path": values}, [0])}) == 2


def test_the_interval_over_seeds_holds_the_mean_in_95_of_100_studies() -> None:
    generator = np.random.default_rng(0)
    found = [over_seeds(list(generator.normal(7.0, 2.0, 3))) for _ in range(4000)]
    share = np.mean([one.low <= 7.0 <= one.high for one in found if one.low is not None and one.high is not None])
    low, high = stats.binom.ppf([1e-6, 1 - 1e-6], 4000, 0.95) / 4000
    assert low <= share <= high


def test_one_seed_has_no_interval_and_nothing_no_mean() -> None:
    assert over_seeds([3.0]).low is None
    with pytest.raises(ValueError, match="finite"):
        over_seeds([])
    with pytest.raises(ValueError, match="finite"):
        over_seeds([1.0, float("nan")])


def test_holm_is_the_published_procedure() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == {"a", "d"}
    assert holm({"a": 0.06, "b": 0.001}) == {"b"}
    assert holm({}) == set()


def test_a_difference_is_paired_by_seed() -> None:
    found = paired({0: 10.0, 1: 20.0, 2: 30.0}, {1: 21.0, 0: 10.5, 5: 0.0})
    assert found is not None
    assert found.interval.number == 2
    assert found.interval.mean == pytest.approx(-0.75)
    assert found.p_value == pytest.approx(2 * stats.t.sf(3.0, 1))
    assert paired({0: 1.0}, {1: 1.0}) is None
    same = paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same is not None
    assert same.p_value == 1.0


def results(figures: dict[str, list[float]], **axes: Any) -> list[CellResult]:
    """Cells that are done, of each mechanism as many as it has figures."""
    return [
        CellResult(
            Cell(name, axes, seed),
            "done",
            row={"perplexity": value, "epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 1.0, "records_per_user": 4}
            | {"rounds": 3},
        )
        for name, values in figures.items()
        for seed, value in enumerate(values)
    ]


def test_a_mechanism_against_itself_is_called_different_in_at_most_5_of_100_studies() -> None:
    generator = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        figures = {name: list(generator.normal(60.0, 3.0, 3)) for name in "abcd"}
        wrong += any(pair.is_different for pair in pairs_of(results(figures)))
    assert wrong <= stats.binom.ppf(1 - 1e-6, 400, 0.05)


def test_who_is_better_is_said_with_an_interval_and_else_that_they_cannot_be_told_apart() -> None:
    far = pairs_of(results({"a": [10.0, 11.0, 12.0], "b": [20.1, 20.9, 22.0]}, epsilon=8))
    assert far[0].in_words.startswith("a is better than b by 10 [9.")
    assert far[0].in_words.endswith("at epsilon 8.")
    near = pairs_of(results({"a": [10.0, 11.0, 12.0], "b": [10.1, 10.8, 12.1]}))
    assert near[0].in_words.startswith("a and b cannot be told apart by 3 seeds")
    assert "one seed" in pairs_of(results({"a": [1.0], "b": [9.0]}))[0].in_words


def test_a_line_counts_the_cells_that_have_no_result() -> None:
    cells = results({"a": [10.0, 11.0, 12.0]})
    cells[1].status = "diverged"
    (line,) = lines_of(cells)
    assert line.num_missing == 1
    assert line.perplexity is not None
    assert line.perplexity.mean == 11.0
    assert line.in_words.endswith("(1 without a result)")


def test_what_is_tried_is_the_same_whenever_it_is_asked_for_and_fills_its_space() -> None:
    space = space_of("UserWiseAdaptive", {"clip_norm": 0.3, "learning_rate": 0.04, "target_quantile": 0.5})
    found = settings_to_try(space, 32, 0)
    assert settings_to_try(space, 5, 0) == found[:5]
    assert settings_to_try(space, 5, 1) != found[:5]
    for name, one in space.items():
        places = sorted(one.place_of(tried[name]) for tried in found)
        assert places[0] >= 0
        assert places[-1] <= 1
        assert max(np.diff([0.0, *places, 1.0])) < 0.2
    assert space["clip_norm"].low == pytest.approx(0.03)
    assert space["learning_rate"].high == pytest.approx(0.4)
    assert space_of("ZeroShot", {}) == {}


def test_a_winner_on_the_border_of_its_space_is_said() -> None:
    one = Range(0.03, 3.0, is_log=True)
    assert one.is_border(0.031)
    assert one.is_border(2.9)
    assert not one.is_border(0.3)
