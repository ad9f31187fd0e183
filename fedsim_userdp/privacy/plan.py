"""How a composed privacy loss is to be computed: which tilt, which window, how fine a grid."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

from fedsim_userdp.privacy.loss import Grid, Loss, Release
from fedsim_userdp.privacy.tail import Tail

Releases = list[tuple[Release, int]]

_LOG_MISSING = 16.0  # -log of the mass above the window, relative to delta
_LOG_WRAPPED = 20.0  # -log of the tilted mass that may wrap around to where it counts
_COARSE = 0.2  # first grid spacing, in tilted standard deviations of one release


class Question(Protocol):
    """What is asked of a composed loss."""

    def answer(self, tail: Tail) -> float:
        """Returns the answer from an upper tail."""

    def bound(self, cumulant: float, theta: float) -> float:
        """Returns Chernoff's bound of the answer, given the cumulant of the composed loss at theta."""

    def log_delta(self, bound: float) -> float:
        """Returns roughly the log delta that the answer belongs to."""

    def reach(self) -> float:
        """Returns the loss down to which the window must reach, or infinity."""

    def scale(self, value: float) -> float:
        """Returns what a change of the answer is compared with."""

    def may_be_loose(self, value: float) -> bool:
        """Returns whether any upper bound will do, because delta is so small that nobody reports it."""


@dataclasses.dataclass(frozen=True)
class EpsilonAt:
    """Asks for epsilon at a log delta."""

    target: float

    def answer(self, tail: Tail) -> float:
        """Returns epsilon."""
        return tail.epsilon(self.target)

    def bound(self, cumulant: float, theta: float) -> float:
        """Returns (K - log delta) / theta."""
        return (cumulant - self.target) / theta

    def log_delta(self, bound: float) -> float:
        """Returns the log delta asked about."""
        return self.target

    def reach(self) -> float:
        """Returns infinity: the tilt puts the window where the answer is."""
        return math.inf

    def scale(self, value: float) -> float:
        """Returns epsilon, kept off zero."""
        return max(value, 1e-9)

    def may_be_loose(self, value: float) -> bool:
        """Returns whether delta is below e^-60: group privacy of many records asks for that, and RDP is at hand."""
        return math.isfinite(value) and self.target < -60.0


