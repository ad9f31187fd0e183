"""What a selector states is evaluated before the first round, accounted for by group, and kept to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim_userdp.errors import PluginError
from fedsim_userdp.participation import Cohorts, declared_release, draw_cohort, expected_share
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.sampling_plan import MOST_GROUPS, SamplingPlan
from fedsim_userdp.selection import foreign_name
from fedsim_userdp.selectors import StratifiedSelector

NUM_USERS = 12
USERS = Population(np.arange(NUM_USERS, dtype=np.uint64), {"region": np.array(["a"] * 3 + ["b"] * 9)})


class Says:
    """States what its functions of round and number of users return."""

    def __init__(self, probs: Callable[[int, int], Any], weights: Callable[[int, int], Any] | None = None) -> None:
        self.probs = probs
        if weights is not None:
            self.weights = lambda round, population: weights(round, len(population))

    def probabilities(self, round: int, population: Population, past: Past) -> Any:
        return self.probs(round, len(population))


class Follows:
    """Halves its probability once a mean update of a norm above 1 was released; never above what it declares."""

    def __init__(self, most: float = 0.6) -> None:
        self.declared = most

    def most(self, round: int, population: Population) -> float:
        return self.declared

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        assert past.rounds == round - 1
        return 0.3 if any(norm > 1 for norm in past.norms.values()) else 0.6


def cohorts_of(selector: Any, rounds: int = 3, key: RunKey | None = None) -> Cohorts:
    declared = declared_release(selector, 1.0, USERS, rounds)
    return Cohorts(selector, USERS, key or RunKey.seeded(0), declared)


def by_region(round: int, num_users: int) -> np.ndarray:
    return np.array([0.9] * 3 + [0.1 * round] * (num_users - 3))


def test_users_with_the_same_course_of_probabilities_are_one_group() -> None:
    release = declared_release(Says(by_region), 1.0, USERS, 3)
    assert release == acc.PoissonGroups(
        1.0,
        (((0.1, 1.0, 1), (0.2, 1.0, 1), (0.30000000000000004, 1.0, 1)), ((0.9, 1.0, 3),)),
        acc.Adjacency.ZERO_OUT_USER,
    )


def test_groups_split_later_keep_what_they_had_in_common_before() -> None:
    plan = SamplingPlan.of(Says(lambda r, n: 0.5 if r == 1 else by_region(r, n)), USERS, 3)
    assert plan.probabilities.tolist() == [[0.5, 0.2, 0.30000000000000004], [0.5, 0.9, 0.9]]
    assert plan.sizes.tolist() == [9, 3]
    assert plan.in_words(USERS) == ("9 users of region b", "3 users of region a")


def test_epsilon_is_that_of_the_costliest_group() -> None:
    release = SamplingPlan.of(Says(by_region), USERS, 3).release(1.0)
    assert isinstance(release, acc.PoissonGroups)
    assert acc.epsilon(release, 1e-3) == pytest.approx(acc.epsilon(acc.PoissonUsers(1.0, 0.9, 3), 1e-3), rel=1e-6)
    each = acc.epsilons_by_group(release, 1e-3)
    assert each[1] == pytest.approx(acc.epsilon(release, 1e-3), rel=1e-6)
    assert each[0] < 0.6 * each[1]


def test_weights_count_as_that_much_less_noise() -> None:
    release = declared_release(Says(lambda r, n: 0.5, lambda r, n: np.full(n, 2.0)), 1.0, USERS, 4)
    assert acc.epsilon(release, 1e-3) == pytest.approx(acc.epsilon(acc.PoissonUsers(0.5, 0.5, 4), 1e-3), rel=1e-6)


def test_a_group_without_a_chance_costs_nothing() -> None:
    release = SamplingPlan.of(Says(lambda r, n: np.array([0.0] * 3 + [0.5] * 9)), USERS, 3).release(1.0)
    assert isinstance(release, acc.PoissonGroups)
    assert acc.epsilons_by_group(release, 1e-3)[0] == 0.0


def test_each_user_is_drawn_with_the_probability_that_was_stated() -> None:
    rounds = 2000
    drawn = np.zeros(NUM_USERS)
    for round in range(1, rounds + 1):
        drawn[draw_cohort(Says(lambda r, n: by_region(2, n)), USERS, round, RunKey.seeded(1))] += 1
    for user, prob in enumerate(by_region(2, NUM_USERS)):
        assert stats.binomtest(int(drawn[user]), rounds, prob).pvalue > 1e-6
        assert stats.binomtest(int(drawn[user]), rounds, 0.7 * prob).pvalue < 1e-3


def test_the_denominator_is_the_expected_sum_of_weights_of_the_round_or_what_is_stated() -> None:
    cohorts = cohorts_of(Says(by_region, lambda r, n: np.full(n, 2.0)))
    assert cohorts.denominator(1) == pytest.approx(2 * (3 * 0.9 + 9 * 0.1))
    assert cohorts.denominator(3) == pytest.approx(2 * (3 * 0.9 + 9 * 0.3))
    assert cohorts.expected_size(3) == pytest.approx(3 * 0.9 + 9 * 0.3)
    selector = Says(by_region)
    selector.denominator = lambda round, population: 5.0  # type: ignore[attr-defined]
    assert cohorts_of(selector).denominator(2) == 5.0


def test_weights_are_given_by_user_and_left_out_where_all_are_one() -> None:
    assert cohorts_of(Says(by_region)).weights([0, 3], 1) is None
    cohorts = cohorts_of(Says(by_region, lambda r, n: np.arange(1.0, n + 1)))
    assert cohorts.weights([0, 3], 1) == [1.0, 4.0]


def test_what_follows_the_past_is_accounted_for_at_its_most_and_held_to_that() -> None:
    selector = Follows()
    release = declared_release(selector, 1.0, USERS, 3)
    assert release == acc.PoissonGroups(1.0, (((0.6, 1.0, 3),),), acc.Adjacency.ZERO_OUT_USER)
    cohorts = cohorts_of(selector)
    assert cohorts.follows_past
    assert cohorts.expected_size(1) == pytest.approx(0.6 * NUM_USERS)
    cohorts.note_released(1, 2.0)
    assert cohorts.expected_size(2) == pytest.approx(0.3 * NUM_USERS)
    with pytest.raises(ValueError, match="Follows states a higher probability in round 1 than it declared"):
        cohorts_of(Follows(most=0.5)).draw(1)


def test_a_plan_that_is_not_the_one_that_noise_was_made_for_is_refused() -> None:
    declared = declared_release(Says(by_region), 1.0, USERS, 3)
    with pytest.raises(ValueError, match="states other probabilities or weights than the noise was made for"):
        Cohorts(Says(lambda r, n: 0.9), USERS, RunKey.seeded(0), declared)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda r, n: np.full(n, 1.5), r"probabilities\(\) in round 1 returned 1.5: it must be in \[0, 1\]"),
        (lambda r, n: -0.1, r"returned -0.1: it must be in \[0, 1\]"),
        (lambda r, n: float("nan"), "returned nan: return a number, or an array"),
        (lambda r, n: np.array([float("nan")] * n), "returned nan: it must be in"),
        (lambda r, n: np.full(n - 1, 0.5), "array of shape .11,.: there are 12 users"),
        (lambda r, n: np.full((n, 1), 0.5), "array of shape"),
        (lambda r, n: None, "returned None: return a number, or an array of one for each user"),
        (lambda r, n: "0.5", "returned a str"),
        (lambda r, n: True, "returned True"),
        (lambda r, n: [0.5] * (n - 1) + ["x"], "returned a list"),
        (lambda r, n: np.full(n, 0.5 + 0j), "an array of complex128"),
        (lambda r, n: np.ma.masked_array(np.full(n, 0.5), mask=[True] * n), "an array with a mask"),
        (lambda r, n: 0.0, "states that nobody takes part in round 1"),
        (lambda r, n: 1 / 0, "probabilities.. raised ZeroDivisionError: division by zero in round 1"),
    ],
)
def test_what_is_no_probability_is_refused_before_anything_trains(answer: Callable[..., Any], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        declared_release(Says(answer), 1.0, USERS, 3)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (lambda r, n: -1.0, r"weights\(\) in round 1 returned -1: it must be finite and at least 0"),
        (lambda r, n: np.full(n, np.inf), "returned inf: it must be finite"),
        (lambda r, n: 0.0, "nobody takes part"),
    ],
)
def test_what_is_no_weight_is_refused_before_anything_trains(weights: Callable[..., Any], said: str) -> None:
    with pytest.raises(PluginError, match=said):
        declared_release(Says(by_region, weights), 1.0, USERS, 3)


def test_a_denominator_of_nothing_is_refused() -> None:
    selector = Says(by_region)
    selector.denominator = lambda round, population: 0.0  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match=r"denominator\(\) in round 1 must be above 0, got 0"):
        declared_release(selector, 1.0, USERS, 3)


def test_more_groups_than_can_be_accounted_for_are_refused() -> None:
    many = Population.numbered(MOST_GROUPS + 1)
    with pytest.raises(PluginError, match=r"more than 4096 different courses .* round them up to fewer values"):
        SamplingPlan.of(Says(lambda r, n: np.linspace(0.1, 0.2, n)), many, 1)


def test_what_may_follow_from_who_else_there_is_is_promised_to_who_keeps_their_place() -> None:
    from fedsim_userdp.selectors import GrowingSelector, StratifiedSelector

    growing = GrowingSelector(0.1, 0.2, 3)
    assert declared_release(growing, 1.0, USERS, 3).adjacency is acc.Adjacency.ADD_OR_REMOVE_USER
    stratified = StratifiedSelector("region", 2)
    assert declared_release(stratified, 1.0, USERS, 3).adjacency is acc.Adjacency.ZERO_OUT_USER
    assert foreign_name(Says(by_region)) is not None
    constant = declared_release(Says(lambda r, n: 0.5), 1.0, USERS, 3)  # which may have been made of n
    assert constant.adjacency is acc.Adjacency.ZERO_OUT_USER


def test_record_level_training_samples_as_often_in_the_mean() -> None:
    assert expected_share(Says(lambda r, n: 0.1 * r), USERS, 3) == pytest.approx(0.2)


def test_participation_counts_rounds_before_a_resume_as_well() -> None:
    key = RunKey.seeded(3)
    whole = cohorts_of(Says(by_region), key=key)
    drawn = [whole.draw(round) for round in (1, 2, 3)]
    resumed = cohorts_of(Says(by_region), key=key)
    resumed.draw(3)
    one, other = whole.participation(3), resumed.participation(3)
    assert one.rounds.tolist() == other.rounds.tolist() == np.bincount(np.concatenate(drawn), minlength=12).tolist()
    assert one.drawn == other.drawn == tuple(map(len, drawn))
    assert one.planned == pytest.approx([3.6, 4.5, 5.4])


@pytest.mark.parametrize(
    ("rounds", "gini", "coverage"), [([2, 2, 2, 2], 0.0, 1.0), ([0, 0, 0, 4], 0.75, 0.25), ([0, 0], 0.0, 0.0)]
)
def test_the_gini_coefficient_says_how_evenly_users_took_part(rounds: list[int], gini: float, coverage: float) -> None:
    found = dataclasses.replace(cohorts_of(Says(by_region)).participation(1), rounds=np.array(rounds))
    assert found.gini == pytest.approx(gini)
    assert found.coverage == coverage


def test_what_selectors_are_given_of_the_population_cannot_be_written_to() -> None:
    """Coins are drawn by these hashes: users whom a selector gave one hash would share one coin."""

    class InPlace:
        def probabilities(self, round: int, population: Population, past: Past) -> float:
            block = population.id_hashes
            block %= np.uint64(1)
            return 0.5

    with pytest.raises(PluginError, match="read-only"):
        declared_release(InPlace(), 1.0, USERS, 2)
    with pytest.raises(ValueError, match="WRITEABLE"):
        USERS.id_hashes.setflags(write=True)
    with pytest.raises(ValueError, match="read-only"):
        USERS.column("region")[0] = "b"


def test_a_plans_digest_tells_who_is_in_which_group() -> None:
    plan = SamplingPlan.of(Says(by_region), USERS, 2)
    swapped = SamplingPlan.of(Says(lambda r, n: by_region(r, n)[::-1]), USERS, 2)
    assert plan.release(1.0) == swapped.release(1.0)
    assert plan.digest(USERS) == SamplingPlan.of(Says(by_region), USERS, 2).digest(USERS) != swapped.digest(USERS)


def test_a_selector_of_this_package_is_asked_once_for_a_population_and_another_ones_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    inner = StratifiedSelector.probabilities

    def counted(self: StratifiedSelector, round: int, population: Population, past: Past) -> np.ndarray:
        asked.append(round)
        return inner(self, round, population, past)

    monkeypatch.setattr(StratifiedSelector, "probabilities", counted)
    users = Population(np.arange(4, dtype=np.uint64), {"region": np.array([1.0, 1.0, 1.0, 2.0])})
    first = declared_release(StratifiedSelector("region", 1), 1.0, users, 3)
    assert declared_release(StratifiedSelector("region", 1), 1.0, users, 3) == first
    assert asked == [1, 2, 3]
    assert declared_release(StratifiedSelector("region", 2), 1.0, users, 3) != first
    others = Population(users.id_hashes, {"region": np.array([1.0, 1.0, 2.0, 2.0])})
    assert declared_release(StratifiedSelector("region", 1), 1.0, others, 3) != first
    own = type("Own", (StratifiedSelector,), {})("region", 1)
    del asked[:]
    declared_release(own, 1.0, users, 3)
    declared_release(own, 1.0, users, 3)
    assert asked == [1, 2, 3, 1, 2, 3]
