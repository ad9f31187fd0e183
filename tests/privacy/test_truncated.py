"""Cohorts that are cut off, and fixed numbers of users of each group: never less than what they cost."""

import math
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.stats import binom, norm

from fedsim_userdp.privacy import accounting as acc

DELTA = 1e-5
RUNS = [
    acc.TruncatedPoisson(1.0, 0.1, 200, 20, 50), acc.TruncatedPoisson(1.0, 0.1, 200, 40, 50),
    acc.TruncatedPoisson(0.8, 0.01, 1000, 10, 300), acc.TruncatedPoisson(2.0, 0.3, 50, 5, 10),
    acc.TruncatedPoisson(1.0, 1.0, 10, 5, 5), acc.TruncatedPoisson(3.0, 0.05, 2000, 100, 200),
]  # fmt: skip


def by_parts(run: acc.TruncatedPoisson, num_users: int) -> float:
    """Epsilon by dp_accounting's distributions of the two branches, for adding or removing one of `num_users`."""
    full = binom.sf(run.most_users - 1, num_users - 1, run.sampling_prob)
    k = np.arange(run.most_users, num_users)
    taken = float((binom.pmf(k, num_users - 1, run.sampling_prob) * run.most_users / (k + 1)).sum())
    usual = pld.from_gaussian_mechanism(run.noise_multiplier, sampling_prob=run.sampling_prob)
    other = pld.from_gaussian_mechanism(run.noise_multiplier / 2, sampling_prob=taken * run.sampling_prob / full)
    whole = other.compute_mixture(usual, full).self_compose(run.rounds)
    return float(whole.get_epsilon_for_delta(DELTA))


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_cohorts_that_are_cut_off_cost_what_dp_accounting_says_of_their_branches(run: acc.TruncatedPoisson) -> None:
    theirs = max(by_parts(run, run.num_users), by_parts(run, run.num_users + 1))
    assert acc.epsilon(run, DELTA) == pytest.approx(theirs, rel=1e-3)
    assert acc.epsilon(run, DELTA) >= theirs * (1 - 1e-6)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_the_event_costs_no_less_elsewhere_and_plain_poisson_sampling_costs_less(run: acc.TruncatedPoisson) -> None:
    """dp_accounting takes the branch in which users take places for replacing one in a sample."""
    theirs = dp.pld.PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE).compose(run.event()).get_epsilon(DELTA)
    plain = acc.epsilon(acc.PoissonUsers(run.noise_multiplier, run.sampling_prob, run.rounds), DELTA)
    removed = by_parts(run, run.num_users)
    assert plain < removed * (1 + 1e-4)
    assert removed <= theirs * (1 + 1e-4)


def test_a_declaration_of_plain_poisson_sampling_would_be_far_off() -> None:
    cut, plain = acc.TruncatedPoisson(1.0, 0.1, 200, 20, 50), acc.PoissonUsers(1.0, 0.1, 50)
    assert acc.epsilon(cut, DELTA) > 3 * acc.epsilon(plain, DELTA)


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("prob", "num_users", "most"), [(0.5, 8, 3), (0.2, 12, 2), (0.9, 5, 4), (0.3, 6, 10)])
def test_one_round_costs_no_less_than_the_exact_divergence(prob: float, num_users: int, most: int, added: bool) -> None:
    run = acc.TruncatedPoisson(1.0, prob, num_users, most, 1)
    with_user, without = sums(run, num_users + added)
    for epsilon in (0.1, 0.5, 1.0, 2.0):
        true = max(divergence(with_user, without, epsilon), divergence(without, with_user, epsilon))
        assert acc.delta(run, epsilon) >= true * (1 - 1e-9)


def test_plain_poisson_sampling_is_refuted_by_the_exact_divergence() -> None:
    run = acc.TruncatedPoisson(1.0, 0.9, 8, 3, 1)
    with_user, without = sums(run, 8)
    true = max(divergence(with_user, without, 2.0), divergence(without, with_user, 2.0))
    assert acc.delta(acc.PoissonUsers(1.0, 0.9, 1), 2.0) < 0.9 * true


