"""Groups of users with probabilities and weights of their own, against dp_accounting and against PoissonUsers."""

import dataclasses
import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.mechanisms.persistence import one_release
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting import accountants, rdp, trajectories
from fedsim_userdp.privacy.accounting.renyi import epsilon_bound, rdp_of
from fedsim_userdp.privacy.accounting.serialization import from_json, to_json

Groups = tuple[trajectories.Trajectory, ...]

DELTA = 1e-5
SLACK = 2e-3
GROWING: Groups = (((0.02, 1.0, 5), (0.05, 1.0, 5), (0.1, 1.0, 5), (0.3, 1.0, 3)),)
WEIGHTED: Groups = (((0.1, 1.0, 10), (0.1, 2.0, 10)), ((0.1, 1.5, 20),))
THREE: Groups = (
    ((0.3, 1.0, 10), (0.05, 0.5, 8)),
    ((0.1, 2.0, 18),),
    ((1.0, 0.3, 4), (0.0, 1.0, 4), (0.2, 1.0, 10)),
)
SETTINGS = {"growing": GROWING, "weighted": WEIGHTED, "three": THREE}
PAIRS = [(name, noise) for name in SETTINGS for noise in (None, 1.5, 4.0)]


def epsilon_elsewhere(noise: float, trajectory: trajectories.Trajectory) -> float:
    """Epsilon of one group by the privacy loss distributions of dp_accounting, composed round by round."""
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    for prob, weight, rounds in trajectory:
        if prob > 0.0 and weight > 0.0:
            accountant.compose(dp.PoissonSampledDpEvent(prob, dp.GaussianDpEvent(noise / weight)), rounds)
    return float(accountant.get_epsilon(DELTA))


def described(name: str, noise: float | None) -> acc.PoissonGroups:
    """A setting with some noise, or with the least that meets epsilon 3."""
    run = acc.PoissonGroups(noise or 1.0, SETTINGS[name])
    return acc.calibrate(run, epsilon=3.0, delta=DELTA) if noise is None else run


@pytest.mark.parametrize(("name", "noise"), PAIRS)
def test_epsilon_of_every_group_is_that_of_dp_accounting_and_never_below_it(name: str, noise: float | None) -> None:
    run = described(name, noise)
    theirs = [epsilon_elsewhere(run.noise_multiplier, trajectory) for trajectory in run.groups]
    found = acc.epsilons_by_group(run, DELTA)
    assert found == pytest.approx(theirs, rel=1e-3)
    assert all(mine >= other for mine, other in zip(found, theirs, strict=True))
    assert acc.epsilon(run, DELTA) == max(found)


@pytest.mark.parametrize("name", SETTINGS)
def test_epsilons_of_other_mechanisms_lie_far_from_those_of_dp_accounting(name: str) -> None:
    """The first group alone, no weights and mean probabilities would each be noticed by the test above."""
    run = acc.PoissonGroups(1.5, SETTINGS[name])
    theirs = [epsilon_elsewhere(1.5, trajectory) for trajectory in run.groups]
    wrong = {
        "unweighted": [tuple((q, 1.0, n) for q, _, n in one) for one in run.groups],
        "averaged": [_averaged(one) for one in run.groups],
        "reversed weights": [tuple((q, 1.0 / w, n) for q, w, n in one) for one in run.groups],
    }
    for what, groups in wrong.items():
        found = acc.epsilons_by_group(acc.PoissonGroups(1.5, tuple(groups)), DELTA)
        is_same_mechanism = (name, what) in (("growing", "unweighted"), ("growing", "reversed weights"))
        assert is_same_mechanism == (found == pytest.approx(theirs, rel=1e-3)), what


def _averaged(trajectory: trajectories.Trajectory) -> trajectories.Trajectory:
    """A trajectory with one probability and one weight, the means over its rounds."""
    rounds = trajectories.num_rounds(trajectory)
    prob = math.fsum(q * n for q, _, n in trajectory) / rounds
    return ((prob, math.fsum(w * n for _, w, n in trajectory) / rounds, rounds),)


def test_calibration_meets_the_target_for_the_costliest_group_and_no_more() -> None:
    for groups in SETTINGS.values():
        run = acc.calibrate(acc.PoissonGroups(1.0, groups), epsilon=3.0, delta=DELTA)
        costliest = max(epsilon_elsewhere(run.noise_multiplier, trajectory) for trajectory in groups)
        assert 2.97 <= costliest <= acc.epsilon(run, DELTA) <= 3.0


