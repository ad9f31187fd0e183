"""Privacy loss distribution of composed releases: an upper bound on delta(epsilon) and on epsilon(delta).

1. The loss of one release is put on a grid of spacing h by Connect-the-Dots (Doroshenko et al., arXiv 2207.04380),
   which dominates the true pair (`loss`).
2. The T-fold convolution is one FFT of the *tilted* distribution p(l) e^(theta l) / e^K(theta), theta being the order
   that Chernoff's bound prefers at the wanted delta. The tilt centres the window on the losses that matter: deltas far
   below the rounding error of a plain FFT keep their relative accuracy. Mass that wraps around an end of the window
   is either added where it counts too much, or was above the window: that part is bounded by Chernoff and counted as
   infinite. The rounding error of the FFT is bounded and added to every entry.
3. h starts at a fifth of the tilted standard deviation of one release, so that the grid follows the scale of the
   problem, and is halved until the answer settles. Every answer on the way is a valid upper bound.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import fft

from fedsim_userdp.privacy.errors import AccountingError
from fedsim_userdp.privacy.loss import Loss, Release, prepare
from fedsim_userdp.privacy.mixture import Floats, Mixture

Composition = Sequence[tuple[Mixture, int]]

MIN_LOG_DELTA = -640.0  # smaller deltas underflow in the normal tails
_TOLERANCE = 5e-4
_LOG_TRUNCATION = -12.0  # mass that truncation makes infinite, relative to delta
_LOG_WINDOW = 40.0  # -log of the tilted mass outside the FFT window
_MAX_GRID = 1 << 22
_MAX_SINGLE = 1 << 17
_ROUNDING = 4.0 * float(np.finfo(np.float64).eps)


@dataclasses.dataclass(frozen=True)
class Tail:
    """The upper tail of a composed loss, held tilted: P(loss = l) <= density(l) * e^(log_scale - theta l)."""

    losses: Floats
    density: Floats
    theta: float
    log_scale: float
    log_infinite: float

    def log_delta(self, epsilon: float) -> float:
        """Returns an upper bound of log delta(epsilon), for epsilon at or above the lowest loss."""
        above = slice(int(np.searchsorted(self.losses, epsilon, side="right")), None)
        excess = self.losses[above] - epsilon
        total = float(self.density[above] @ (np.exp(-self.theta * excess) * -np.expm1(-excess)))
        log_finite = self.log_scale - self.theta * epsilon + math.log(total) if total > 0.0 else -math.inf
        return min(float(np.logaddexp(log_finite, self.log_infinite)), 0.0)

    def epsilon(self, log_delta: float) -> float:
        """Returns the smallest epsilon >= 0 in the window whose bound is at most log_delta, else infinity."""
        if self.log_infinite >= log_delta:
            return math.inf
        low, high = max(float(self.losses[0]), 0.0), float(self.losses[-1])
        if self.log_delta(low) <= log_delta:
            return low
        while high - low > 1e-12 + 1e-9 * high:
            middle = (low + high) / 2.0
            low, high = (low, middle) if self.log_delta(middle) <= log_delta else (middle, high)
        return high


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a composed loss: epsilon at a log delta, or log delta at an epsilon."""

    answer: Callable[[Tail], float]
    objective: Callable[[float, float], float]  # (cumulant, theta) -> what Chernoff's bound minimises
    lowest: float  # the window must reach down to this loss
    tolerance: Callable[[float], float]


def epsilon(composition: Composition, log_delta: float) -> float:
    """Returns an upper bound, within about 0.1%, of the epsilon of composed releases.

    Args:
        composition: Pairs of a release and how often it was made, at least one.
        log_delta: log of delta, in [-640, 0).

    Returns:
        The larger of the epsilons of removing and of adding the user, in [0, inf).

    Raises:
        AccountingError: delta is too small for double precision, or no affordable grid settles the answer.
    """
    question = Question(
        answer=lambda tail: tail.epsilon(log_delta),
        objective=lambda cumulant, theta: (cumulant - log_delta) / theta,
        lowest=math.inf,
        tolerance=lambda value: 1e-10 + _TOLERANCE * value,
    )
    return _worse_direction(composition, question, log_delta)


def log_delta(composition: Composition, epsilon: float) -> float:
    """Returns an upper bound, within about 0.1% of delta, of log delta(epsilon) of composed releases.

    Args:
        composition: Pairs of a release and how often it was made, at least one.
        epsilon: In [0, inf).

    Returns:
        The larger of the log deltas of removing and of adding the user, in [-640, 0].

    Raises:
        AccountingError: No affordable grid settles the answer.
    """
    question = Question(
        answer=lambda tail: tail.log_delta(epsilon),
        objective=lambda cumulant, theta: cumulant - theta * epsilon,
        lowest=epsilon,
        tolerance=lambda value: 2.0 * _TOLERANCE,
    )
    rough = prepare_all(composition, MIN_LOG_DELTA)
    bound = max(_chernoff(rough, question, removed=removed)[1] for removed in (True, False))
    if bound < MIN_LOG_DELTA:
        return MIN_LOG_DELTA
    return max(_worse_direction(composition, question, min(bound - 7.0, 0.0)), MIN_LOG_DELTA)


def prepare_all(composition: Composition, log_delta: float) -> list[tuple[Release, int]]:
    """Returns the releases, cut so that all cuts together stay far below delta."""
    if not composition:
        raise AccountingError("nothing was released")
    if log_delta < MIN_LOG_DELTA:
        raise AccountingError(f"delta = e^{log_delta:.0f} is below e^{MIN_LOG_DELTA:.0f}, the least that can be resolved")
    log_mass = log_delta + _LOG_TRUNCATION - math.log(sum(count for _, count in composition))
    return [(prepare(mixture, log_mass), count) for mixture, count in composition]


