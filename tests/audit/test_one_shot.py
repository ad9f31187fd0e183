import math

import numpy as np
import pytest
from scipy import integrate, stats

from fedsim_userdp.audit.one_shot import Normal, epsilon_between, final_model_estimate
from fedsim_userdp.privacy.accounting import gaussian


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-6])
def test_equal_widths_give_the_gaussian_mechanism(mu: float, delta: float) -> None:
    found = epsilon_between(Normal(0.0, 2.0), Normal(2.0 * mu, 2.0), delta)
    assert found == pytest.approx(gaussian.epsilon(mu, math.log(delta)), rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b"),
    [(Normal(0, 1), Normal(0.5, 1.3)), (Normal(0, 1), Normal(1, 0.6)), (Normal(2, 3), Normal(-1, 0.5))],
)
@pytest.mark.parametrize("delta", [0.02, 1e-4])
def test_at_the_epsilon_that_is_found_both_divergences_are_within_delta_and_one_is_delta(
    a: Normal, b: Normal, delta: float
) -> None:
    """By numerical integration of max(a - e^eps b, 0)."""
    epsilon = epsilon_between(a, b, delta)

    def divergence(a: Normal, b: Normal) -> float:
        grid = np.linspace(-40, 40, 800_001)
        gap = stats.norm.pdf(grid, a.mean, a.stddev) - math.exp(epsilon) * stats.norm.pdf(grid, b.mean, b.stddev)
        return float(integrate.trapezoid(np.maximum(gap, 0), grid))

    assert max(divergence(a, b), divergence(b, a)) == pytest.approx(delta, rel=1e-3)


def test_equal_distributions_have_epsilon_zero() -> None:
    assert epsilon_between(Normal(1, 2), Normal(1, 2), 1e-6) == 0.0


def test_distributions_without_overlap_have_an_epsilon_beyond_all_measure() -> None:
    assert epsilon_between(Normal(0, 1e-3), Normal(1e3, 1e-3), 1e-6) == math.inf


@pytest.mark.parametrize("mu", [1.0, 3.0])
def test_the_estimate_is_near_the_epsilon_that_the_cosines_were_drawn_with(mu: float) -> None:
    """A Gaussian mechanism; with 4000 canaries the estimates are within a few per cent."""
    size, generator = 10_000, np.random.default_rng(1)
    cosines = (mu + generator.standard_normal(4000)) / math.sqrt(size)
    estimate = final_model_estimate(cosines, size, 1e-5, generator)
    assert estimate is not None
    assert estimate.epsilon == pytest.approx(gaussian.epsilon(mu, math.log(1e-5)), rel=0.1)
    assert estimate.spread[0] <= estimate.epsilon <= estimate.spread[1]


def test_one_canary_gives_no_estimate() -> None:
    assert final_model_estimate(np.array([0.1]), 100, 1e-5, np.random.default_rng(0)) is None


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0])
def test_a_delta_out_of_range_is_refused(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon_between(Normal(0, 1), Normal(1, 1), delta)