def test_calibration_passes_over_noise_that_is_too_little_for_some_group() -> None:
    """The first group alone needs noise at which the second one has losses beyond double precision."""
    groups = (((1.0, 0.02, 1000),), ((1e-4, 400.0, 2), (0.0, 1.0, 998)))
    run = acc.calibrate(acc.PoissonGroups(1.0, groups), epsilon=8.0, delta=DELTA)
    assert 7.9 <= acc.epsilon(run, DELTA) <= 8.0
    alone = acc.calibrate(acc.PoissonGroups(1.0, groups[:1]), epsilon=8.0, delta=DELTA)
    with pytest.raises(acc.AccountingError):
        acc.epsilon(dataclasses.replace(alone, groups=groups), DELTA)


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_calibration_finds_the_costliest_of_many_groups(method: str) -> None:
    """Which of them it is changes with the noise."""
    groups = tuple(((0.01 * i, 3.0 / i, 20), (0.1, 1.0, i), (0.0, 1.0, 30 - i)) for i in range(1, 30, 4))
    run = acc.calibrate(acc.PoissonGroups(1.0, groups), epsilon=2.0, delta=DELTA, method=method)
    assert 1.98 <= max(acc.epsilons_by_group(run, DELTA, method)) <= 2.0


@pytest.mark.parametrize("method", ["pld", "rdp"])
def test_equal_groups_and_rounds_are_poisson_users(method: str) -> None:
    trajectory = ((0.1, 1.0, 30), (0.1, 1.0, 20))
    run, plain = acc.PoissonGroups(1.3, (trajectory,) * 5), acc.PoissonUsers(1.3, 0.1, 50)
    assert acc.epsilon(run, DELTA, method) == acc.epsilon(plain, DELTA, method)
    assert acc.delta(run, 2.0, method) == acc.delta(plain, 2.0, method)


def test_a_weight_is_less_noise() -> None:
    run = acc.PoissonGroups(1.3, (((0.1, 2.0, 50),),))
    assert acc.epsilon(run, DELTA) == acc.epsilon(acc.PoissonUsers(0.65, 0.1, 50), DELTA)


def test_nothing_is_spent_on_users_who_are_never_drawn_or_weigh_nothing() -> None:
    run = acc.PoissonGroups(1.0, (((0.0, 1.0, 3),), ((0.5, 0.0, 1), (0.0, 0.0, 2))))
    assert [run.group(0), run.group(1), run.kinds()] == [None, None, []]
    assert acc.epsilons_by_group(run, DELTA) == (0.0, 0.0)
    assert [acc.epsilon(run, DELTA, method) for method in acc.methods(run)] == [0.0, 0.0]
    assert 0.0 < acc.delta(run, 1.0) < 1e-270
    assert run.event() == dp.NoOpDpEvent()
    with pytest.raises(acc.AccountingError, match="out of reach"):
        acc.calibrate(run, epsilon=1.0, delta=DELTA)


def test_delta_is_the_largest_of_all_groups() -> None:
    run = acc.PoissonGroups(1.5, THREE)
    each = [acc.delta(kind, 3.0) for number in range(3) if (kind := run.group(number)) is not None]
    assert acc.delta(run, 3.0) == max(each)
    assert acc.delta(run, acc.epsilon(run, DELTA)) == pytest.approx(DELTA, rel=0.01)


def test_rdp_is_that_of_dp_accounting_for_the_costliest_group() -> None:
    run = acc.PoissonGroups(1.5, THREE)
    theirs = dp.rdp.RdpAccountant()
    theirs.compose(run.event())
    assert acc.epsilon(run, DELTA, "rdp") == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-6)
    assert acc.epsilon(run, DELTA) < acc.epsilon(run, DELTA, "rdp")


def test_event_is_that_of_the_costliest_group_alone() -> None:
    run = acc.PoissonGroups(1.5, THREE)
    assert run.event() == run.group(1).event()  # type: ignore[union-attr]
    accountant = pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(run.event())
    assert accountant.get_epsilon(DELTA) == pytest.approx(acc.epsilon(run, DELTA), rel=1e-3)


