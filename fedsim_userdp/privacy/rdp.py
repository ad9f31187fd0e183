"""Renyi accounting, by way of dp_accounting, which is imported only here and only when it is needed."""

import math
from typing import TYPE_CHECKING

from fedsim_userdp.privacy.curve import Curve
from fedsim_userdp.privacy.descriptions import Adjacency
from fedsim_userdp.privacy.errors import AccountingError

if TYPE_CHECKING:
    import dp_accounting


def curve(event: "dp_accounting.DpEvent", adjacency: Adjacency) -> Curve:
    """Returns the RDP curve of an event whose noise already holds the sensitivity.

    Args:
        event: Event of the whole run.
        adjacency: Neighbouring relation that the event is stated for.

    Raises:
        AccountingError: RDP does not support the pair. The curve raises it where it has no finite answer.
    """
    accountant = _accountant(event, adjacency)

    def epsilon(log_delta: float) -> float:
        if log_delta < -700.0:
            raise AccountingError(f"RDP is not evaluated at a delta of e^{log_delta:.0f}")
        value = float(accountant.get_epsilon(math.exp(log_delta)))
        if not math.isfinite(value):
            raise AccountingError("RDP has no finite epsilon here: too little noise for double precision")
        return value

    def log_delta(epsilon: float) -> float:
        value = float(accountant.get_delta(epsilon))
        return math.log(value) if value > 0.0 else -700.0

    return Curve(epsilon=epsilon, log_delta=log_delta)


def _accountant(event: "dp_accounting.DpEvent", adjacency: Adjacency) -> "dp_accounting.rdp.RdpAccountant":
    """An accountant that has composed the event."""
    import dp_accounting as dp
    from dp_accounting import rdp

    relations = {
        Adjacency.ADD_OR_REMOVE_USER: dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        Adjacency.ADD_OR_REMOVE_RECORD: dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        Adjacency.REPLACE_USER: dp.NeighboringRelation.REPLACE_ONE,
        Adjacency.ZERO_OUT_USER: dp.NeighboringRelation.REPLACE_SPECIAL,
    }
    accountant = rdp.RdpAccountant(neighboring_relation=relations[adjacency])
    try:
        accountant.compose(event)
    except dp.UnsupportedEventError as error:
        raise AccountingError(f"RDP cannot account for {event} under '{adjacency.value}': {error}") from error
    return accountant
