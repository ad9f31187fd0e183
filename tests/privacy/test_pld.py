"""The privacy loss distribution against quadrature, closed forms, sampling, and other people's accountants."""

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as library
from scipy import integrate, stats

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy import pld
from fedsim_userdp.privacy.accounting import single
from fedsim_userdp.privacy.pld.loss import Grid, prepare
from fedsim_userdp.privacy.pld.mixture import binomial_mixture

ONE_STEP = [(2.0, 0.1, 5, 1.0), (1.0, 0.01, 1, 0.5), (0.5, 0.3, 3, 2.0), (5.0, 0.5, 20, 0.1), (0.3, 0.05, 2, 4.0)]
CELLS = [(1.0, 0.05, 200), (24.0, 0.01, 1000), (0.5, 1e-4, 1000), (3.0, 0.5, 10), (0.3, 0.01, 100)]


def quadrature(noise_multiplier: float, sampling_prob: float, records: int, epsilon: float) -> float:
    """delta of one release by adaptive quadrature of the densities, the worse of both directions."""

    def with_user(x: float) -> float:
        weights = stats.binom.pmf(range(records + 1), records, sampling_prob)
        return float(weights @ stats.norm.pdf(x, np.arange(records + 1), noise_multiplier))

    def without(x: float) -> float:
        return float(stats.norm.pdf(x, 0.0, noise_multiplier))

    def gap(x: float, first: Callable[[float], float], second: Callable[[float], float]) -> float:
        return max(first(x) - math.exp(epsilon) * second(x), 0.0)

    ends = (-12.0 * noise_multiplier, records + 12.0 * noise_multiplier)
    points = np.linspace(*ends, 60)
    pairs = [(with_user, without), (without, with_user)]
    return max(
        sum(integrate.quad(gap, a, b, args=pair, epsabs=1e-12)[0] for a, b in itertools.pairwise(points))
        for pair in pairs
    )


@pytest.mark.parametrize(("noise_multiplier", "sampling_prob", "records", "epsilon"), ONE_STEP)
def test_one_step_delta_agrees_with_quadrature(
    noise_multiplier: float, sampling_prob: float, records: int, epsilon: float
) -> None:
    exact = quadrature(noise_multiplier, sampling_prob, records, epsilon)
    found = acc.delta(acc.RecordLevel(noise_multiplier, sampling_prob, 1, records), epsilon, "tight")
    assert exact - 1e-10 <= found <= exact + 1e-6


@pytest.mark.parametrize(("noise_multiplier", "sampling_prob", "records", "epsilon"), ONE_STEP)
def test_numerical_delta_of_one_step_is_just_above_the_exact_one(
    noise_multiplier: float, sampling_prob: float, records: int, epsilon: float
) -> None:
    mixture = binomial_mixture(noise_multiplier, sampling_prob, records)
    exact = math.exp(single.log_delta(mixture, epsilon))
    assert exact * (1 - 1e-9) <= math.exp(pld.log_delta([(mixture, 1)], epsilon)) <= exact * 1.002


def test_exact_epsilon_of_one_step_inverts_its_delta() -> None:
    mixture = binomial_mixture(1.0, 0.2, 3)
    for log_delta in (-3.0, -12.0, -60.0):
        assert single.log_delta(mixture, single.epsilon(mixture, log_delta)) == pytest.approx(log_delta, abs=1e-9)


@pytest.mark.parametrize("records", [1, 3])
def test_two_step_delta_agrees_with_a_sum_over_the_plane(records: int) -> None:
    sigma, prob, epsilon = 1.2, 0.3, 1.0
    x = np.linspace(-9.0, records + 9.0, 4001)
    weights = stats.binom.pmf(range(records + 1), records, prob)
    with_user = sum(w * stats.norm.pdf(x, i, sigma) for i, w in enumerate(weights)) * (x[1] - x[0])
    without = stats.norm.pdf(x, 0.0, sigma) * (x[1] - x[0])
    exact = max(
        float(np.maximum(np.outer(p, p) - math.exp(epsilon) * np.outer(q, q), 0.0).sum())
        for p, q in ((with_user, without), (without, with_user))
    )
    found = acc.delta(acc.RecordLevel(sigma, prob, 2, records), epsilon, "tight")
    assert found == pytest.approx(exact, rel=2e-3)
    assert found >= exact * (1 - 1e-4)


