"""The selectors that come with this package state what they say they do."""

import copy
from typing import Any

import numpy as np
import pytest

from fedsim_userdp.participation import Cohorts, declared_release
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import Stating, foreign_name
from fedsim_userdp.selectors import (
    AvailabilitySelector,
    GrowingSelector,
    ImportanceSelector,
    LongestAgoSelector,
    RoundRobinSelector,
    StratifiedSelector,
)

FACTS = {
    "region": np.array(["n"] * 6 + ["s"] * 14 + ["w"] * 20),
    "available_from": np.array([22.0] * 20 + [8.0] * 20),
    "available_to": np.array([6.0] * 20 + [12.0] * 20),
    "records": np.array([1.0] * 20 + [9.0] * 20),
}
USERS = Population(np.arange(40, dtype=np.uint64) * np.uint64(2654435761), FACTS)
ALL: list[Any] = [
    StratifiedSelector("region", 3), GrowingSelector(0.1, 0.4, 5), AvailabilitySelector(0.5),
    ImportanceSelector("records", 8), RoundRobinSelector(4, 0.5),
]  # fmt: skip


@pytest.mark.parametrize("selector", ALL, ids=lambda one: type(one).__name__)
def test_each_is_this_packages_and_can_be_accounted_for(selector: Stating) -> None:
    assert foreign_name(selector) is None
    release = declared_release(selector, 1.0, USERS, 5)
    assert 0 < acc.epsilon(release, 1e-3) <= acc.epsilon(acc.PoissonUsers(0.5, 1.0, 5), 1e-3)
    assert Cohorts(selector, USERS, RunKey.seeded(0), release).denominator(1) > 0


def test_stratified_takes_as_many_of_each_group_in_expectation() -> None:
    probs = StratifiedSelector("region", 3).probabilities(1, USERS, Past())
    assert [probs[:6].sum(), probs[6:20].sum(), probs[20:].sum()] == pytest.approx([3, 3, 3])
    assert StratifiedSelector("region", 100).probabilities(1, USERS, Past()).max() == 1.0


def test_growing_goes_from_the_first_to_the_last_probability() -> None:
    selector = GrowingSelector(0.1, 0.4, 4)
    stated = [selector.probabilities(round, USERS, Past()) for round in (1, 2, 4, 9)]
    assert stated == pytest.approx([0.1, 0.2, 0.4, 0.4])


def test_availability_takes_users_at_their_hours_only_past_midnight_too() -> None:
    selector = AvailabilitySelector(0.5)
    at = {hour: selector.probabilities(hour + 1, USERS, Past()) for hour in range(24)}
    assert [hour for hour in range(24) if at[hour][0]] == [0, 1, 2, 3, 4, 5, 22, 23]
    assert [hour for hour in range(24) if at[hour][-1]] == [8, 9, 10, 11]
    mean = np.mean([one.sum() for one in at.values()])
    assert selector.denominator(1, USERS) == pytest.approx(mean)


def test_importance_is_weighted_back_to_plain_sampling() -> None:
    selector = ImportanceSelector("records", 8)
    probs, weights = selector.probabilities(1, USERS, Past()), selector.weights(1, USERS)
    assert probs.sum() == pytest.approx(8)
    assert probs[-1] > 3 * probs[0]
    np.testing.assert_allclose(probs * weights, 8 / 40)


