"""Selectors that draw by a law of their own keep to what they declare; each test rejects a wrong law as well."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, chisquare

from fedsim_userdp.errors import AccountingError, PluginError
from fedsim_userdp.participation import Cohorts, declared_release, draw_cohort
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import ClientSelector, Scheduling, foreign_name
from fedsim_userdp.selectors import FixedStrataSelector, SeparatedSelector, TruncatedPoissonSelector

REGIONS = np.array(["n"] * 4 + ["s"] * 8 + ["w"] * 12)
USERS = Population(np.arange(24, dtype=np.uint64) * np.uint64(2654435761), {"region": REGIONS})
ROUNDS = 3000
RARE = 1e-6  # probability with which a test stops a selector that keeps to its law


def drawn(selector: ClientSelector, users: Population = USERS, rounds: int = ROUNDS) -> list[np.ndarray]:
    return [draw_cohort(selector, users, round, RunKey.seeded(3)) for round in range(1, rounds + 1)]


def p_of_sizes(sizes: Sequence[int], probs: np.ndarray) -> float:
    """How well sizes fit the probabilities of 0, 1, 2, ... users, rare sizes put together."""
    seen = np.bincount(sizes, minlength=len(probs)).astype(float)
    if len(seen) > len(probs):
        return 0.0
    expected = probs * len(sizes)
    rare = expected < 5
    if seen[rare].sum() > 0 and expected[rare].sum() < 1e-9:
        return 0.0
    seen = np.append(seen[~rare], seen[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 1e-9
    return float(chisquare(seen[kept], expected[kept] * seen[kept].sum() / expected[kept].sum()).pvalue)


def truncated(prob: float, most: int, num_users: int = 24) -> np.ndarray:
    """Probabilities of the sizes of cohorts that are cut off."""
    sizes = np.minimum(np.arange(num_users + 1), most)
    return np.bincount(sizes, binom.pmf(np.arange(num_users + 1), num_users, prob))


def p_of_users(cohorts: Sequence[np.ndarray], rates: np.ndarray) -> float:
    """Least probability of a user's number of rounds, times the number of users and both sides."""
    counts = np.bincount(np.concatenate(cohorts), minlength=24)
    below, above = binom.cdf(counts, len(cohorts), rates), binom.sf(counts - 1, len(cohorts), rates)
    return float(min(np.minimum(below, above).min() * 48, 1.0))


def test_truncated_sampling_has_the_law_that_it_declares() -> None:
    cohorts = drawn(TruncatedPoissonSelector(0.3, 8))
    sizes = [len(cohort) for cohort in cohorts]
    assert p_of_sizes(sizes, truncated(0.3, 8)) > RARE
    for wrong in (truncated(0.3, 9), truncated(0.35, 8), truncated(0.3, 24)):
        assert p_of_sizes(sizes, wrong) < RARE
    mean = acc.TruncatedPoisson(1.0, 0.3, 24, 8, 1).expected_cohort_size
    assert p_of_users(cohorts, np.full(24, mean / 24)) > RARE
    assert p_of_users(cohorts, np.full(24, 0.4)) < RARE


def test_who_takes_part_in_a_full_cohort_does_not_depend_on_the_place() -> None:
    full = [cohort for cohort in drawn(TruncatedPoissonSelector(0.6, 4)) if len(cohort) == 4]
    assert p_of_users(full, np.full(24, 4 / 24)) > RARE
    first = [np.sort(cohort)[:4] for cohort in drawn(TruncatedPoissonSelector(0.6, 24))]
    assert p_of_users(first, np.full(24, 4 / 24)) < RARE


def test_one_user_more_joins_takes_one_place_or_changes_nothing() -> None:
    selector, fewer = TruncatedPoissonSelector(0.4, 8), Population(USERS.id_hashes[1:])
    changes = set()
    for more, less in zip(drawn(selector, rounds=300), drawn(selector, fewer, rounds=300), strict=True):
        before, after = {int(user) + 1 for user in less}, {int(user) for user in more}
        assert after - before <= {0}
        changes.add((len(after - before), len(before - after)))
    assert changes == {(0, 0), (1, 0), (1, 1)}


def test_fixed_strata_have_so_many_of_each_group_uniformly() -> None:
    cohorts = drawn(FixedStrataSelector("region", 3))
    for cohort in cohorts:
        assert [int((REGIONS[cohort] == region).sum()) for region in "nsw"] == [3, 3, 3]
    rates = np.array([3 / 4] * 4 + [3 / 8] * 8 + [3 / 12] * 12)
    assert p_of_users(cohorts, rates) > RARE
    assert p_of_users(cohorts, np.full(24, 9 / 24)) < RARE
    together = [np.array([round]) for round, cohort in enumerate(cohorts) if {4, 12} <= set(cohort.tolist())]
    chance = 3 / 8 * 3 / 12
    assert RARE < binom.cdf(len(together), ROUNDS, chance) < 1 - RARE
    assert binom.sf(len(together), ROUNDS, chance / 2) < RARE


