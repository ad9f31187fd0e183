"""The accountants other than RDP, as privacy curves: closed form, checked PLD, and group privacy on top of either."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from fedsim_userdp.errors import AccountingError
from fedsim_userdp.privacy import pld
from fedsim_userdp.privacy.accounting import gaussian, single
from fedsim_userdp.privacy.accounting.descriptions import PoissonUsers, RecordLevel, TruncatedPoisson
from fedsim_userdp.privacy.accounting.group import log_delta_factor
from fedsim_userdp.privacy.accounting.renyi import epsilon_bound, log_delta_bound, rdp_at_integers
from fedsim_userdp.privacy.pld.branches import Branches
from fedsim_userdp.privacy.pld.mixture import Floats, Mixture, binomial_mixture
from fedsim_userdp.privacy.pld.roots import crossing, minimize

_ALARM = 2e-3
_SMALL_LOG_DELTA = -30.0
_MAX_EPSILON = 1e9
_FAR = 4.0  # times the least share that is possible: an answer beyond may have jumped over a smaller one
_POWERS = (0.0, -0.05, *map(float, range(-1, -7, -1)), -math.inf)  # of two: shares of epsilon that are tried first


@dataclasses.dataclass(frozen=True)
class Curve:
    """The two answers of an accountant; both are upper bounds.

    Attributes:
        epsilon: log delta < 0 -> epsilon in [0, inf).
        log_delta: epsilon >= 0 -> log delta <= 0.
    """

    epsilon: Callable[[float], float]
    log_delta: Callable[[float], float]


Sampled = PoissonUsers | RecordLevel | TruncatedPoisson


def sampled_gaussian(releases: Sequence[tuple[Sampled, int]]) -> Curve:
    """Returns the user-level curve of Poisson-sampled releases: exact for one release or no sampling, else PLD.

    Args:
        releases: Single releases and how often each is made. A PoissonUsers one counts as one record per user.
    """
    if any(isinstance(release, TruncatedPoisson) for release, _ in releases):
        return larger(*(_composed([(_pair(one, added), count) for one, count in releases]) for added in (False, True)))
    if all(release.sampling_prob == 1.0 for release, _ in releases):
        return shifted_gaussian(
            math.sqrt(sum(count * (_records(release) / release.noise_multiplier) ** 2 for release, count in releases))
        )
    composition = [(_mixture(release), count) for release, count in releases]
    if len(composition) == 1 and composition[0][1] == 1:
        mixture = composition[0][0]
        return Curve(
            epsilon=lambda log_delta: single.epsilon(mixture, log_delta),
            log_delta=lambda epsilon: single.log_delta(mixture, epsilon),
        )
    exact = _composed(composition)
    if any(_records(release) > 1 for release, _ in releases):
        return exact
    divergences = [count * rdp_at_integers(r.noise_multiplier, r.sampling_prob) for r, count in releases]
    return checked(exact, sum(divergences[1:], divergences[0]))


def checked(exact: Curve, rdp: Floats) -> Curve:
    """Returns a PLD curve that is never above RDP: an answer above it by more than its own tolerance is refused.

    Where delta is below e^-60, which only large groups of records ask for, the smaller of both answers; below e^-640,
    where normal tails underflow, RDP alone.

    Args:
        exact: The PLD curve.
        rdp: Renyi divergences of the whole run at the integer orders of `renyi`.
    """

    def epsilon(log_delta: float) -> float:
        ceiling = epsilon_bound(rdp, log_delta)
        if log_delta < pld.MIN_LOG_DELTA:
            return ceiling
        slack = _ALARM * ceiling if log_delta >= pld.USUAL_LOG_DELTA else math.inf
        return _at_most(exact.epsilon(log_delta), ceiling, slack)

    def log_delta(epsilon: float) -> float:
        ceiling = log_delta_bound(rdp, epsilon)
        if ceiling < pld.MIN_LOG_DELTA:
            return ceiling
        value = exact.log_delta(epsilon)
        return min(value, ceiling) if ceiling < _SMALL_LOG_DELTA else _at_most(value, ceiling, _ALARM)

    return Curve(epsilon=epsilon, log_delta=log_delta)


def shifted_gaussian(mu: float) -> Curve:
    """Returns the exact curve of N(0, 1) against N(mu, 1)."""
    return Curve(
        epsilon=lambda log_delta: gaussian.epsilon(mu, log_delta),
        log_delta=lambda epsilon: gaussian.log_delta(mu, epsilon),
    )


def grouped(record: Curve, records_per_user: int, limit: float = _MAX_EPSILON) -> Curve:
    """Returns the user-level curve that group privacy gives from a record-level one, for k = `records_per_user`.

    Epsilon is the least k e at which the record-level curve reaches e = epsilon(delta_record), delta_record being what
    `to_record_level(k e, delta, k)` demands. Delta is the least that the conversion gives at that epsilon or a smaller
    one: the conversion's own delta may grow with epsilon.

    Args:
        record: Record-level curve.
        records_per_user: k >= 1.
        limit: User-level epsilon above which the search may give up, with AccountingError.
    """

    def converted(share: float) -> float:
        return min(record.log_delta(share) + log_delta_factor(share, records_per_user), 0.0)

    def log_delta(epsilon: float) -> float:
        share = epsilon / records_per_user
        if records_per_user == 1:
            return converted(share)
        values = {power: converted(share * 2.0**power) for power in _POWERS}
        best = min(values, key=lambda power: values[power])
        if best in (0.0, -math.inf):
            return values[best]
        power = minimize(lambda power: converted(share * 2.0**power), best - 1.0, min(best + 1.0, 0.0))
        return min(converted(share * 2.0**power), values[best])

    def epsilon(target: float) -> float:
        @functools.cache
        def shortfall(share: float) -> float:
            """By how much a record-level epsilon of `share` is too small for itself, relatively."""
            return record.epsilon(target - log_delta_factor(share, records_per_user)) / share - 1.0

        least = record.epsilon(target - math.log(records_per_user))
        if least == 0.0 or records_per_user == 1:
            return least * records_per_user
        low, high, margin = least, least, 0.01
        while (short := shortfall(high)) > 0.0 and high * records_per_user <= limit:
            low, high, margin = high, high * (1.0 + short) * (1.0 + margin), 2.0 * margin
        if high > _FAR * least and shortfall(dip := _first_dip(shortfall, least, high)) <= 0.0:
            low, high, short = least, dip, 0.0
        if short > 0.0:
            raise AccountingError(f"group privacy gives no epsilon below {limit:g} here")
        share = crossing(shortfall, low, high, width=1e-4, close=1e-4) if high > low else low
        return records_per_user * share

    return Curve(epsilon=epsilon, log_delta=log_delta)


def larger(one: Curve, other: Curve) -> Curve:
    """Returns the curve that is at least both of two."""
    return Curve(
        epsilon=lambda log_delta: max(one.epsilon(log_delta), other.epsilon(log_delta)),
        log_delta=lambda epsilon: max(one.log_delta(epsilon), other.log_delta(epsilon)),
    )


def _composed(composition: pld.Composition) -> Curve:
    """The curve of composed pairs."""
    return Curve(
        epsilon=lambda log_delta: pld.epsilon(composition, log_delta),
        log_delta=lambda epsilon: pld.log_delta(composition, epsilon),
    )


def _pair(release: Sampled, added: bool) -> Mixture | Branches:
    """The dominating pair of one release; of truncated cohorts, for a user who is added or removed."""
    return release.pair(added=added) if isinstance(release, TruncatedPoisson) else _mixture(release)


def _mixture(release: Sampled) -> Mixture:
    """The dominating pair of one release of independently sampled records or users."""
    return binomial_mixture(release.noise_multiplier, release.sampling_prob, _records(release))


def _records(release: Sampled) -> int:
    """Number of records, or 1 where the sampled unit is the user."""
    return release.records_per_user if isinstance(release, RecordLevel) else 1


def _first_dip(function: Callable[[float], float], low: float, high: float) -> float:
    """The first local minimum between two positive arguments, as far as nine points on a log scale show it."""
    logs = [math.log(low) + i / 8.0 * math.log(high / low) for i in range(9)]
    values = [function(math.exp(each)) for each in logs]
    at = next((i for i in range(1, 8) if values[i] <= values[i + 1]), 7)
    return math.exp(minimize(lambda each: function(math.exp(each)), logs[at - 1], logs[at + 1]))


def _at_most(value: float, ceiling: float, slack: float) -> float:
    """The smaller of two bounds, or AccountingError where the one that should be smaller is not."""
    if value > ceiling + slack + 1e-9:
        raise AccountingError(f"the privacy loss distribution gives {value:g}, worse than RDP with {ceiling:g}")
    return min(value, ceiling)
