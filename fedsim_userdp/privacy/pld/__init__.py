"""Privacy loss distribution of composed releases: an upper bound on delta(epsilon) and on epsilon(delta).

1. The loss of one release is put on a grid by Connect-the-Dots (Doroshenko et al., arXiv 2207.04380), which dominates
   the true pair (`loss`). The grid follows the scale of the problem (`plan`).
2. The T-fold convolution is one FFT of the *tilted* distribution p(l) e^(theta l) / e^K(theta) (`tail`).
3. The grid is halved until the answer settles. Every answer on the way is a valid upper bound.
"""

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from fedsim_userdp.errors import AccountingError
from fedsim_userdp.privacy.pld.branches import Branches
from fedsim_userdp.privacy.pld.loss import Loss, prepare
from fedsim_userdp.privacy.pld.mixture import Mixture
from fedsim_userdp.privacy.pld.plan import LOG_GAIN, DeltaAt, EpsilonAt, Plan, Question, Releases, make_plan, sharpened
from fedsim_userdp.privacy.pld.tail import compose

Composition = Sequence[tuple[Mixture | Branches, int]]

MIN_LOG_DELTA = -640.0  # smaller deltas underflow in the normal tails
USUAL_LOG_DELTA = -60.0  # below, only large groups of records ask, and a loose bound after less work will do
_TOLERANCE = 5e-4
_LARGEST_DOUBT = 1e-2
_LARGEST_SHARE = 1e-2  # of delta that may be there to cover rounding; above, long double
_SMALL = 0.1  # of an epsilon: below, doubt is measured against this
_LOG_TRUNCATION = -12.0  # mass that truncation makes infinite, relative to delta
_FIRST_GRID = 1 << 17  # the largest to begin with
_MAX_GRID = 1 << 21
_MAX_GRID_UNUSUAL = 1 << 17


def _within_double_precision(
    answer: Callable[[Composition, float], float],
) -> Callable[[Composition, float], float]:
    """Makes an overflow or underflow on the way an AccountingError: far too little noise, asked about by nobody."""

    @functools.wraps(answer)
    def checked(composition: Composition, target: float) -> float:
        try:
            return answer(composition, target)
        except ArithmeticError as error:
            least = min(mixture.noise_multiplier for mixture, _ in composition)
            raise AccountingError(
                f"a noise multiplier of {least:g} gives losses beyond what double precision holds ({error})"
            ) from error

    return checked


@_within_double_precision
def epsilon(composition: Composition, log_delta: float) -> float:
    """Returns an upper bound, as a rule within 0.1%, of the epsilon of composed releases.

    Args:
        composition: Pairs of a release and how often it was made, at least one.
        log_delta: log of delta, in [-640, 0).

    Returns:
        The larger of the epsilons of removing and of adding the user, in [0, inf). Below a delta of e^-60 it may be
        looser than that.

    Raises:
        AccountingError: delta or the noise is too small for double precision, or no affordable grid settles the
            answer to 1% or 0.001.
    """
    if sum(count * mixture.distance() for mixture, count in composition) <= math.exp(log_delta):
        return 0.0
    question = EpsilonAt(log_delta)
    releases = prepare_all(composition, log_delta)
    plans = _plans(releases, question)
    value = _worse_direction(releases, question, plans)
    _check(value, plans[0].bound, _LARGEST_DOUBT * plans[0].bound)
    return value


@_within_double_precision
def log_delta(composition: Composition, epsilon: float) -> float:
    """Returns an upper bound, as a rule within 0.1% of delta, of log delta(epsilon) of composed releases.

    Args:
        composition: Pairs of a release and how often it was made, at least one.
        epsilon: In [0, inf).

    Returns:
        The larger of the log deltas of removing and of adding the user, in [-640, 0]. Below -30 it may be looser.

    Raises:
        AccountingError: The noise is too small for double precision, or no affordable grid settles the answer to 1%.
    """
    question = DeltaAt(epsilon)
    bound = min(_plans(prepare_all(composition, MIN_LOG_DELTA), question)[0].bound, 0.0)
    level = bound - LOG_GAIN
    while level > MIN_LOG_DELTA:
        releases = prepare_all(composition, level)
        plans = _plans(releases, question)
        value = level + _LOG_TRUNCATION
        if plans[0].bound > value - LOG_GAIN:
            value = _worse_direction(releases, question, plans)
        if value >= level - LOG_GAIN / 2.0:
            _check(value, bound, _LARGEST_DOUBT)
            return value
        level = value - LOG_GAIN  # the cuts were too near: delta is much smaller than Chernoff's bound
    return max(_chernoff(composition, question), MIN_LOG_DELTA)


