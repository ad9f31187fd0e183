"""Which curve is whose: the accountants behind `accounting`, as pairs of epsilon(log delta) and log delta(epsilon)."""

import math
from collections.abc import Callable

from fedsim_userdp.privacy import gaussian, pld, rdp
from fedsim_userdp.privacy.curve import Curve
from fedsim_userdp.privacy.descriptions import Description
from fedsim_userdp.privacy.errors import AccountingError
from fedsim_userdp.privacy.group import log_delta_factor
from fedsim_userdp.privacy.mixture import binomial_mixture


def sampled_gaussian(noise_multiplier: float, sampling_prob: float, rounds: int, records: int = 1) -> Curve:
    """Returns the PLD curve for a user with `records` records, each sampled independently in each of `rounds` rounds.

    Args:
        noise_multiplier: In (0, inf).
        sampling_prob: In (0, 1]; at 1 the curve is the closed form of the Gaussian.
        rounds: At least 1.
        records: At least 1; 1 is the Poisson-subsampled Gaussian, checked against RDP in closed form.
    """
    if sampling_prob == 1.0:
        return shifted_gaussian(records * math.sqrt(rounds) / noise_multiplier)
    composition = [(binomial_mixture(noise_multiplier, sampling_prob, records), rounds)]
    return Curve(
        epsilon=lambda log_delta: pld.epsilon(composition, log_delta),
        log_delta=lambda epsilon: pld.log_delta(composition, epsilon),
    )


def shifted_gaussian(mu: float) -> Curve:
    """Returns the exact curve of N(0, 1) against N(mu, 1)."""
    return Curve(
        epsilon=lambda log_delta: gaussian.epsilon(mu, log_delta),
        log_delta=lambda epsilon: gaussian.log_delta(mu, epsilon),
    )


def renyi(description: Description) -> Curve:
    """Returns the RDP curve of a description under its own neighbouring relation."""
    return rdp.curve(description.event(), description.adjacency)


def grouped(record: Curve, records_per_user: int) -> Curve:
    """Returns the user-level curve that group privacy gives from a record-level one, for k = `records_per_user`."""

    def log_delta(epsilon: float) -> float:
        share = epsilon / records_per_user
        return min(record.log_delta(share) + log_delta_factor(share, records_per_user), 0.0)

    def epsilon(target: float) -> float:
        def shortfall(share: float) -> float:
            """How far a record-level epsilon of `share` is from being enough; positive where it is."""
            return share - record.epsilon(target - log_delta_factor(share, records_per_user))

        return records_per_user * _first_root(shortfall, record.epsilon(target - math.log(records_per_user)))

    return Curve(epsilon=epsilon, log_delta=log_delta)


def _first_root(function: Callable[[float], float], low: float) -> float:
    """An argument where an increasing-at-last function is just above 0, from a `low` end where it is not yet."""
    if low == 0.0:
        return 0.0
    high, at_low, at_high = 2.0 * low, function(low), function(2.0 * low)
    for _ in range(60):
        if at_high >= 0.0:
            break
        low, at_low, high = high, at_high, 2.0 * high
        at_high = function(high)
    else:
        raise AccountingError("group privacy gives no finite epsilon here: too little noise for so many records")
    for _ in range(100):
        if high - low <= 1e-4 * high or at_high <= 1e-4 * high:
            return high
        middle = low + (high - low) * min(max(-at_low / (at_high - at_low) + 1e-4, 0.05), 0.95)
        at_middle = function(middle)
        if at_middle >= 0.0:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return high