def test_several_rounds_cost_no_less_than_they_are_simulated_to() -> None:
    """Mean of a bounded number over 400,000 draws: five of its standard errors hide less than 1% of delta."""
    run, epsilon = acc.TruncatedPoisson(1.0, 0.9, 8, 3, 3), 3.0
    with_user, without = sums(run, 8)
    generator = np.random.default_rng(0)
    losses = np.zeros(400_000)
    for _ in range(3):
        centres = generator.choice(list(with_user), size=len(losses), p=list(with_user.values()))
        outputs = centres + generator.normal(size=len(losses))
        losses += np.log(density(with_user, outputs) / density(without, outputs))
    excess = np.maximum(1 - np.exp(epsilon - losses), 0)
    error = float(excess.std()) / math.sqrt(len(excess))
    assert acc.delta(run, epsilon) >= excess.mean() - 5 * error
    assert acc.delta(acc.PoissonUsers(1.0, 0.9, 3), epsilon) < excess.mean() - 5 * error


def sums(run: acc.TruncatedPoisson, num_users: int) -> tuple[dict[float, float], dict[float, float]]:
    """Laws of a round's sum with and without a user at +1, one of `num_users`, where all others are at -1."""
    with_user: dict[float, float] = {}
    without: dict[float, float] = {}
    for others in range(num_users):
        chance, kept = float(binom.pmf(others, num_users - 1, run.sampling_prob)), min(others, run.most_users)
        inside = run.sampling_prob * min(1.0, run.most_users / (others + 1))
        joined = 1.0 - min(others, run.most_users - 1)
        for law, place, prob in ((without, -kept, 1.0), (with_user, -kept, 1 - inside), (with_user, joined, inside)):
            law[place] = law.get(place, 0.0) + chance * prob
    return with_user, without


def density(law: dict[float, float], outputs: Any) -> Any:
    """Density of a sum with noise of standard deviation 1."""
    return sum(prob * norm.pdf(outputs, loc=place) for place, prob in law.items())


def divergence(one: dict[float, float], other: dict[float, float], epsilon: float) -> float:
    """Integral of the positive part of one density less e^epsilon times the other."""
    outputs = np.linspace(-25, 15, 200_001)
    excess = np.maximum(density(one, outputs) - math.exp(epsilon) * density(other, outputs), 0)
    return float(excess.sum() * (outputs[1] - outputs[0]))


def test_the_larger_cost_of_one_user_more_and_one_less_is_the_answer() -> None:
    added, removed = acc.TruncatedPoisson(1.0, 0.1, 200, 20, 50), acc.TruncatedPoisson(2.0, 0.3, 50, 5, 10)
    assert by_parts(added, 201) > by_parts(added, 200) * 1.001
    assert by_parts(removed, 50) > by_parts(removed, 51) * 1.001


def test_a_cut_that_never_cuts_is_plain_poisson_sampling() -> None:
    run = acc.TruncatedPoisson(1.0, 0.1, 20, 21, 50)
    assert acc.epsilon(run, DELTA) == pytest.approx(acc.epsilon(acc.PoissonUsers(1.0, 0.1, 50), DELTA), rel=1e-3)
    assert run.expected_cohort_size == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("prob", "users", "most"), [(0.1, 200, 20), (0.3, 24, 8), (1.0, 10, 5), (0.5, 1, 1), (0.1, 9, 12)]
)
def test_the_mean_cohort_is_that_of_the_law_of_sizes(prob: float, users: int, most: int) -> None:
    sizes = np.arange(users + 1)
    mean = (np.minimum(sizes, most) * binom.pmf(sizes, users, prob)).sum()
    assert acc.TruncatedPoisson(1.0, prob, users, most, 1).expected_cohort_size == pytest.approx(mean, rel=1e-12)


def test_the_mean_cohort_of_as_many_users_as_there_can_be_is_told() -> None:
    many = acc.TruncatedPoisson(1.0, 0.9, 10**9, 9 * 10**8, 1)
    assert many.expected_cohort_size == pytest.approx(9e8 - math.sqrt(10**9 * 0.9 * 0.1 / (2 * math.pi)), rel=1e-9)