def _worse_direction(composition: Composition, question: Question, log_delta: float) -> float:
    """The answer for removing or adding the user, whichever is larger."""
    releases = prepare_all(composition, log_delta)
    worst = -math.inf
    for removed in (True, False):
        worst = max(worst, _settle(releases, question, worst, removed=removed))
    return worst


def _settle(releases: list[tuple[Release, int]], question: Question, enough: float, *, removed: bool) -> float:
    """The answer in one direction on a grid fine enough, or any bound that is at most `enough`."""
    theta, _, deviation = _chernoff(releases, question, removed=removed)
    spread = max(float(release.loss[-1] - release.loss[0]) for release, _ in releases)
    spacing, previous = max(0.2 * deviation, spread / _MAX_SINGLE), math.inf
    while True:
        losses = [(release.discretize(spacing, removed=removed), count) for release, count in releases]
        value = min(_ask(losses, theta, spacing, question), previous)
        if value <= enough or previous - value <= question.tolerance(value):
            return value
        spacing, previous = spacing / 2.0, value


def _ask(losses: list[tuple[Loss, int]], theta: float, spacing: float, question: Question) -> float:
    """The answer on one grid, with the window extended downwards until it holds the answer."""
    lowest = question.lowest
    while True:
        tail = compose(losses, theta, spacing, lowest)
        value, low = question.answer(tail), float(tail.losses[0])
        if low <= 0.0 or value > low:
            return value
        lowest = max(2.0 * low - float(tail.losses[-1]), -spacing)


def _chernoff(
    releases: list[tuple[Release, int]], question: Question, *, removed: bool
) -> tuple[float, float, float]:
    """The best tilt, Chernoff's bound there, and the tilted standard deviation of a mean release; all rough."""
    sketches = [(release.sketch(removed=removed), count) for release, count in releases]

    def objective(log_theta: float) -> float:
        theta = math.exp(log_theta)
        return question.objective(sum(count * loss.cumulant(theta) for loss, count in sketches), theta)

    scale = math.sqrt(sum(count * loss.moments(0.0)[1] for loss, count in sketches))
    log_theta = _minimize(objective, math.log(1e-6 / scale), math.log(1e3 / scale))
    theta = math.exp(log_theta)
    num_releases = sum(count for _, count in sketches)
    variance = sum(count * loss.moments(theta)[1] for loss, count in sketches) / num_releases
    return theta, objective(log_theta), math.sqrt(variance)


def compose(losses: list[tuple[Loss, int]], theta: float, spacing: float, lowest: float) -> Tail:
    """Returns the upper tail of the sum of independent losses, from `lowest` or the window's own end, if lower.

    Args:
        losses: Losses on grids of the same spacing, with how many of each are summed.
        theta: Tilt, > 0.
        spacing: Spacing of the grid, > 0.
        lowest: Loss down to which the window must reach; infinity for no such demand.

    Raises:
        AccountingError: The window needs more than 2^22 points.
    """
    low, high = _window(losses, theta, spacing)
    start = math.floor(min(low, lowest) / spacing) - 1
    size = fft.next_fast_len(math.ceil(high / spacing) - start + 2, real=True)
    if size > _MAX_GRID:
        raise AccountingError(f"the privacy loss needs a grid of {size} points, more than {_MAX_GRID}")
    spectrum, rounding, origin = np.ones(size // 2 + 1, dtype=np.complex128), 0.0, 0
    norms = []
    for loss, count in losses:
        folded = _fold(loss.tilted(theta), size)
        part = fft.rfft(folded)
        norms.append((np.abs(part), count * float(np.linalg.norm(folded))))
        spectrum *= part**count
        origin += count * loss.start
    for magnitude, weight in norms:
        rounding += weight * float(np.mean(np.abs(spectrum) / np.maximum(magnitude, 1e-200)))
    density = np.roll(fft.irfft(spectrum, size), -((start - origin) % size))
    log_scale = sum(count * loss.cumulant(theta) for loss, count in losses)
    infinite = -math.expm1(sum(count * math.log1p(-loss.infinite) for loss, count in losses))
    return Tail(
        losses=(start + np.arange(size)) * spacing,
        density=np.maximum(density, 0.0) + _ROUNDING * math.log2(size) * rounding,
        theta=theta,
        log_scale=log_scale,
        log_infinite=float(np.logaddexp(math.log(infinite), log_scale - theta * high - _LOG_WINDOW)),
    )


def _window(losses: list[tuple[Loss, int]], theta: float, spacing: float) -> tuple[float, float]:
    """Losses outside of which the tilted sum has a mass of at most e^-40 on either side, by Chernoff."""
    base = sum(count * loss.cumulant(theta) for loss, count in losses)
    variance = max(sum(count * loss.moments(theta)[1] for loss, count in losses), spacing**2)
    low, high = -math.inf, math.inf
    for factor in (0.25, 0.5, 1.0, 2.0, 4.0):
        shift = factor * math.sqrt(2.0 * _LOG_WINDOW / variance)
        above = sum(count * loss.cumulant(theta + shift) for loss, count in losses) - base
        below = sum(count * loss.cumulant(theta - shift) for loss, count in losses) - base
        high = min(high, (above + _LOG_WINDOW) / shift)
        low = max(low, -(below + _LOG_WINDOW) / shift)
    return low, high


def _fold(probs: Floats, size: int) -> Floats:
    """Probabilities wrapped around a circle of `size` points."""
    padded = np.concatenate((probs, np.zeros(-probs.size % size)))
    return np.asarray(padded.reshape(-1, size).sum(axis=0))


def _minimize(function: Callable[[float], float], low: float, high: float) -> float:
    """Argument of the least value of a quasi-convex function, to about 0.01, by golden section."""
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
