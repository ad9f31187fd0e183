"""The upper tail of a composed privacy loss, by one FFT of its tilted distribution.

The T-fold convolution of p(l) e^(theta l) / e^K(theta), theta > 0, is e^(theta l - T K) times that of p. theta is near
the order that Chernoff's bound prefers at the wanted delta, so the window holds the losses that matter, and deltas far
below the rounding error of a plain FFT keep their relative accuracy.
"""

import dataclasses
import math
from typing import Protocol

import numpy as np
from scipy import fft

from fedsim_userdp.privacy.pld.convolution import convolve
from fedsim_userdp.privacy.pld.loss import Grid, Loss
from fedsim_userdp.privacy.pld.mixture import Floats

_EPS = float(np.finfo(np.float64).eps)
_RELEASE_ERROR = 1e-10  # relative rounding error of one release's divergence; against 50 digits it is below 1e-11
_BLOCK = 400.0  # e^-400 is far from underflow


@dataclasses.dataclass(frozen=True)
class Tail:
    """Upper bounds of delta at every multiple of the grid, in tilted units: delta_j * e^(theta l_j - log_scale).

    Between two losses delta(epsilon) = delta_j + ahead_j (1 - e^(epsilon - l_j)), l_j being the one above epsilon.

    Attributes:
        losses: Values l, increasing, evenly spaced, shape (n,).
        deltas: Tilted delta(l_j) of the finite losses, decreasing in untilted units, shape (n,).
        ahead: Tilted sum over m >= j of P(loss = l_m) e^(l_j - l_m), shape (n,).
        theta: Tilt > 0.
        log_scale: Cumulant of the composed loss at theta.
        log_infinite: log of the probability of a loss that is infinite or above `losses`.
        rounding: Bound of the FFT's rounding error that is part of each tilted probability.
    """

    losses: Floats
    deltas: Floats
    ahead: Floats
    theta: float
    log_scale: float
    log_infinite: float
    rounding: float

    def log_delta(self, epsilon: float) -> float:
        """Returns an upper bound of log delta(epsilon), for epsilon at or above the lowest loss."""
        at = int(np.searchsorted(self.losses, epsilon))
        if at == self.losses.size:
            return min(self.log_infinite, 0.0)
        excess = float(self.losses[at]) - epsilon
        total = float(self.deltas[at]) - float(self.ahead[at]) * math.expm1(-excess)
        log_finite = self._log_unit(at) + math.log(total) if total > 0.0 else -math.inf
        return min(float(np.logaddexp(log_finite, self.log_infinite)), 0.0)

    def epsilon(self, log_delta: float) -> float:
        """Returns the smallest epsilon >= 0 in the window whose bound is at most log_delta, else infinity."""
        if self.log_infinite >= log_delta:
            return math.inf
        lowest = max(float(self.losses[0]), 0.0)
        if float(self.losses[-1]) <= lowest or self.log_delta(lowest) <= log_delta:
            return lowest
        above, at = int(np.searchsorted(self.losses, lowest, side="right")), self.losses.size - 1
        while above < at:  # at = the first loss above `lowest` at which the bound is at most log_delta
            middle = (above + at) // 2
            above, at = (above, middle) if self.log_delta(float(self.losses[middle])) <= log_delta else (middle + 1, at)
        log_finite = log_delta + math.log(-math.expm1(self.log_infinite - log_delta))
        spare = math.exp(log_finite - self._log_unit(at)) - float(self.deltas[at])
        back = math.log1p(-min(max(spare / float(self.ahead[at]), 0.0), 1.0 - _EPS))
        return max(float(self.losses[at]) + back * (1.0 - 4.0 * _EPS), lowest)

    def rounding_share(self, epsilon: float) -> float:
        """Returns about which share of delta(epsilon) is there to cover the rounding error of the FFT."""
        at = int(np.searchsorted(self.losses, epsilon))
        if at >= self.losses.size - 1:
            return 0.0
        rate, spacing = self.theta * float(self.losses[1] - self.losses[0]), float(self.losses[1] - self.losses[0])
        covering = self.rounding * (1.0 / math.expm1(rate) - 1.0 / math.expm1(rate + spacing))
        log_unit = self._log_unit(at)
        return math.exp(math.log(covering) + log_unit - max(self.log_delta(epsilon), log_unit - 700.0))

    def _log_unit(self, at: int) -> float:
        """log of what the tilted numbers at an index are multiples of."""
        return self.log_scale - self.theta * float(self.losses[at])


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


