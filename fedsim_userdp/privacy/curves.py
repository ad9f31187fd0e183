"""Which curve is whose: the accountants behind `accounting`, as pairs of epsilon(log delta) and log delta(epsilon)."""

import math
from collections.abc import Callable

from fedsim_userdp.privacy import gaussian, pld, rdp
from fedsim_userdp.privacy.curve import Curve
from fedsim_userdp.privacy.descriptions import Description
from fedsim_userdp.privacy.errors import AccountingError
from fedsim_userdp.privacy.group import log_delta_factor
from fedsim_userdp.privacy.mixture import Floats, binomial_mixture
from fedsim_userdp.privacy.renyi import epsilon_bound, log_delta_bound, rdp_at_integers
from fedsim_userdp.privacy.roots import crossing

_ALARM = 2e-3
_MAX_SHARE = 1e6


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
    exact = Curve(
        epsilon=lambda log_delta: pld.epsilon(composition, log_delta),
        log_delta=lambda epsilon: pld.log_delta(composition, epsilon),
    )
    return checked(exact, rounds * rdp_at_integers(noise_multiplier, sampling_prob)) if records == 1 else exact


def checked(exact: Curve, rdp: Floats) -> Curve:
    """Returns a PLD curve that is never above RDP: an answer above it by more than its own tolerance is refused.

    Where delta is too small for the PLD (below e^-640, which only large groups of records ask for), RDP answers.

    Args:
        exact: The PLD curve.
        rdp: Renyi divergences of the whole run at the integer orders of `renyi`.
    """

    def epsilon(log_delta: float) -> float:
        ceiling = epsilon_bound(rdp, log_delta)
        if log_delta < pld.MIN_LOG_DELTA:
            return ceiling
        return _at_most(exact.epsilon(log_delta), ceiling, _ALARM * ceiling)

    def log_delta(epsilon: float) -> float:
        ceiling = log_delta_bound(rdp, epsilon)
        return ceiling if ceiling < pld.MIN_LOG_DELTA else _at_most(exact.log_delta(epsilon), ceiling, _ALARM)

    return Curve(epsilon=epsilon, log_delta=log_delta)


def _at_most(value: float, ceiling: float, slack: float) -> float:
    """The smaller of two bounds, or AccountingError where the one that should be smaller is not."""
    if value > ceiling + slack + 1e-9:
        raise AccountingError(f"the privacy loss distribution gives {value:g}, worse than RDP with {ceiling:g}")
    return min(value, ceiling)


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
            """By how much a record-level epsilon of `share` is too small for itself, relatively."""
            return record.epsilon(target - log_delta_factor(share, records_per_user)) / share - 1.0

        low = record.epsilon(target - math.log(records_per_user))
        if low == 0.0 or records_per_user == 1:
            return low * records_per_user
        high = low
        while shortfall(high) > 0.0:
            low, high = high, 2.0 * high
            if high > _MAX_SHARE:
                raise AccountingError(f"group privacy gives no record-level epsilon below {_MAX_SHARE:g} here")
        share = crossing(shortfall, low, high, width=1e-4, close=1e-4) if high > low else low
        return records_per_user * share

    return Curve(epsilon=epsilon, log_delta=log_delta)