def sampled_delta(losses: np.ndarray, epsilon: float) -> tuple[float, float]:
    """Unbiased estimate of delta from losses drawn under P, and its standard error."""
    shares = -np.expm1(np.minimum(epsilon - losses, 0.0))
    return float(shares.mean()), float(shares.std() / math.sqrt(shares.size))


@pytest.mark.parametrize(("records", "sigma", "epsilon"), [(1, 1.0, 0.5), (5, 3.0, 0.6)])
def test_composed_delta_agrees_with_sampling_and_a_wrong_rate_does_not(
    records: int, sigma: float, epsilon: float
) -> None:
    """5 standard errors: fails for a true accountant with probability below 1e-6, for the fixed seed never."""
    prob, steps, generator = 0.05, 40, np.random.default_rng(7)
    counts = generator.binomial(records, prob, size=(100_000, steps))
    mixture = binomial_mixture(sigma, prob, records)
    outputs = counts + sigma * generator.standard_normal(counts.shape)
    losses = mixture.log_ratio(outputs.ravel())[0].reshape(counts.shape).sum(axis=1)
    estimate, error = sampled_delta(losses, epsilon)

    def found(sigma: float, prob: float) -> float:
        return acc.delta(acc.RecordLevel(sigma, prob, steps, records), epsilon, "tight")

    assert abs(found(sigma, prob) - estimate) < 5.0 * error
    assert abs(found(sigma, 0.8 * prob) - estimate) > 5.0 * error
    assert abs(found(1.2 * sigma, prob) - estimate) > 5.0 * error


@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10, 1e-30])
def test_numerical_gaussian_agrees_with_the_closed_form(delta: float) -> None:
    """q = 1 is answered in closed form; the numerical way must give the same just beside it."""
    composition = [(binomial_mixture(5.0, 1.0, 1), 10)]
    exact = acc.epsilon(acc.PoissonUsers(5.0, 1.0, 10), delta)
    assert exact <= pld.epsilon(composition, math.log(delta)) <= exact * 1.001


