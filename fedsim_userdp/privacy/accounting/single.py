"""One release under the mixture of Gaussians, exactly: the loss is monotone, so the worst event is a half-line.

delta(eps), user removed = P(x > t) - e^eps Q(x > t), L(t) = eps
delta(eps), user added   = Q(x < t) - e^eps P(x < t), L(t) = -eps
"""

import numpy as np
from scipy import special

from fedsim_userdp.privacy.accounting.gaussian import log_difference
from fedsim_userdp.privacy.pld.mixture import Mixture
from fedsim_userdp.privacy.pld.roots import crossing

_FARTHEST = 1e6  # standard deviations: no delta that anyone asks for lies beyond


def log_delta(mixture: Mixture, epsilon: float) -> float:
    """Returns log delta(epsilon) of one release, the larger of both directions, for epsilon >= 0."""
    scale, support = mixture.noise_multiplier, mixture.support
    high = _threshold(mixture, epsilon)
    with_user = special.logsumexp(mixture.log_weights + special.log_ndtr((support - high) / scale))
    removed = log_difference(float(with_user), epsilon + float(special.log_ndtr(-high / scale)), 1.0 + epsilon)
    if support[0] == 0.0 and -epsilon <= mixture.log_weights[0]:
        return removed  # adding a user never loses more than -log w_0
    low = _threshold(mixture, -epsilon)
    with_user = special.logsumexp(mixture.log_weights + special.log_ndtr((low - support) / scale))
    without = float(special.log_ndtr(low / scale))
    return max(removed, log_difference(without, epsilon + float(with_user), 1.0 + epsilon))


def epsilon(mixture: Mixture, log_delta_target: float) -> float:
    """Returns the least epsilon >= 0 whose log delta is at most the target."""

    def excess(value: float) -> float:
        return max(log_delta(mixture, value), 2.0 * log_delta_target - 1.0) - log_delta_target  # kept finite

    if excess(0.0) <= 0.0:
        return 0.0
    high = 1.0
    while excess(high) > 0.0:
        high *= 2.0
    return crossing(excess, 0.0, high, width=1e-12, close=1e-12)


def _threshold(mixture: Mixture, loss: float) -> float:
    """The output with this privacy loss."""

    def shortfall(x: float) -> float:
        return loss - float(mixture.log_ratio(np.array([x]))[0][0])

    scale, top = mixture.noise_multiplier, float(mixture.support[-1])
    high = top / 2.0 + scale**2 * (loss - float(mixture.log_weights[-1])) / top  # the largest count alone reaches it
    low, step = min(0.0, high), scale
    while shortfall(low) <= 0.0 and low > -_FARTHEST * scale:
        low, step = low - step, 2.0 * step
    return crossing(shortfall, low, high, width=1e-14, close=1e-14) if high > low else high