def test_a_search_over_runs_of_groups_costs_what_the_costliest_group_of_each_order_costs() -> None:
    search = acc.HyperparameterSearch(acc.PoissonGroups(2.0, THREE), 10.0)
    each = [
        rdp.divergences(acc.HyperparameterSearch(acc.PoissonGroups(2.0, (trajectory,)), 10.0)) for trajectory in THREE
    ]
    assert rdp.divergences(search) == pytest.approx(np.max(each, axis=0))
    one = acc.HyperparameterSearch(acc.PoissonGroups(2.0, (((0.1, 1.0, 9),),)), 10.0)
    plain = acc.HyperparameterSearch(acc.PoissonUsers(2.0, 0.1, 9), 10.0)
    assert acc.epsilon(one, DELTA) == pytest.approx(acc.epsilon(plain, DELTA), rel=1e-9)


def test_epsilon_per_round_is_that_of_the_first_rounds() -> None:
    run = acc.PoissonGroups(1.5, THREE)
    spent = acc.epsilon_per_round(run, DELTA, [1, 4, 9, 18])
    assert spent == [acc.epsilon(run.first(number), DELTA) for number in (1, 4, 9, 18)]
    with pytest.raises(ValueError, match=r"num_releases must be in \[1, 18\], got 19"):
        acc.epsilon_per_round(run, DELTA, [19])


def test_rounds_can_be_taken_apart_and_counted() -> None:
    run = acc.PoissonGroups(1.0, (((0.1, 1.0, 2), (0.2, 1.0, 3)), ((0.3, 1.0, 4), (0.4, 2.0, 1))))
    assert run.num_releases == 5
    assert run.first(3).groups == (((0.1, 1.0, 2), (0.2, 1.0, 1)), ((0.3, 1.0, 3),))
    assert run.between(3, 5).groups == (((0.2, 1.0, 3),), ((0.3, 1.0, 2), (0.4, 2.0, 1)))
    singles = {single.groups: count for single, count in run.singles()}
    assert singles == {
        (((0.1, 1.0, 1),), ((0.3, 1.0, 1),)): 2,
        (((0.2, 1.0, 1),), ((0.3, 1.0, 1),)): 2,
        (((0.2, 1.0, 1),), ((0.4, 2.0, 1),)): 1,
    }
    with pytest.raises(ValueError, match="must be in"):
        run.first(6)


def test_only_runs_of_groups_have_epsilons_by_group() -> None:
    with pytest.raises(ValueError, match="description must be of PoissonGroups"):
        acc.epsilons_by_group(acc.PoissonUsers(1.0, 0.1, 1), DELTA)  # type: ignore[arg-type]
    run = acc.PoissonGroups(1.0, GROWING)
    assert acc.epsilons_by_group(acc.AdaptiveClipping(run, 5.0), DELTA) == acc.epsilons_by_group(run, DELTA)


