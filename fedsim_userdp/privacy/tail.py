"""The upper tail of a composed privacy loss, by one FFT of its tilted distribution.

The T-fold convolution of p(l) e^(theta l) / e^K(theta), theta > 0, is e^(theta l - T K) times that of p. theta is the
order that Chernoff's bound prefers at the wanted delta, so the window holds the losses that matter and deltas far below
the rounding error of a plain FFT keep their relative accuracy.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np
from scipy import fft

from fedsim_userdp.privacy.loss import Grid, Loss
from fedsim_userdp.privacy.mixture import Floats
from fedsim_userdp.privacy.roots import crossing

_ROUNDING = 4.0 * float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class Tail:
    """The upper tail of a composed loss: P(loss = l) <= density(l) * e^(log_scale - theta l), or infinite.

    Attributes:
        losses: Values l, increasing, evenly spaced, shape (n,).
        density: Tilted probabilities, with the rounding error added, shape (n,).
        theta: Tilt > 0.
        log_scale: Cumulant of the composed loss at theta.
        log_infinite: log of the probability of a loss that is infinite or above `losses`.
    """

    losses: Floats
    density: Floats
    theta: float
    log_scale: float
    log_infinite: float

    def log_delta(self, epsilon: float) -> float:
        """Returns an upper bound of log delta(epsilon), for epsilon at or above the lowest loss."""
        above = slice(int(np.searchsorted(self.losses, epsilon, side="right")), None)
        excess = self.losses[above] - epsilon
        total = float(np.sum(self.density[above] * np.exp(-self.theta * excess) * -np.expm1(-excess)))
        log_finite = self.log_scale - self.theta * epsilon + math.log(total) if total > 0.0 else -math.inf
        return min(float(np.logaddexp(log_finite, self.log_infinite)), 0.0)

    def epsilon(self, log_delta: float) -> float:
        """Returns the smallest epsilon >= 0 in the window whose bound is at most log_delta, else infinity."""
        if self.log_infinite >= log_delta:
            return math.inf
        low, high = max(float(self.losses[0]), 0.0), max(float(self.losses[-1]), 0.0)
        if self.log_delta(low) <= log_delta:
            return low
        return crossing(lambda epsilon: self.log_delta(epsilon) - log_delta, low, high)


class Window(Protocol):
    """Tilt, window and grid of a composition; see `plan.Plan`."""

    @property
    def theta(self) -> float:
        """Tilt > 0."""

    @property
    def low(self) -> float:
        """Lower end."""

    @property
    def high(self) -> float:
        """Upper end."""

    @property
    def grid(self) -> Grid:
        """Grid of one loss."""


def compose(losses: list[tuple[Loss, int]], window: Window) -> Tail:
    """Returns the upper tail of a sum of independent losses.

    Guarantee: an upper bound of delta for epsilon >= window.low. Mass that wraps around the window lands where the
        tilt weighs it more, or below epsilon: what lies above the window is bounded by Chernoff, and counted as
        infinite. The error of the FFT is bounded by its root mean square and added to every entry.

    Args:
        losses: Losses on the window's grid, with how many of each are summed.
        window: Tilt, window and grid.
    """
    theta, spacing = window.theta, window.grid.spacing
    start = math.floor(window.low / spacing) - 1
    size = fft.next_fast_len(math.ceil(window.high / spacing) - start + 2, real=True)
    top = (start + size - 1) * spacing
    density, rounding = _convolve(losses, theta, spacing, start, size)
    log_scale = math.fsum(count * loss.cumulant(theta) for loss, count in losses)
    infinite = -math.expm1(math.fsum(count * math.log1p(-loss.infinite) for loss, count in losses))
    deviation = math.sqrt(math.fsum(count * loss.moments(theta)[1] for loss, count in losses)) + spacing
    log_above = min(
        math.fsum(count * loss.cumulant(order) for loss, count in losses) - order * top
        for order in (theta, *(theta + 2.0**power / deviation for power in range(-2, 6)))
    )
    return Tail(
        losses=(start + np.arange(size)) * spacing,
        density=density + rounding,
        theta=theta,
        log_scale=log_scale,
        log_infinite=float(np.logaddexp(math.log(infinite), log_above)),
    )


def _convolve(
    losses: list[tuple[Loss, int]], theta: float, spacing: float, start: int, size: int
) -> tuple[Floats, float]:
    """The tilted distribution of the sum at `size` multiples of the spacing from `start`, and a bound on its error."""
    parts = [(np.rint(loss.values / spacing).astype(np.int64), loss.tilted(theta), count) for loss, count in losses]
    spectrum, error = np.ones(size // 2 + 1, dtype=np.complex128), np.zeros(size // 2 + 1)
    for index, probs, count in parts:
        wrapped = np.bincount(index % size, weights=probs, minlength=size)
        transform = fft.rfft(wrapped)
        spectrum *= transform**count
        error += count * math.sqrt(float(np.sum(wrapped**2))) / np.maximum(np.abs(transform), 1e-200)
    rounding = _ROUNDING * math.log2(size) * float(np.mean(np.abs(spectrum) * error))
    density = np.roll(fft.irfft(spectrum, size), -(start % size))
    return np.maximum(density, 0.0), rounding