def test_fixed_strata_take_all_of_a_small_group() -> None:
    release = declared_release(FixedStrataSelector("region", 6), 2.0, USERS, 5)
    assert release == acc.FixedSizeStrata(2.0, ((4, 4), (8, 6), (12, 6)), 5)
    assert len(drawn(FixedStrataSelector("region", 6), rounds=1)[0]) == 16


def test_separated_users_come_again_no_earlier_and_as_often_as_each_other() -> None:
    cohorts = drawn(SeparatedSelector(4, 5))
    rounds = [np.flatnonzero([user in cohort for cohort in cohorts]) for user in range(24)]
    assert min(int(np.diff(each).min()) for each in rounds) == 4
    assert p_of_users(cohorts[::4], np.where([each[0] % 4 == 0 for each in rounds], 5 / 6, 0)) > RARE
    assert p_of_users(cohorts, np.full(24, 5 / 6)) < RARE
    others = [draw_cohort(SeparatedSelector(4, 6), USERS, 1, RunKey.seeded(seed)) for seed in range(ROUNDS)]
    assert p_of_users(others, np.full(24, 1 / 4)) > RARE


def test_separation_caps_the_rounds_of_a_user() -> None:
    declared = declared_release(SeparatedSelector(4, 6), 2.0, USERS, 9)
    assert declared == acc.Unamplified(2.0, 3)
    assert acc.Unamplified.separated(2.0, 8, 4) == acc.Unamplified(2.0, 2)
    cohorts = Cohorts(SeparatedSelector(4, 6), USERS, RunKey.seeded(0), declared)
    for round in range(1, 10):
        cohorts.draw(round)
    assert cohorts.participation(9).rounds.max() == 3


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_user_who_is_chosen_again_too_early_stops_the_run(is_resumed: bool) -> None:
    class Early(SeparatedSelector):
        def cohort(self, round: int, *others: Any) -> np.ndarray:
            return super().cohort(1 if round == 4 else round, *others)

    declared = acc.Unamplified(2.0, 9)
    cohorts = Cohorts(Early(4, 6), USERS, RunKey.seeded(0), declared)
    for round in () if is_resumed else (1, 2, 3):
        cohorts.draw(round)
    with pytest.raises(ValueError, match="Early has min_separation=4 and chose a user of round 1 again in round 4"):
        cohorts.draw(4)
    Cohorts(SeparatedSelector(4, 6), USERS, RunKey.seeded(0), declared).draw(5)


@pytest.mark.parametrize("separation", [0, 2.5, True, "4"])
def test_a_separation_that_is_none_is_refused(separation: Any) -> None:
    selector = SeparatedSelector(4, 6)
    object.__setattr__(selector, "min_separation", separation)
    with pytest.raises(PluginError, match="min_separation="):
        Cohorts(selector, USERS, RunKey.seeded(0), acc.Unamplified(2.0, 9))


@pytest.mark.parametrize("selector", [TruncatedPoissonSelector(0.3, 8), FixedStrataSelector("region", 3)], ids=str)
def test_each_is_this_packages_and_keeps_to_what_it_declares(selector: ClientSelector) -> None:
    assert isinstance(selector, Scheduling)
    assert foreign_name(selector) is None
    declared = declared_release(selector, 1.0, USERS, 20)
    cohorts = Cohorts(selector, USERS, RunKey.seeded(0), declared)
    for round in range(1, 21):
        cohorts.draw(round)
    assert 0 < cohorts.denominator(1) <= 9


@pytest.mark.parametrize("kind", [TruncatedPoissonSelector, FixedStrataSelector], ids=str)
def test_a_class_of_ones_own_may_not_declare_what_nothing_is_held_against(kind: Any) -> None:
    own = type("Own", (kind,), {})
    selector = own(0.3, 8) if kind is TruncatedPoissonSelector else own("region", 3)
    with pytest.raises(AccountingError, match="which only selectors of this package may"):
        declared_release(selector, 1.0, USERS, 5)


@pytest.mark.parametrize(
    ("selector", "declared", "said"),
    [
        (TruncatedPoissonSelector(1.0, 8), acc.TruncatedPoisson(1.0, 1.0, 24, 7, 5), "at most 7 users and chose 8"),
        (FixedStrataSelector("region", 3), acc.FixedSizeStrata(1.0, ((24, 8),), 5), "cohorts of 8 users and chose 9"),
    ],
)
def test_a_cohort_of_another_size_than_declared_stops_the_run(selector: Any, declared: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cohorts(selector, USERS, RunKey.seeded(0), declared).draw(1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TruncatedPoissonSelector(0, 5), "sampling_prob=0 must lie"),
        (lambda: TruncatedPoissonSelector(0.5, 0), "most_users=0 must be"),
        (lambda: FixedStrataSelector("region", 0), "users_per_group=0 must be"),
        (lambda: SeparatedSelector(0, 5), "min_separation=0 must be"),
        (lambda: SeparatedSelector(4, 0), "cohort_size=0 must be"),
        (lambda: SeparatedSelector(4, 7).expected_cohort_size(USERS), "cohort_size=7 must be at most 6: 24 users"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