def test_adaptive_clipping_takes_groups_without_weights_only() -> None:
    split = acc.AdaptiveClipping(acc.PoissonGroups(1.0, GROWING), 5.0)
    assert acc.epsilon(split, DELTA) == acc.epsilon(split.run, DELTA)
    assert split.first(2).run == split.run.first(2)
    with pytest.raises(ValueError, match="run must have weights of 1 only"):
        acc.AdaptiveClipping(acc.PoissonGroups(1.0, WEIGHTED), 5.0)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((((0.1, 1.0, 2),), ((0.1, 1.0, 3),)), "must all have the same number of rounds"),
        ((((1.5, 1.0, 2),),), r"sampling_prob of groups\[0\] must be in \[0, 1\], got 1.5"),
        ((((0.1, 1.0, 2),), ((0.1, -1.0, 2),)), r"weight of groups\[1\] must be in \[0, inf\), got -1.0"),
        ((((0.1, math.inf, 2),),), "weight of"),
        ((((0.1, 1.0, 0),),), r"rounds of groups\[0\] must be in"),
        ((((1, 1, 1), (True, 1, 1)),), "sampling_prob of"),
        ((((1, 1, 1), (1, 1, 1.0)),), "rounds of"),
        ((((0.1, 1.0),),), "must be a tuple of"),
        ([((0.1, 1.0, 1),)], "must be a tuple of at least one trajectory"),
        (((),), "must be a tuple of"),
        ((((0.1, 1.0, 10**9), (0.2, 1.0, 1)),), "rounds of groups must be in"),
    ],
)
def test_trajectories_out_of_range_are_refused_by_name(groups: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        acc.PoissonGroups(1.0, groups)


def test_whole_numbers_stay_whole_in_json() -> None:
    run = acc.PoissonGroups(1.0, (((1, 2, 3),), ((0.5, 0.25, 3),)))
    value = to_json(run)
    assert (value["type"], value["groups"]) == ("PoissonGroups", [[[1, 2, 3]], [[0.5, 0.25, 3]]])
    assert from_json(value) == run


def test_a_weight_that_leaves_no_noise_is_refused_and_a_tiny_one_is_not() -> None:
    with pytest.raises(acc.AccountingError, match="leaves a noise multiplier of 0, and less than"):
        acc.epsilon(acc.PoissonGroups(1e-300, (((0.1, 1e300, 1),),)), DELTA)
    assert acc.epsilon(acc.PoissonGroups(1e7, (((0.1, 1e-300, 10),),)), DELTA) == 0.0


def test_a_group_with_too_little_noise_for_double_precision_is_not_passed_over() -> None:
    groups = (((0.2, 1.0, 3),), ((0.1, 1e170, 3),), ((0.3, 0.5, 3),))
    for method in ("pld", "rdp"):
        for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
            with pytest.raises(acc.AccountingError, match="is not accounted for"):
                acc.epsilon(acc.PoissonGroups(1.0, tuple(groups[place] for place in order)), DELTA, method)


def test_dominated_groups_are_left_out_and_others_are_not() -> None:
    groups = (((0.1, 1.0, 2), (0.3, 1.0, 2)), ((0.1, 1.0, 4),), ((0.1, 0.5, 1), (0.1, 1.0, 3)), ((0.05, 2.0, 4),))
    assert set(trajectories.undominated(groups)) == {groups[0], groups[3]}
    assert set(trajectories.undominated((groups[1], groups[1]))) == {groups[1]}
    assert trajectories.highest(groups) == ((0.1, 2.0, 1), (0.1, 2.0, 1), (0.3, 2.0, 2))


def test_groups_in_another_order_of_rounds_are_evaluated_once() -> None:
    run = acc.PoissonGroups(1.0, (((0.1, 1.0, 2), (0.3, 1.0, 2)), ((0.3, 1.0, 2), (0.1, 1.0, 2))))
    assert len(run.kinds()) == 1


def test_groups_whose_bound_is_below_what_was_found_are_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    run = acc.PoissonGroups(1.0, tuple(((0.1, 1.0 + i, 1), (0.1, 40.0 - 0.5 * i, 9)) for i in range(30)))
    assert len(run.kinds()) == 30
    exact, asked = accountants.curve, list[acc.Description]()
    monkeypatch.setattr(accountants, "curve", lambda kind, method: asked.append(kind) or exact(kind, method))  # type: ignore[func-returns-value]
    run = run.with_noise_multiplier(100.0)
    found = exact(run, "pld").epsilon(math.log(DELTA))
    assert 0 < len(asked) < 10
    monkeypatch.undo()
    assert found == max(acc.epsilons_by_group(run, DELTA))


STEPS = st.tuples(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0, 2.0]))
ROUNDS = st.lists(STEPS, min_size=4, max_size=4)
SOME_GROUPS = st.lists(ROUNDS, min_size=1, max_size=4).map(
    lambda groups: tuple(tuple((q, w, 3) for q, w in group) for group in groups)
)
few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(SOME_GROUPS, ROUNDS, st.sampled_from(["pld", "rdp"]))
def test_another_group_never_lowers_epsilon(groups: Groups, more: list[tuple[float, float]], method: str) -> None:
    run = acc.PoissonGroups(2.0, groups)
    longer = dataclasses.replace(run, groups=(*groups, tuple((q, w, 3) for q, w in more)))
    assert acc.epsilon(longer, DELTA, method) >= acc.epsilon(run, DELTA, method) * (1.0 - SLACK)


@few
@given(SOME_GROUPS, st.data())
def test_a_larger_probability_or_weight_never_lowers_epsilon(groups: Groups, data: st.DataObject) -> None:
    at, step = data.draw(st.integers(0, len(groups) - 1)), data.draw(st.integers(0, 3))
    prob, weight, rounds = groups[at][step]
    changed = data.draw(st.sampled_from([(min(1.0, prob + 0.1), weight), (prob, weight + 0.5)]))
    trajectory = (*groups[at][:step], (*changed, rounds), *groups[at][step + 1 :])
    worse = acc.PoissonGroups(2.0, (*groups[:at], trajectory, *groups[at + 1 :]))
    spent = acc.epsilon(acc.PoissonGroups(2.0, groups), DELTA)
    assert acc.epsilon(worse, DELTA) >= spent * (1.0 - SLACK)