@dataclasses.dataclass(frozen=True)
class DeltaAt:
    """Asks for log delta at an epsilon."""

    target: float

    def answer(self, tail: Tail) -> float:
        """Returns log delta."""
        return tail.log_delta(self.target)

    def bound(self, cumulant: float, theta: float) -> float:
        """Returns K - theta * epsilon."""
        return cumulant - theta * self.target

    def log_delta(self, bound: float) -> float:
        """Returns Chernoff's bound less what it usually gives away."""
        return bound - 7.0

    def reach(self) -> float:
        """Returns the epsilon asked about."""
        return self.target

    def scale(self, value: float) -> float:
        """Returns 2: a change of log delta is a relative change of delta already."""
        return 2.0

    def may_be_loose(self, value: float) -> bool:
        """Returns whether delta is below e^-30, that is 1e-13."""
        return value < -30.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tilt, window and grid for one direction.

    Attributes:
        removed: Whether the user is removed (P against Q) or added (Q against P).
        theta: Tilt > 0.
        low: Lower end of the window; the answer must lie above it.
        high: Upper end of the window.
        grid: Grid of the loss of one release.
        bound: Chernoff's bound of the answer, roughly.
    """

    removed: bool
    theta: float
    low: float
    high: float
    grid: Grid
    bound: float

    @property
    def num_points(self) -> int:
        """Number of grid points in the window."""
        return math.ceil((self.high - self.low) / self.grid.spacing) + 4

    def refined(self) -> "Plan":
        """Returns the plan on a grid twice as fine."""
        grid = Grid(self.grid.spacing / 2.0, 2 * self.grid.points, self.grid.widest)
        return dataclasses.replace(self, grid=grid)

    def extended(self) -> "Plan":
        """Returns the plan with a window of twice the size downwards, or down to zero."""
        low = max(2.0 * self.low - self.high, -self.grid.spacing)
        return dataclasses.replace(self, low=low)


def make_plan(releases: Releases, question: Question, *, removed: bool) -> Plan:
    """Returns a first plan for one direction, from rough tables of the losses.

    Args:
        releases: Prepared releases with their counts.
        question: What is asked; the tilt is the one at which Chernoff's bound of it is least.
        removed: Direction.
    """
    sketches = [(release.sketch(removed=removed), count) for release, count in releases]
    scale = math.sqrt(sum(count * loss.moments(0.0)[1] for loss, count in sketches))

    def bound(log_theta: float) -> float:
        theta = math.exp(log_theta)
        return question.bound(_cumulant(sketches, theta), theta)

    log_theta = minimize(bound, math.log(1e-6 / scale), math.log(1e3 / scale))
    theta, least = math.exp(log_theta), bound(log_theta)
    low, high = _window(sketches, theta, question.log_delta(least))
    return Plan(removed, theta, min(low, question.reach()), high, _first_grid(sketches, theta), least)


def _cumulant(losses: list[tuple[Loss, int]], theta: float) -> float:
    """Cumulant of the composed loss."""
    return math.fsum(count * loss.cumulant(theta) for loss, count in losses)


def _first_grid(sketches: list[tuple[Loss, int]], theta: float) -> Grid:
    """A coarse grid: it adds about 1% to the tilted variance of the composed loss."""
    moments = [(loss.moments(theta), count) for loss, count in sketches]
    total = sum(count for _, count in moments)
    variance = sum(count * var for (_, var), count in moments) / total
    square = sum(count * mean**2 for (mean, _), count in moments) / total
    widest_loss = max(float(loss.values.max() - loss.values.min()) for loss, _ in sketches)
    spacing = max(_COARSE * math.sqrt(variance), 1e-6 * widest_loss)
    points = math.ceil(math.sqrt(1.0 + square / max(variance, 1e-12 * square)) / _COARSE)
    return Grid(spacing, min(points, 1000), 2 ** max(0, math.floor(math.log2(_COARSE / (theta * spacing)))))


def _window(sketches: list[tuple[Loss, int]], theta: float, log_delta: float) -> tuple[float, float]:
    """Ends of the FFT window: little true mass above it, little tilted mass outside that could wrap around it.

    Mass that wraps around lands one window width away, where it only adds to delta. Tilted mass below `low`, or a
    window width above the middle, is at most e^-20 by Chernoff.
    """
    base = _cumulant(sketches, theta)
    mean = sum(count * loss.moments(theta)[0] for loss, count in sketches)
    variance = sum(count * loss.moments(theta)[1] for loss, count in sketches)
    deviation = math.sqrt(variance) if variance > 0.0 else 1e-3 / theta
    low, wrap, high = -math.inf, math.inf, math.inf
    for power in range(-5, 3):
        shift = 2.0**power * math.sqrt(2.0 * _LOG_WRAPPED) / deviation
        above, below = _cumulant(sketches, theta + shift), _cumulant(sketches, theta - shift)
        low = max(low, (base - below - _LOG_WRAPPED) / shift)
        wrap = min(wrap, (above - base + _LOG_WRAPPED) / shift)
        high = min(high, (above - log_delta + _LOG_MISSING) / (theta + shift))
    high = min(high, (base - log_delta + _LOG_MISSING) / theta)
    middle = max(low, mean - 4.0 * deviation)
    return low, max(high, low + wrap - middle)


def minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Returns the argument of the least value of a quasi-convex function, to 0.02, by golden section."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = function(left), function(right)
    while high - low > 0.02:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = function(right)
    return (low + high) / 2.0
