"""How a composed privacy loss is to be computed: which tilt, which window, how fine a grid."""

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

from fedsim_userdp.privacy.pld.branches import PreparedBranches
from fedsim_userdp.privacy.pld.loss import Grid, Loss, Release
from fedsim_userdp.privacy.pld.roots import minimize
from fedsim_userdp.privacy.pld.tail import Tail, shifts

Releases = list[tuple[Release | PreparedBranches, int]]

LOG_GAIN = 8.0  # what Chernoff's bound of log delta usually gives away
_LOG_MISSING = 13.0  # -log of the mass above the window, relative to delta
_LOG_WRAPPED = 20.0  # -log of the tilted mass that may wrap around to where it counts, or
_LOG_WRAPPED_SHARE = 10.0  # -log of the share of delta that it may be
_LOG_LOST = 3.0  # log of the accuracy that a tilt other than the best may cost the FFT
_MUCH_FINER = 4  # times the points, from which a narrower window is no gain
_LOG_NEGLIGIBLE = 30.0  # -log of the tilted mass of all releases that is raised to the floor
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

    def location(self, value: float) -> float:
        """Returns the epsilon that an answer belongs to."""

    def trivial(self, largest: float, log_infinite: float) -> float:
        """Returns the answer that follows from the largest finite loss and the log probability of an infinite one."""

    def is_inside(self, value: float, low: float) -> bool:
        """Returns whether an answer holds for a window that begins at `low`."""

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

    def location(self, value: float) -> float:
        """Returns the answer itself."""
        return value

    def trivial(self, largest: float, log_infinite: float) -> float:
        """Returns the largest loss, or infinity where delta does not cover the infinite ones."""
        return max(largest, 0.0) if log_infinite <= self.target else math.inf

    def is_inside(self, value: float, low: float) -> bool:
        """Returns whether epsilon lies in the window."""
        return value > low

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
        return bound - LOG_GAIN

    def reach(self) -> float:
        """Returns the epsilon asked about."""
        return self.target

    def location(self, value: float) -> float:
        """Returns the epsilon asked about."""
        return self.target

    def trivial(self, largest: float, log_infinite: float) -> float:
        """Returns the infinite share where no finite loss exceeds epsilon, else 0."""
        return log_infinite if largest <= self.target else 0.0

    def is_inside(self, value: float, low: float) -> bool:
        """Returns True: the window reaches down to the epsilon asked about."""
        return True

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
        floor: Loss of one release below which its tilted mass is negligible.
        grid: Grid of the loss of one release.
        bound: Chernoff's bound of the answer, roughly.
    """

    removed: bool
    theta: float
    low: float
    high: float
    floor: float
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

    def coarsened(self) -> "Plan":
        """Returns the plan on a grid half as fine."""
        grid = Grid(2.0 * self.grid.spacing, max(self.grid.points // 2, 1), max(self.grid.widest // 2, 1))
        return dataclasses.replace(self, grid=grid)

    def extended(self) -> "Plan":
        """Returns the plan with a window of twice the size downwards, or down to zero."""
        low = max(2.0 * self.low - self.high, -self.grid.spacing)
        return dataclasses.replace(self, low=low)


def make_plan(releases: Releases, question: Question, *, removed: bool) -> Plan:
    """Returns a first plan for one direction, from rough tables of the losses, at Chernoff's order.

    Args:
        releases: Prepared releases with their counts.
        question: What is asked.
        removed: Direction.
    """
    sketches = _sketches(releases, removed)

    def bound(theta: float) -> float:
        return question.bound(_cumulant(sketches, theta), theta)

    theta = _best_tilt(sketches, bound)
    least = bound(theta)
    window = _window(sketches, theta, question.log_delta(least), _LOG_WRAPPED)
    return _plan(sketches, question, theta, window, removed, least)


def sharpened(releases: Releases, question: Question, plan: Plan, epsilon: float, max_points: int) -> Plan:
    """Returns a plan of at most `max_points` whose tilt, window and grid suit a roughly known epsilon.

    The share of the FFT's rounding in delta is about e^(K(theta) - theta epsilon) / (theta (1 + theta) delta). The tilt
    at which it is least serves best. Where rare large losses decide, a smaller one gives a narrower window, at little
    cost of accuracy; but its losses may ask for a far finer grid: then the least tilt is kept.
    """
    sketches = _sketches(releases, plan.removed)

    def log_share(theta: float) -> float:
        return _cumulant(sketches, theta) - theta * epsilon - math.log(theta) - math.log1p(theta)

    def plan_at(theta: float) -> Plan:
        wrapped = max(_LOG_WRAPPED, log_share(theta) - log_delta + _LOG_WRAPPED_SHARE)
        window = _window(sketches, theta, log_delta, wrapped)
        return _plan(sketches, question, theta, window, plan.removed, plan.bound).refined()

    log_delta = question.log_delta(plan.bound)
    best = _best_tilt(sketches, log_share)
    first = sharp = plan_at(best)
    while log_share(sharp.theta / 2.0) <= log_share(best) + _LOG_LOST:
        narrower = plan_at(sharp.theta / 2.0)
        if narrower.high - narrower.low > 0.95 * (sharp.high - sharp.low):
            break
        sharp = narrower
    if sharp.num_points > _MUCH_FINER * first.num_points:
        sharp = first
    while sharp.num_points > max_points:
        sharp = sharp.coarsened()
    return sharp


def _sketches(releases: Releases, removed: bool) -> list[tuple[Loss, int]]:
    """Rough losses of the releases, with their counts."""
    return [(release.sketch(removed=removed), count) for release, count in releases]


def _best_tilt(sketches: list[tuple[Loss, int]], cost: Callable[[float], float]) -> float:
    """The tilt of least cost, over all that the scale of the losses makes sensible."""
    scale = math.sqrt(sum(count * loss.moments(0.0)[1] for loss, count in sketches))
    return math.exp(
        minimize(lambda log_theta: cost(math.exp(log_theta)), math.log(1e-6 / scale), math.log(1e3 / scale))
    )


def _plan(
    sketches: list[tuple[Loss, int]],
    question: Question,
    theta: float,
    window: tuple[float, float],
    removed: bool,
    bound: float,
) -> Plan:
    """The plan for a tilt and its window."""
    spare = _LOG_NEGLIGIBLE + math.log(sum(count for _, count in sketches))
    floor = min((loss.cumulant(theta) - spare) / theta for loss, _ in sketches)
    grid = _first_grid(sketches, theta, floor)
    return Plan(removed, theta, min(window[0], question.reach()), window[1], floor, grid, bound)


def _cumulant(losses: list[tuple[Loss, int]], theta: float) -> float:
    """Cumulant of the composed loss."""
    return math.fsum(count * loss.cumulant(theta) for loss, count in losses)


def _first_grid(sketches: list[tuple[Loss, int]], theta: float, floor: float) -> Grid:
    """A coarse grid: it adds about 1% to the tilted variance of the composed loss."""
    moments = [(loss.moments(theta), count) for loss, count in sketches]
    total = sum(count for _, count in moments)
    variance = sum(count * var for (_, var), count in moments) / total
    square = sum(count * mean**2 for (mean, _), count in moments) / total
    widest_loss = max(float(loss.values.max()) - max(float(loss.values.min()), floor) for loss, _ in sketches)
    spacing = max(_COARSE * math.sqrt(variance), 1e-6 * widest_loss)
    points = math.ceil(math.sqrt(1.0 + square / max(variance, 1e-12 * square)) / _COARSE)
    return Grid(spacing, min(points, 1000), 2 ** max(0, math.floor(math.log2(_COARSE / (theta * spacing)))))


def _window(
    sketches: list[tuple[Loss, int]], theta: float, log_delta: float, log_wrapped: float
) -> tuple[float, float]:
    """Ends of the FFT window: little true mass above it, little tilted mass outside that could wrap around it.

    Mass that wraps around lands one window width away, where it only adds to delta. Tilted mass below `low`, or a
    window width above the middle, is at most e^-log_wrapped by Chernoff.
    """
    base = _cumulant(sketches, theta)
    mean = sum(count * loss.moments(theta)[0] for loss, count in sketches)
    variance = sum(count * loss.moments(theta)[1] for loss, count in sketches)
    deviation = math.sqrt(variance) if variance > 0.0 else 1e-3 / theta
    low, wrap, high = -math.inf, math.inf, (base - log_delta + _LOG_MISSING) / theta
    for shift in shifts(theta, deviation):
        above, below = _cumulant(sketches, theta + shift), _cumulant(sketches, theta - shift)
        low = max(low, (base - below - log_wrapped) / shift)
        wrap = min(wrap, (above - base + log_wrapped) / shift)
        high = min(high, (above - log_delta + _LOG_MISSING) / (theta + shift))
    middle = max(low, mean - 4.0 * deviation)
    return low, max(high, low + wrap - middle)