@few
@given(SOME_GROUPS)
def test_the_whole_is_the_largest_of_its_groups_and_below_their_rdp_bounds(groups: Groups) -> None:
    run = acc.PoissonGroups(2.0, groups)
    each = acc.epsilons_by_group(run, DELTA)
    assert acc.epsilon(run, DELTA) == pytest.approx(max(each), rel=SLACK)
    for spent, trajectory in zip(each, groups, strict=True):
        counts = trajectories.counted(trajectory)
        bound = epsilon_bound(rdp_of([(2.0 / w, q, n) for (q, w), n in counts.items()]), math.log(DELTA))
        assert spent <= (bound if counts else 0.0) * (1.0 + SLACK)


@few
@given(SOME_GROUPS)
def test_taking_a_run_apart_and_counting_keeps_every_round(groups: Groups) -> None:
    run = acc.PoissonGroups(2.0, groups)
    for number, trajectory in enumerate(groups):
        counts: trajectories.Counts = {}
        for single, times in run.singles():
            for key, rounds in trajectories.counted(single.groups[number]).items():
                counts[key] = counts.get(key, 0) + times * rounds
        assert counts == trajectories.counted(trajectory)


def test_parts_of_groups_are_composed_over_all_combinations() -> None:
    one = acc.PoissonGroups(2.0, (((0.2, 1.0, 9),), ((0.1, 1.5, 9),), ((0.1, 1.0, 9),)))
    other = acc.AdaptiveClipping(acc.PoissonGroups(1.0, (((0.05, 1.0, 4),),)), 5.0)
    kinds = acc.Composed((one, other)).kinds()
    assert [kind.parts for kind in kinds] == [
        (acc.PoissonUsers(2.0, 0.2, 9), acc.PoissonUsers(1.0, 0.05, 4)),
        (acc.PoissonUsers(2.0 / 1.5, 0.1, 9), acc.PoissonUsers(1.0, 0.05, 4)),
    ]
    for method in ("pld", "rdp"):
        spent = acc.epsilon(acc.Composed((one, other)), DELTA, method)
        assert spent == max(acc.epsilon(kind, DELTA, method) for kind in kinds)
    assert len(acc.Composed((one,) * 3).kinds()) == 4


def test_the_same_run_of_groups_again_is_twice_its_costliest_group() -> None:
    run = acc.PoissonGroups(2.0, THREE)
    twice = acc.PoissonGroups(2.0, tuple(group + group for group in THREE))
    assert acc.epsilon(acc.Composed((run, run)), DELTA) == pytest.approx(acc.epsilon(twice, DELTA), rel=1e-9)


def test_more_than_64_combinations_are_bounded_by_what_dominates_them() -> None:
    run = acc.PoissonGroups(17.0, tuple(((0.1, 1.0 + i, 1), (0.1, 17.0 - i, 1)) for i in range(17)))
    assert len(acc.Composed((run,)).kinds()) > 1
    assert acc.epsilon(acc.Composed((run,)), DELTA) == acc.epsilon(run, DELTA)
    assert acc.Composed((run, run)).kinds() == [acc.Composed((acc.PoissonUsers(1.0, 0.1, 2),) * 2)]


def test_a_part_about_which_nothing_is_released_adds_nothing() -> None:
    nothing, users = acc.PoissonGroups(1.0, (((0.0, 1.0, 3),),)), acc.PoissonUsers(1.0, 0.1, 5)
    assert acc.epsilon(acc.Composed((nothing, users)), DELTA) == acc.epsilon(users, DELTA)
    assert acc.epsilon(acc.Composed((nothing,)), DELTA) == 0.0


@pytest.mark.parametrize("is_adapted", [False, True])
def test_a_round_of_a_run_releases_what_its_place_says(is_adapted: bool) -> None:
    run = acc.PoissonGroups(1.5, GROWING)
    release = acc.AdaptiveClipping(run, 5.0) if is_adapted else run
    for round, prob in ((1, 0.02), (6, 0.05), (18, 0.3)):
        found = one_release(Guarantee(release, None, DELTA, "user"), round)
        inner = found.run if isinstance(found, acc.AdaptiveClipping) else found
        assert inner == acc.PoissonGroups(1.5, (((prob, 1.0, 1),),))
        assert type(found) is type(release)
