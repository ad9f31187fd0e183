import dataclasses
import math
from typing import Any

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.budget import AXES, MECHANISMS, BudgetRow, BudgetSetting, ClipNorms, plan, sweep
from fedsim_userdp.privacy.pld import tail
from fedsim_userdp.privacy.pld.convolution import Part
from fedsim_userdp.privacy.pld.mixture import Floats
from tests.known import known

SETTING = BudgetSetting(num_users=1000, records_per_user=10, rounds=200, epsilon=3.0, cohort=50.0)


@pytest.fixture(scope="module")
def rows() -> dict[str, BudgetRow]:
    """The plan of the setting by mechanism."""
    return {row.mechanism: row for row in plan(SETTING)}


def test_every_mechanism_gives_one_row_in_order() -> None:
    assert tuple(row.mechanism for row in plan(SETTING)) == MECHANISMS


@pytest.mark.parametrize(("mechanism", "method"), zip(MECHANISMS, ("pld", "group", "tight"), strict=True))
def test_recomputed_epsilon_is_the_runs_own_and_within_1_percent_below_the_target(
    rows: dict[str, BudgetRow], mechanism: str, method: str
) -> None:
    row = rows[mechanism]
    assert row.noise_multiplier is not None
    run = (
        acc.PoissonUsers(row.noise_multiplier, 0.05, 200)
        if mechanism == "user_wise"
        else acc.RecordLevel(row.noise_multiplier, 0.05, 200, 10)
    )
    assert row.epsilon == acc.epsilon(run, 1000**-1.1, method)
    assert 0.99 * 3.0 <= row.epsilon <= 3.0


def test_noise_on_the_mean_is_multiplier_times_clip_norm_over_the_expected_units() -> None:
    clips = ClipNorms(user_wise=0.3, group_privacy=0.5, example_level_tight=2.0)
    user, group, tight = plan(dataclasses.replace(SETTING, clip_norms=clips))
    assert (user.expected_units, group.expected_units, tight.expected_units) == (50.0, 500.0, 500.0)
    assert user.noise_stddev == pytest.approx(known(user.noise_multiplier) * 0.3 / 50)
    assert group.noise_stddev == pytest.approx(known(group.noise_multiplier) * 0.5 / 500)
    assert tight.noise_stddev == pytest.approx(known(tight.noise_multiplier) * 2.0 / 500)


def test_clip_norms_change_neither_noise_multipliers_nor_tie_ratios(rows: dict[str, BudgetRow]) -> None:
    for row in plan(dataclasses.replace(SETTING, clip_norms=ClipNorms(user_wise=0.1, example_level_tight=7.0))):
        assert row.noise_multiplier == rows[row.mechanism].noise_multiplier
        assert row.tie_ratio == rows[row.mechanism].tie_ratio