@pytest.mark.parametrize(("sigma", "prob", "rounds"), CELLS)
def test_pld_lies_between_the_bounds_of_dp_accounting(sigma: float, prob: float, rounds: int) -> None:
    found = acc.epsilon(acc.PoissonUsers(sigma, prob, rounds), 1e-5)
    interval = 1e-5 if sigma > 10.0 else 1e-3 if sigma < 0.4 else 1e-4
    bounds = [
        library.from_gaussian_mechanism(
            sigma,
            value_discretization_interval=interval,
            sampling_prob=prob,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        .self_compose(rounds)
        .get_epsilon_for_delta(1e-5)
        for pessimistic in (False, True)
    ]
    assert bounds[0] <= found <= bounds[1] * 1.001


@pytest.mark.parametrize(("sigma", "prob", "steps", "records"), [(9.996, 0.05, 200, 10), (2.0, 0.1, 50, 5)])
def test_tight_agrees_with_the_mixture_of_dp_accounting(sigma: float, prob: float, steps: int, records: int) -> None:
    run = acc.RecordLevel(sigma, prob, steps, records)
    step = run.event().event
    theirs = library.from_mixture_gaussian_mechanism(
        step.standard_deviation, step.sensitivities, step.sampling_probs, value_discretization_interval=5e-3
    ).self_compose(steps)
    assert acc.epsilon(run, 1e-5, "tight") == pytest.approx(theirs.get_epsilon_for_delta(1e-5), rel=0.01)


@pytest.mark.parametrize(("sigma", "prob", "rounds"), [(1.0, 0.05, 200), (2.0, 0.1, 300), (4.0, 0.2, 100)])
def test_opacus_agrees(sigma: float, prob: float, rounds: int) -> None:
    from opacus.accountants import PRVAccountant, RDPAccountant

    run = acc.PoissonUsers(sigma, prob, rounds)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(sigma, prob, rounds)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upper = prv.get_epsilon(1e-5, eps_error=0.01, delta_error=1e-8)
        moments = rdp.get_epsilon(1e-5)
    assert upper - 0.025 <= acc.epsilon(run, 1e-5) <= upper
    assert acc.epsilon(run, 1e-5, "rdp") == pytest.approx(moments, rel=5e-3)


def test_rdp_at_integers_agrees_with_dp_accounting() -> None:
    import dp_accounting as dp
    from dp_accounting import rdp

    from fedsim_userdp.privacy.accounting import renyi

    for sigma, prob in ((1.0, 0.05), (0.5, 1e-3), (30.0, 0.01), (2.0, 1.0)):
        theirs = rdp.RdpAccountant(renyi._ORDERS.tolist())
        theirs.compose(dp.PoissonSampledDpEvent(prob, dp.GaussianDpEvent(sigma)))
        assert renyi.rdp_at_integers(sigma, prob) == pytest.approx(theirs.rdp, rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("removed", [True, False])
@pytest.mark.parametrize(("sigma", "prob", "records"), [(1.0, 0.05, 1), (2.0, 0.3, 6)])
def test_discretized_loss_dominates_and_keeps_both_masses(
    sigma: float, prob: float, records: int, removed: bool
) -> None:
    release = prepare(binomial_mixture(sigma, prob, records), math.log(1e-20))
    loss = release.discretize(Grid(0.05, 10, 4), removed=removed)
    assert loss.probs.sum() == pytest.approx(1.0, abs=1e-12)
    assert (loss.probs @ np.exp(-loss.values)) == pytest.approx(1.0, abs=1e-6)
    for epsilon in (0.0, 0.3, 1.0):
        rough = float(loss.probs @ np.maximum(-np.expm1(epsilon - loss.values), 0.0)) + loss.infinite
        fine = release.discretize(Grid(0.001, 1000, 1), removed=removed)
        exact = float(fine.probs @ np.maximum(-np.expm1(epsilon - fine.values), 0.0))
        assert rough >= exact * (1 - 1e-9)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 10.0, 100.0])
@pytest.mark.parametrize(("prob", "rounds"), [(1e-5, 100_000), (0.01, 1000), (0.5, 100), (0.999, 10)])
def test_whole_range_is_answered_below_rdp(sigma: float, prob: float, rounds: int) -> None:
    run = acc.PoissonUsers(sigma, prob, rounds)
    assert acc.epsilon(run, 1e-6) <= acc.epsilon(run, 1e-6, "rdp") * (1 + 1e-9)


def test_negligible_sampling_costs_nothing_at_a_delta_above_the_distance() -> None:
    assert acc.epsilon(acc.PoissonUsers(0.5, 1e-5, 10), 1e-2) == 0.0


def test_delta_far_beyond_the_largest_loss_is_tiny_but_not_zero() -> None:
    assert 0.0 < acc.delta(acc.PoissonUsers(100.0, 1e-4, 1), 50.0) < 1e-250


@pytest.mark.parametrize("noise_multiplier", [1e-3, 5e-3])
def test_noise_too_little_for_double_precision_is_refused_in_one_sentence(noise_multiplier: float) -> None:
    run = acc.PoissonUsers(noise_multiplier, sampling_prob=9e-4, rounds=2)
    with pytest.raises(acc.AccountingError, match=f"noise multiplier of {noise_multiplier:g} gives losses beyond"):
        acc.epsilon(run, 4.5e-5, "pld")
    with pytest.raises(acc.AccountingError, match=f"noise multiplier of {noise_multiplier:g} gives losses beyond"):
        acc.delta(run, 42.5, "pld")


@pytest.mark.parametrize("sampling_prob", [3e-4, 9e-4])
def test_calibration_passes_over_noise_too_little_for_double_precision(sampling_prob: float) -> None:
    run = acc.PoissonUsers(1.0, sampling_prob, rounds=2)
    found = acc.calibrate(run, epsilon=42.5, delta=4.5e-5, method="pld")
    assert 0.99 * 42.5 <= acc.epsilon(found, 4.5e-5, "pld") <= 42.5