def test_truncated_cohorts_compose_with_others_and_calibrate() -> None:
    run = acc.calibrate(RUNS[0], epsilon=2.0, delta=DELTA)
    assert 0.99 * 2.0 <= acc.epsilon(run, DELTA) <= 2.0
    together = acc.Composed((run, acc.PoissonUsers(run.noise_multiplier, 0.1, 10)))
    assert acc.epsilon(together, DELTA) > acc.epsilon(run, DELTA)
    assert acc.methods(together) == ("pld",)
    with pytest.raises(acc.AccountingError):
        acc.epsilon(run, DELTA, "rdp")


def test_fixed_strata_cost_what_their_costliest_group_does() -> None:
    run = acc.FixedSizeStrata(2.0, ((1000, 10), (50, 5), (400, 20)), 30)
    assert acc.epsilon(run, DELTA) == pytest.approx(acc.epsilon(acc.FixedSize(2.0, 50, 5, 30), DELTA), rel=1e-9)
    assert acc.epsilon(run, DELTA) > 1.5 * acc.epsilon(acc.FixedSize(2.0, 1450, 35, 30), DELTA)
    accountant = dp.rdp.RdpAccountant(neighboring_relation=dp.NeighboringRelation.REPLACE_ONE)
    assert acc.epsilon(run, DELTA) <= accountant.compose(run.event()).get_epsilon(DELTA) * (1 + 1e-9)


def test_fixed_strata_cost_no_less_than_the_exact_divergence() -> None:
    """A user at +1 is replaced by one at -1; the others of the group are at 0."""
    run = acc.FixedSizeStrata(1.0, ((10, 1), (4, 2)), 1)
    one, other = {0.0: 0.5, 1.0: 0.5}, {0.0: 0.5, -1.0: 0.5}
    for epsilon in (0.5, 1.0, 2.0):
        assert acc.delta(run, epsilon) >= divergence(one, other, epsilon)


def test_one_size_for_all_groups_and_half_the_sensitivity_are_refuted_by_the_exact_divergence() -> None:
    """All of the small group take part: a user at +1 is replaced by one at -1 in every round."""
    run = acc.FixedSizeStrata(1.0, ((1000, 10), (4, 4)), 1)
    for epsilon in (0.5, 1.0, 2.0):
        true = divergence({1.0: 1.0}, {-1.0: 1.0}, epsilon)
        assert acc.delta(run, epsilon) >= true
        assert acc.delta(acc.FixedSize(1.0, 1004, 14, 1), epsilon) < 0.9 * true
        assert acc.delta(run.with_noise_multiplier(2.0), epsilon) < 0.9 * true


def test_relations_of_replaced_users_compose_to_the_narrowest() -> None:
    strata, fixed = acc.FixedSizeStrata(2.0, ((50, 5),), 3), acc.FixedSize(2.0, 50, 5, 3)
    assert acc.Composed((strata, fixed)).adjacency is acc.Adjacency.REPLACE_USER_IN_GROUP
    capped = acc.NoAmplification(2.0, 1, acc.Adjacency.REPLACE_RECORDS)
    assert acc.Composed((strata, fixed, capped)).adjacency is acc.Adjacency.REPLACE_RECORDS
    with pytest.raises(ValueError, match="share one neighbouring relation"):
        acc.Composed((strata, acc.PoissonUsers(1.0, 0.1, 3)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: acc.TruncatedPoisson(1.0, 0.1, 10, 0, 5), "most_users"),
        (lambda: acc.TruncatedPoisson(1.0, 0.0, 10, 5, 5), "sampling_prob"),
        (lambda: acc.FixedSizeStrata(1.0, (), 5), "groups must be a tuple"),
        (lambda: acc.FixedSizeStrata(1.0, ((5, 6),), 5), "users a round of a group"),
        (lambda: acc.FixedSizeStrata(1.0, (5, 6), 5), "tuples of"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
