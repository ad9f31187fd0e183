"""Renyi accounting, by way of dp_accounting, which is imported only here and only when it is needed."""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fedsim_userdp.errors import AccountingError
from fedsim_userdp.privacy.accounting.curves import Curve
from fedsim_userdp.privacy.accounting.descriptions import (
    AdaptiveClipping,
    Adjacency,
    Composed,
    Description,
    FixedSize,
    FixedSizeStrata,
    HyperparameterSearch,
    NoAmplification,
    PaidSignals,
    PoissonGroups,
    inner_run,
)
from fedsim_userdp.privacy.pld.mixture import Floats

if TYPE_CHECKING:
    import dp_accounting

_ROUNDING = 1e-14  # of a divergence near zero, which would else come out negative, and be taken for none at all


def curve(description: Description) -> Curve:
    """Returns the RDP curve of a description under its own neighbouring relation, at dp_accounting's orders.

    Args:
        description: Any but a RecordLevel one: its user-level event has no RDP.

    Raises:
        AccountingError: RDP does not support the description. The curve raises it where it has no finite answer.
    """
    from dp_accounting.rdp import rdp_privacy_accountant as renyi

    orders, rdp = np.array(renyi.DEFAULT_RDP_ORDERS), divergences(description)
    if not np.any(np.isfinite(rdp)):
        raise AccountingError("RDP has no finite answer here: too little noise for double precision")
    orders, rdp = orders[np.isfinite(rdp)], rdp[np.isfinite(rdp)]

    def epsilon(log_delta: float) -> float:
        if log_delta > -700.0:
            return float(renyi.compute_epsilon(orders, rdp, math.exp(log_delta))[0])
        return float(np.min(rdp + np.log1p(-1.0 / orders) - (log_delta + np.log(orders)) / (orders - 1.0)))

    def log_delta(epsilon: float) -> float:
        value = float(renyi.compute_delta(orders, rdp, epsilon)[0])
        return math.log(value) if value > 0.0 else -700.0

    return Curve(epsilon=epsilon, log_delta=log_delta)


def divergences(description: Description) -> Floats:
    """Returns the Renyi divergences of a run at dp_accounting's default orders; infinite where they did not converge.

    The divergence of one release is computed once and multiplied, so that a run can ask after every round. That of a
    sample without replacement is never more than without sampling, since Renyi divergence is quasi-convex; its own
    bound passes that for large cohorts.
    """
    match description:
        case HyperparameterSearch() if _has_groups(description):
            return _of_costliest(description)
        case HyperparameterSearch():
            return _of_event(description.event(), description.adjacency)
        case AdaptiveClipping() | PaidSignals():
            return divergences(description.run)
        case Composed():
            return np.asarray(np.sum([count * divergences(run) for run, count in description.counted()], axis=0))
        case FixedSizeStrata():
            return np.asarray(np.max([divergences(group) for group in description.apart()], axis=0))
        case FixedSize():
            whole = NoAmplification(description.noise_multiplier, 1, Adjacency.REPLACE_RECORDS)
            each = np.minimum(_of_one_release(description.first(1)), _of_one_release(whole))
            return description.num_releases * each
        case _:
            return description.num_releases * _of_one_release(description.first(1))


def _has_groups(search: HyperparameterSearch) -> bool:
    """Whether the single runs are of PoissonGroups."""
    return isinstance(inner_run(search.run), PoissonGroups)


def _of_costliest(search: HyperparameterSearch) -> Floats:
    """Renyi divergences of a search over runs of PoissonGroups: at each order those of its costliest group."""
    import dp_accounting as dp

    run = inner_run(search.run)
    events = [kind.event() for kind in run.kinds()] if isinstance(run, PoissonGroups) else []
    searches = [dp.dp_event.RepeatAndSelectDpEvent(event, search.mean_runs, search.shape) for event in events]
    divergences = [_of_event(event, search.adjacency) for event in searches]
    return np.asarray(np.max([_of_no_event(), *divergences], axis=0))


@functools.lru_cache(maxsize=4096)
def _of_one_release(release: Description) -> Floats:
    """Renyi divergences of one release."""
    return _of_event(release.event(), release.adjacency)


def _of_no_event() -> Floats:
    """Renyi divergences where nothing is released."""
    from dp_accounting.rdp import rdp_privacy_accountant as renyi

    return np.zeros(len(renyi.DEFAULT_RDP_ORDERS))


def _of_event(event: "dp_accounting.DpEvent", adjacency: Adjacency) -> Floats:
    """Renyi divergences of an event whose noise already holds the sensitivity."""
    import dp_accounting as dp
    from dp_accounting import rdp

    relations = {
        Adjacency.ADD_OR_REMOVE_USER: dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        Adjacency.REPLACE_USER: dp.NeighboringRelation.REPLACE_ONE,
        Adjacency.REPLACE_RECORDS: dp.NeighboringRelation.REPLACE_ONE,
        Adjacency.ZERO_OUT_USER: dp.NeighboringRelation.REPLACE_SPECIAL,
    }
    accountant = rdp.RdpAccountant(neighboring_relation=relations[adjacency])
    try:
        with _without_warnings():
            accountant.compose(event)
    except dp.UnsupportedEventError as error:
        raise AccountingError(f"RDP cannot account for {event} under '{adjacency.value}': {error}") from error
    return np.maximum(np.array(accountant.rdp, dtype=np.float64), 0.0) + _ROUNDING


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Keeps dp_accounting from reporting each order that it leaves out; fewer orders only loosen the bound."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