def test_a_user_wise_clip_norm_smaller_by_the_tie_ratio_gives_equal_noise(rows: dict[str, BudgetRow]) -> None:
    for name in MECHANISMS[1:]:
        ratio = rows[name].tie_ratio
        assert ratio is not None
        user = plan(dataclasses.replace(SETTING, clip_norms=ClipNorms(user_wise=1.0 / ratio)))[0]
        assert user.noise_stddev == pytest.approx(rows[name].noise_stddev)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("probability", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("k", [2, 20])
def test_tight_els_never_has_more_noise_than_the_others_at_equal_clip_norm(
    k: int, probability: float, epsilon: float
) -> None:
    _, group, tight = plan(BudgetSetting(500, k, 50, epsilon, sampling_prob=probability))
    assert known(tight.tie_ratio) >= 0.99  # each was calibrated within 1%
    assert known(tight.noise_per_clip) <= 1.01 * known(group.noise_per_clip)
    assert known(group.epsilon_tight) <= known(group.epsilon)


def test_one_record_a_user_makes_the_mechanisms_equal() -> None:
    multipliers = [row.noise_multiplier for row in plan(SETTING.at("records_per_user", 1))]
    assert multipliers == pytest.approx([multipliers[0]] * 3, rel=0.01)


def test_sampling_everybody_always_ties_tight_els_with_user_wise() -> None:
    assert plan(SETTING.at("sampling_prob", 1.0))[-1].tie_ratio == pytest.approx(1.0, abs=0.01)


def test_noise_multipliers_agree_with_the_reference_values() -> None:
    """From tests/privacy/reference_accounting.json: q = 0.05, 200 rounds, delta 1e-5, epsilon 1, k = 5."""
    user, group, tight = plan(BudgetSetting(1000, 5, 200, 1.0, delta=1e-5, sampling_prob=0.05))
    assert user.noise_multiplier == pytest.approx(2.8387, rel=0.01)
    assert group.noise_multiplier == pytest.approx(13.446, rel=0.01)
    assert tight.noise_multiplier == pytest.approx(13.33, rel=0.01)


def test_cohort_and_sampling_prob_are_two_ways_to_say_one_thing() -> None:
    by_probability = BudgetSetting(1000, 10, 200, 3.0, sampling_prob=0.05)
    assert plan(by_probability) == plan(SETTING)


def test_delta_follows_the_number_of_users_unless_given() -> None:
    assert SETTING.at("num_users", 5000).user_level_delta == 5000**-1.1
    assert dataclasses.replace(SETTING, delta=1e-5).at("num_users", 5000).user_level_delta == 1e-5


VALUES: dict[str, list[float]] = {
    "records_per_user": [1, 3],
    "rounds": [10, 30],
    "num_users": [200, 400],
    "epsilon": [1.0, 3.0],
    "cohort": [5.0, 50.0],
    "sampling_prob": [0.01, 0.5],
}


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_can_be_swept_and_each_plan_is_that_of_its_value(axis: str) -> None:
    plans = sweep(SETTING, axis, VALUES[axis])
    assert plans == [plan(SETTING.at(axis, value)) for value in VALUES[axis]]
    field = "epsilon_target" if axis == "epsilon" else axis
    assert [[getattr(row, field) for row in rows] for rows in plans] == [[value] * 3 for value in VALUES[axis]]


def test_a_target_that_nobody_can_meet_leaves_a_reason_instead_of_a_number() -> None:
    rows = plan(BudgetSetting(1000, 10, 10**9, 1e-9, sampling_prob=1.0))
    for row in rows:
        assert row.noise_multiplier is row.noise_stddev is row.epsilon is row.tie_ratio is None
        assert "1e" in row.problem


BAD: dict[str, list[object]] = {
    "num_users": [0, 1, 2.5, math.nan, None, True],
    "records_per_user": [0, -1, 1001, 1.5],
    "rounds": [0, -3, 0.5, None],
    "epsilon": [0.0, -1.0, math.inf, math.nan, "many"],
    "delta": [0.0, 1.0, -1e-5, math.nan, 0.0011, "small"],
    "cohort": [0.0, -1.0, 1000.5, math.inf, math.nan, None],
    "sampling_prob": [0.5],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^({name}|cohort or {name}|{name} or sampling_prob)\b"):
        dataclasses.replace(SETTING, **{name: value})


@pytest.mark.parametrize("value", [0.0, 1.5, -0.1, math.nan, "often"])
def test_a_bad_sampling_prob_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^sampling_prob\b"):
        BudgetSetting(1000, 10, 200, 3.0, sampling_prob=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, None])
def test_a_bad_clip_norm_is_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^clip_norm\.group_privacy\b"):
        ClipNorms(group_privacy=value)


def test_a_delta_above_1_over_n_is_refused_also_where_the_users_are_swept() -> None:
    setting = dataclasses.replace(SETTING, delta=1e-3)
    with pytest.raises(ValueError, match="1/num_users"):
        sweep(setting, "num_users", [500, 10_000])


def test_an_unknown_axis_and_an_empty_sweep_are_refused() -> None:
    with pytest.raises(ValueError, match=r"axis must be one of .*'nosuch'"):
        sweep(SETTING, "nosuch", [1.0])
    with pytest.raises(ValueError, match="at least one"):
        sweep(SETTING, "epsilon", [])


def test_ten_million_users_need_small_transforms_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts instead of timing: some 1,800 transforms of 11 million points in all. They were 2,600 of 380 million."""
    sizes: list[int] = []
    convolve = tail.convolve

    def counted(parts: list[Part], start: int, size: int, *, precise: bool = False) -> tuple[Floats, float]:
        sizes.append(size)
        return convolve(parts, start, size, precise=precise)

    monkeypatch.setattr(tail, "convolve", counted)
    rows = plan(dataclasses.replace(SETTING, num_users=10**7, epsilon=8.0))
    assert all(row.epsilon is not None and row.epsilon <= 8.0 for row in rows)
    assert len(sizes) < 3000
    assert sum(sizes) < 30e6