def compose(losses: list[tuple[Loss, int]], window: Window, *, precise: bool = False) -> Tail:
    """Returns the upper tail of a sum of independent losses.

    Guarantee: an upper bound of delta for epsilon >= window.low. Mass that wraps around the window only adds to it:
        what comes from below is new, and what lies above is bounded by Chernoff and counted as infinite anyway. The
        rounding error of the FFT, bounded in `convolution`, is added to every entry; those of sums and of a release's
        divergence are relative, and added to the scale.

    Args:
        losses: Losses on the window's grid, with how many of each are summed.
        window: Tilt, window and grid.
        precise: Whether the FFT is in long double.
    """
    theta, spacing = window.theta, window.grid.spacing
    start = math.floor(window.low / spacing) - 1
    size = fft.next_fast_len(math.ceil(window.high / spacing) - start + 2, real=True)
    parts = [(np.rint(loss.values / spacing).astype(np.int64), loss.tilted(theta), count) for loss, count in losses]
    density, rounding = convolve(parts, start, size, precise=precise)
    ahead = discounted(density + rounding, (theta + 1.0) * spacing)
    steps = -math.expm1(-spacing) * np.append(ahead[1:], 0.0) * math.exp(-theta * spacing)
    log_scale = math.fsum(count * loss.cumulant(theta) for loss, count in losses)
    terms = size + 100.0 + abs(log_scale) + theta * max(abs(window.low), abs(window.high))
    relative = sum(count for _, count in losses) * _RELEASE_ERROR + 8.0 * terms * _EPS
    infinite = -math.expm1(math.fsum(count * math.log1p(-loss.infinite) for loss, count in losses))
    return Tail(
        losses=(start + np.arange(size)) * spacing,
        deltas=discounted(steps, theta * spacing),
        ahead=ahead,
        theta=theta,
        log_scale=log_scale + relative,
        log_infinite=float(np.logaddexp(math.log(infinite), _log_above(losses, theta, (start + size - 1) * spacing))),
        rounding=rounding,
    )


def shifts(theta: float, deviation: float) -> list[float]:
    """Returns orders to add to `theta` that Chernoff's bounds are tried at, from light tails to heavy ones.

    Args:
        theta: Tilt > 0.
        deviation: Standard deviation of the tilted loss, > 0: for a normal one the best order is some 6 / deviation.
    """
    top = 25.0 / deviation
    return [float(shift) for shift in np.geomspace(min(theta / 16.0, top / 32.0), top, 13)]


def discounted(values: Floats, rate: float) -> Floats:
    """Returns y with y_j = sum over m >= j of values_m e^(-rate (m - j)), for values >= 0 and a rate > 0."""
    result = np.empty_like(values)
    length = max(1, min(values.size, int(_BLOCK / rate)))
    carried = 0.0
    for first in range((values.size - 1) // length * length, -1, -length):
        block = values[first : first + length]
        weight = np.exp(-rate * np.arange(block.size))
        sums = np.cumsum((block * weight)[::-1])[::-1] / weight
        sums += carried * math.exp(-rate * block.size) / weight
        result[first : first + length] = sums
        carried = float(sums[0])
    return result


def _log_above(losses: list[tuple[Loss, int]], theta: float, top: float) -> float:
    """Chernoff's bound of the log probability that the sum is finite and above `top`."""
    variance = math.fsum(count * loss.moments(theta)[1] for loss, count in losses)
    orders = [
        theta,
        *(theta + shift for shift in shifts(theta, math.sqrt(variance) if variance > 0.0 else 1.0 / theta)),
    ]
    return min(math.fsum(count * loss.cumulant(order) for loss, count in losses) - order * top for order in orders)
