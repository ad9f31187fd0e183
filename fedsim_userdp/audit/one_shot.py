"""A one-shot estimate of epsilon from the cosines of canaries' directions with the final model.

Source: Andrew, Kairouz, Oh, Oprea, McMahan and Suriyakumar 2023, "One-shot Empirical Privacy Estimation for Federated
Learning", arXiv 2302.03098.  They fit a normal distribution to the cosines of the canaries that took part, know the one
of directions that did not, and report the epsilon between the two.  It rests on both being normal, so it is an
estimate that refutes nothing; the bounds of `fedsim_userdp.audit.games` rest on no such thing.

Their second estimate, from the largest cosine with any release, is left out: where users are sampled, part of the
canaries are never seen, the cosines are a mixture, and a normal fit to it gives an epsilon far above the true one.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

_MOST_EPSILON = 1e4
_HALVINGS = 40
_RESAMPLES = 200


@dataclass(frozen=True)
class Normal:
    """A normal distribution; `stddev` is above 0."""

    mean: float
    stddev: float


@dataclass(frozen=True)
class Estimate:
    """An estimate of epsilon; no bound.

    Attributes:
        epsilon: the estimate; the larger of two directions, so that with few canaries it is too large on average.
        spread: its 2.5% and 97.5% quantiles over resampled canaries; no confidence interval, for that very reason.
    """

    epsilon: float
    spread: tuple[float, float]


def final_model_estimate(
    cosines: NDArray[np.float64], size: int, delta: float, generator: np.random.Generator
) -> Estimate | None:
    """Returns the estimate for an auditor who sees the final model only, None with fewer than two canaries.

    Args:
        cosines: of the directions of the canaries that took part with the whole change of the model, shape [canaries].
        size: trainable parameters; a direction that did not take part has a cosine of N(0, 1 / size).
        delta: in (0, 1).
        generator: draws the bootstrap's samples.
    """
    if len(cosines) < 2:
        return None
    resamples = [_estimated(generator.choice(cosines, len(cosines)), size, delta) for _ in range(_RESAMPLES)]
    low, high = np.quantile(resamples, [0.025, 0.975], method="nearest")
    return Estimate(_estimated(cosines, size, delta), (float(low), float(high)))


def _estimated(cosines: NDArray[np.float64], size: int, delta: float) -> float:
    """Epsilon between directions that were not there and a normal fit to these cosines."""
    null = Normal(0.0, 1 / math.sqrt(size))
    spread = max(float(np.std(cosines, ddof=1)), 1e-9 * null.stddev)
    return epsilon_between(null, Normal(float(np.mean(cosines)), spread), delta)


def epsilon_between(a: Normal, b: Normal, delta: float) -> float:
    """Returns the least epsilon at which a and b are (epsilon, delta)-indistinguishable, in both directions.

    Returns:
        Epsilon in [0, 1e4]; infinity where it would be larger.

    Raises:
        ValueError: when delta is not in (0, 1).
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie in (0, 1)")
    if _delta_between(a, b, 0.0) <= delta:
        return 0.0
    if _delta_between(a, b, _MOST_EPSILON) > delta:
        return math.inf
    low, high = 0.0, _MOST_EPSILON
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta_between(a, b, middle) > delta else (low, middle)
    return high


def _delta_between(a: Normal, b: Normal, epsilon: float) -> float:
    """The larger of both hockey-stick divergences at e^epsilon."""
    return max(_divergence(a, b, epsilon), _divergence(b, a, epsilon))


def _divergence(a: Normal, b: Normal, epsilon: float) -> float:
    """max over events E of a(E) - e^epsilon b(E); E is where log a(x) / b(x) > epsilon, which is quadratic in x.

    With z = (x - mean_a) / stddev_a, r = stddev_a / stddev_b and m = (mean_a - mean_b) / stddev_b:
    log a / b = ((r z + m)^2 - z^2) / 2 - log r.
    """
    ratio, shift = a.stddev / b.stddev, (a.mean - b.mean) / b.stddev
    square, linear, constant = (ratio**2 - 1) / 2, ratio * shift, shift**2 / 2 - math.log(ratio) - epsilon
    return sum(
        _mass(low, high) - _scaled_mass(ratio * low + shift, ratio * high + shift, epsilon)
        for low, high in _where_positive(square, linear, constant)
    )


def _where_positive(square: float, linear: float, constant: float) -> list[tuple[float, float]]:
    """The intervals where square z^2 + linear z + constant > 0."""
    if square == 0:
        if linear == 0:
            return [(-math.inf, math.inf)] if constant > 0 else []
        edge = -constant / linear
        return [(edge, math.inf)] if linear > 0 else [(-math.inf, edge)]
    discriminant = linear**2 - 4 * square * constant
    if discriminant <= 0:
        return [(-math.inf, math.inf)] if square > 0 else []
    # the root that does not cancel first, the other from the product of both
    larger = -(linear + math.copysign(math.sqrt(discriminant), linear)) / 2
    low, high = sorted((larger / square, constant / larger))
    return [(-math.inf, low), (high, math.inf)] if square > 0 else [(low, high)]


def _mass(low: float, high: float) -> float:
    """The standard normal's mass of an interval, from the side where nothing cancels."""
    return float(special.ndtr(high) - special.ndtr(low) if low < 0 else special.ndtr(-low) - special.ndtr(-high))


def _scaled_mass(low: float, high: float, epsilon: float) -> float:
    """e^epsilon times the mass of an interval, without overflow where the mass is tiny."""
    mass = _mass(low, high)
    return math.exp(min(epsilon + math.log(mass), 0.0)) if mass > 0 else 0.0