def test_round_robin_takes_nobody_again_before_the_other_blocks() -> None:
    selector = RoundRobinSelector(4)
    turns = np.stack([selector.probabilities(round, USERS, Past()) for round in range(1, 9)])
    assert (turns.sum(0) == 2).all()
    assert (turns[:4] == turns[4:]).all()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: StratifiedSelector("region", 0), "users_per_group=0 must be above 0"),
        (lambda: GrowingSelector(0, 0.5, 3), "first_prob=0 must lie"),
        (lambda: GrowingSelector(0.1, 1.5, 3), "last_prob=1.5 must lie"),
        (lambda: GrowingSelector(0.1, 0.5, 1), "rounds=1 must be at least 2"),
        (lambda: AvailabilitySelector(0), "sampling_prob=0 must lie"),
        (lambda: AvailabilitySelector(0.5, hours_per_day=0), "hours_per_day=0"),
        (lambda: ImportanceSelector("records", 0), "cohort_size=0"),
        (lambda: ImportanceSelector("records", 5, least_share=0), "least_share=0"),
        (lambda: RoundRobinSelector(0), "num_blocks=0"),
        (lambda: RoundRobinSelector(2, 0), "sampling_prob=0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_a_column_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="no column 'country' of public facts; they have region, available_from"):
        StratifiedSelector("country", 3).probabilities(1, USERS, Past())
    with pytest.raises(ValueError, match=r"no column 'region' .* name its file by selection\.public"):
        StratifiedSelector("region", 3).probabilities(1, Population.numbered(3), Past())


@pytest.mark.parametrize("selector", [AvailabilitySelector(0.5, begin="region"), ImportanceSelector("region", 8)])
def test_a_column_of_text_is_no_number(selector: Stating) -> None:
    with pytest.raises(ValueError, match="column 'region' of public facts must hold a number for every user"):
        selector.probabilities(1, USERS, Past())


def test_numbers_below_zero_are_no_importance() -> None:
    users = Population(USERS.id_hashes, {"records": np.array([-1.0] * 40)})
    with pytest.raises(ValueError, match=r"column 'records' .* at least 0"):
        ImportanceSelector("records", 8).probabilities(1, users, Past())


def cohorts(selector: LongestAgoSelector, population: Population, rounds: int) -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [selector.cohort(round, population, Past(), generator, generator).tolist() for round in range(1, rounds + 1)]


def test_longest_ago_takes_nobody_again_before_all_others() -> None:
    found = cohorts(LongestAgoSelector(4), Population.numbered(10), 5)
    assert found[0] == [0, 1, 2, 3]
    assert sorted(user for each in found for user in each) == sorted([*range(10)] * 2)
    release = LongestAgoSelector(4).release(1.0, Population.numbered(10), 5)
    assert release == acc.Unamplified(1.0, 2)


def test_longest_ago_waits_for_nobody_who_is_not_there_and_its_cap_is_what_its_schedule_gives() -> None:
    hours = {"from": np.array([0.0, 0, 0, 2, 2]), "to": np.array([2.0, 2, 2, 4, 4])}
    population = Population(np.arange(5, dtype=np.uint64), hours)
    selector = LongestAgoSelector(2, "from", "to", hours_per_day=4)
    found = cohorts(selector, population, 8)
    assert found[:4] == [[0, 1], [0, 2], [3, 4], [3, 4]]
    counts = np.bincount(np.concatenate(found), minlength=5)
    assert selector.release(1.0, population, 8) == acc.Unamplified(1.0, int(counts.max()))
    assert cohorts(selector, Population(np.arange(1, 6, dtype=np.uint64), hours), 8) == found  # of another population
    later = selector.cohort(7, population, Past(), np.random.default_rng(1), np.random.default_rng(2))
    assert later.tolist() == found[6]  # whatever was asked before


def test_longest_ago_follows_the_hours_that_it_is_asked_for_whatever_it_was_asked_before() -> None:
    ids, early, late = np.arange(5, dtype=np.uint64), np.array([0.0, 0, 0, 2, 2]), np.array([2.0, 2, 2, 0, 0])
    selector = LongestAgoSelector(2, "from", "to", hours_per_day=4)
    for begin in (early, late):
        users = Population(ids, {"from": begin, "to": (begin + 2) % 4})
        assert cohorts(selector, users, 8) == cohorts(LongestAgoSelector(2, "from", "to", 4), users, 8)


def test_longest_ago_goes_on_as_a_copy() -> None:
    selector, users = LongestAgoSelector(4), Population.numbered(10)
    first = cohorts(selector, users, 3)
    copied = copy.deepcopy(selector)
    assert cohorts(copied, users, 3) == first
    assert cohorts(copied, users, 6) == cohorts(selector, users, 6) == cohorts(LongestAgoSelector(4), users, 6)


@pytest.mark.parametrize(
    "given", [{"cohort_size": 0}, {"cohort_size": 1, "hours_per_day": 0}, {"cohort_size": 1, "begin": "from"}]
)
def test_longest_ago_refuses_settings_out_of_range(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        LongestAgoSelector(**given)
    with pytest.raises(ValueError, match="at most the 3 users"):
        LongestAgoSelector(4).expected_cohort_size(Population.numbered(3))