def _chernoff(composition: Composition, question: DeltaAt) -> float:
    """Chernoff's bound of log delta from losses that dominate the true ones, for what is too small to resolve."""
    releases = prepare_all(composition, MIN_LOG_DELTA)
    bounds = []
    for plan in _plans(releases, question):
        losses = discretize_all(releases, plan)
        finite = math.fsum(count * loss.cumulant(plan.theta) for loss, count in losses) - plan.theta * question.target
        infinite = math.log(math.fsum(count * loss.infinite for loss, count in losses))
        bounds.append(float(np.logaddexp(finite, infinite)))
    return min(max(bounds), 0.0)


def prepare_all(composition: Composition, log_delta: float) -> Releases:
    """Returns the releases, cut so that all cuts together stay far below delta."""
    if log_delta < MIN_LOG_DELTA:
        raise AccountingError(f"delta = e^{log_delta:.0f} is below e^{MIN_LOG_DELTA:.0f}, the least that is resolved")
    log_mass = log_delta + _LOG_TRUNCATION - math.log(sum(count for _, count in composition))
    return [
        (pair.prepared(log_mass) if isinstance(pair, Branches) else prepare(pair, log_mass), count)
        for pair, count in composition
    ]


def discretize_all(releases: Releases, plan: Plan) -> list[tuple[Loss, int]]:
    """Returns the losses of the releases on the grid of a plan, in its direction."""
    return [
        (release.discretize(plan.grid, removed=plan.removed, floor=plan.floor), count) for release, count in releases
    ]


def _check(value: float, bound: float, slack: float) -> None:
    """Refuses an answer that is worse than Chernoff's bound from rough tables: a grid that swamps the answer."""
    if value > bound + slack + 1e-6:
        raise AccountingError(f"the privacy loss gives {value:g}, worse than its own moments with {bound:g}")


def _plans(releases: Releases, question: Question) -> list[Plan]:
    """Plans for both directions, the one that looks worse first."""
    plans = [make_plan(releases, question, removed=removed) for removed in (True, False)]
    return sorted(plans, key=lambda plan: plan.bound, reverse=True)


def _worse_direction(releases: Releases, question: Question, plans: list[Plan]) -> float:
    """The answer for removing or adding the user, whichever is larger."""
    worst = _settle(releases, question, plans[0], -math.inf)
    return max(worst, _settle(releases, question, plans[1], worst))


def _settle(releases: Releases, question: Question, plan: Plan, enough: float) -> float:
    """The answer in one direction on a grid that is fine enough, or fine enough to see that it is at most `enough`."""
    best = _trivial(releases, question, plan.removed)
    value, change, change_before, is_sharp = math.inf, math.inf, math.inf, False
    max_grid = _MAX_GRID if question.log_delta(plan.bound) >= USUAL_LOG_DELTA else _MAX_GRID_UNUSUAL
    while best > enough and plan.num_points <= (max_grid if is_sharp else _MAX_GRID):
        last, value = value, min(_ask(releases, question, plan), value)
        change, change_before, best = last - value, change, min(value, best)
        if value < math.inf and not is_sharp:
            plan, is_sharp = sharpened(releases, question, plan, question.location(value), _FIRST_GRID), True
            value = change = math.inf
            continue
        allowed = _TOLERANCE * question.scale(value)
        if change <= allowed and change_before <= 8.0 * allowed:
            return best
        plan = plan.refined()
    if best <= enough or change <= _LARGEST_DOUBT * max(question.scale(best), _SMALL) or question.may_be_loose(best):
        return best
    raise AccountingError(f"the privacy loss does not settle within 1% on a grid of {_MAX_GRID} points")


def _trivial(releases: Releases, question: Question, removed: bool) -> float:
    """The answer that follows from the largest loss of each release."""
    infinite = -math.expm1(math.fsum(count * math.log1p(-release.cut) for release, count in releases))
    largest = math.fsum(count * release.largest(removed=removed) for release, count in releases)
    return question.trivial(largest * (1.0 + 1e-9), math.log(infinite))


def _ask(releases: Releases, question: Question, plan: Plan) -> float:
    """The answer on one grid, with the window extended downwards until it holds the answer."""
    losses = discretize_all(releases, plan)
    while True:
        tail = compose(losses, plan)
        value = question.answer(tail)
        if math.isfinite(value) and tail.rounding_share(question.location(value)) > _LARGEST_SHARE:
            value = min(value, question.answer(compose(losses, plan, precise=True)))
        if plan.low <= 0.0 or question.is_inside(value, plan.low + plan.grid.spacing):
            return value
        plan = plan.extended()
        if plan.num_points > 2 * _MAX_GRID:
            raise AccountingError(f"the answer lies below every window of {2 * _MAX_GRID} points")
