"""Which accountants fit which description, and the curve that each gives."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from fedsim_userdp.errors import AccountingError
from fedsim_userdp.privacy.accounting import curves, rdp
from fedsim_userdp.privacy.accounting.curves import Curve
from fedsim_userdp.privacy.accounting.descriptions import (
    AdaptiveClipping,
    Composed,
    Description,
    FixedSize,
    FixedSizeStrata,
    HyperparameterSearch,
    NoAmplification,
    PaidSignals,
    PoissonGroups,
    PoissonUsers,
    RecordLevel,
    Run,
    TruncatedPoisson,
)
from fedsim_userdp.privacy.accounting.renyi import epsilon_bound, log_delta_bound, rdp_of
from fedsim_userdp.privacy.pld.mixture import Floats

_REASONS = {
    "pld": "its privacy loss distribution is not known here (or, for records, say which unit is meant)",
    "rdp": "the user-level event of record-level sampling has no RDP",
    "tight": "the tight accountant is for Poisson sampling of records or users, without a private choice among runs",
    "group": "group privacy is for record-level runs with one cap on records per user",
    "record": "only record-level runs have a record-level answer",
}


def methods(description: Description) -> tuple[str, ...]:
    """Returns the names of the accountants that fit a description, the default first.

    Raises:
        ValueError: `description` is not a description.
    """
    match description:
        case PoissonUsers() | PoissonGroups() | NoAmplification():
            return ("pld", "rdp")
        case RecordLevel():
            return ("group", "tight", "record")
        case TruncatedPoisson():
            return ("pld",)
        case FixedSize() | FixedSizeStrata():
            return ("rdp",)
        case AdaptiveClipping() | PaidSignals():
            return methods(description.run)
        case HyperparameterSearch():
            return ("group", "record") if isinstance(description.run, RecordLevel) else ("rdp",)
        case Composed():
            return _methods_of_parts(description.runs)
    raise ValueError(
        f"description must be an object of fedsim_userdp.privacy.accounting.descriptions, got {description!r}"
    )


def check_method(description: Description, method: str | None) -> str:
    """Returns the name of the accountant, the default where `method` is None.

    Raises:
        ValueError: `description` is not a description.
        AccountingError: The accountant does not fit it, with the reason.
    """
    allowed = methods(description)
    if method is None:
        return allowed[0]
    if method not in allowed:
        reason = _REASONS.get(str(method), "there is no such accountant")
        kind = type(description).__name__
        raise AccountingError(f"method must be one of {list(allowed)} for {kind}, got {method!r}: {reason}")
    return method


def curve(description: Description, method: str) -> Curve:
    """Returns the privacy curve of a description by an accountant out of `methods(description)`."""
    match description:
        case AdaptiveClipping() | PaidSignals():
            return curve(description.run, method)
        case PoissonGroups():
            return _worst(description.kinds(), method)
        case Composed() if any(isinstance(run, PoissonGroups) for run in description.runs):
            return _worst(description.kinds(), method)
        case _ if method == "rdp":
            return rdp.curve(description)
        case HyperparameterSearch(run=RecordLevel() as run):
            record = rdp.curve(dataclasses.replace(description, run=run.one_record()))
            return record if method == "record" else curves.grouped(record, run.records_per_user)
        case Composed():
            return _curve(description.counted(), method)
        case HyperparameterSearch():
            raise AccountingError(_REASONS[method])
        case _:
            return _curve([(description.first(1), description.num_releases)], method)


def costliest(kinds: Sequence[Composed], method: str, log_delta: float) -> tuple[int, float]:
    """Returns which of at least one kind of users has the largest epsilon, and that epsilon.

    Args:
        kinds: What is released about each kind of users, without PoissonGroups.
        method: An accountant that fits all of them.
        log_delta: log of delta, below 0.
    """
    return _largest(_bounds(kinds, log_delta), lambda kind: curve(kinds[kind], method).epsilon(log_delta))


def likely_costliest(kinds: Sequence[Composed], log_delta: float) -> int:
    """Returns which of at least one kind of users has the largest bound of epsilon."""
    bounds = _bounds(kinds, log_delta)
    return bounds.index(max(bounds))


def _bounds(kinds: Sequence[Composed], log_delta: float) -> list[float]:
    """Upper bounds of epsilon by RDP; infinite where not all of a kind is Poisson-sampled."""
    return [math.inf if rdp is None else epsilon_bound(rdp, log_delta) for rdp in map(_divergences, kinds)]


def _worst(kinds: Sequence[Composed], method: str) -> Curve:
    """The curve of the costliest kind of users, each kind being what is released about it."""
    if not kinds:
        return Curve(epsilon=lambda log_delta: 0.0, log_delta=lambda epsilon: -math.inf)
    if len(kinds) == 1:
        return curve(kinds[0], method)

    def log_delta(epsilon: float) -> float:
        bounds = [math.inf if rdp is None else log_delta_bound(rdp, epsilon) for rdp in map(_divergences, kinds)]
        return _largest(bounds, lambda kind: curve(kinds[kind], method).log_delta(epsilon))[1]

    return Curve(epsilon=lambda log_delta: costliest(kinds, method, log_delta)[1], log_delta=log_delta)


def _largest(bounds: Sequence[float], value: Callable[[int], float]) -> tuple[int, float]:
    """The place of the largest value, and that value; in the order of their bounds, until none can be larger."""
    place, largest = 0, -math.inf
    for each in sorted(range(len(bounds)), key=lambda each: -bounds[each]):
        if bounds[each] <= largest:
            break
        if (found := value(each)) > largest:
            place, largest = each, found
    return place, largest


def _divergences(kind: Composed) -> Floats | None:
    """Renyi divergences of Poisson-sampled releases; None where there are others."""
    runs = [(run, count) for run, count in kind.counted() if isinstance(run, PoissonUsers)]
    if len(runs) < len(kind.counted()):
        return None
    return rdp_of([(run.noise_multiplier, run.sampling_prob, count) for run, count in runs])


def _methods_of_parts(runs: list[Run]) -> tuple[str, ...]:
    """Names of the accountants of composed runs."""
    kinds = {type(run) for run in runs}
    caps = {run.records_per_user for run in runs if isinstance(run, RecordLevel)}
    if kinds == {RecordLevel}:
        return ("group", "tight", "record") if len(caps) == 1 else ("tight", "record")
    if RecordLevel in kinds:
        return ("tight",)
    fitting = [methods(run) for run in runs]
    return tuple(name for name in fitting[0] if all(name in names for names in fitting))


def _curve(releases: list[tuple[Run, int]], method: str) -> Curve:
    """The curve of releases made so many times each, by closed form, PLD or group privacy."""
    if method in ("record", "group"):
        runs = [(run, count) for run, count in releases if isinstance(run, RecordLevel)]
        record = curves.sampled_gaussian([(run.one_record(), count) for run, count in runs])
        return record if method == "record" else curves.grouped(record, runs[0][0].records_per_user)
    unsampled = [(run, count) for run, count in releases if isinstance(run, NoAmplification)]
    sampled = [(run, count) for run, count in releases if isinstance(run, curves.Sampled)]
    if len(unsampled) == len(releases):
        squares = [count * (run.sensitivity / run.noise_multiplier) ** 2 for run, count in unsampled]
        return curves.shifted_gaussian(math.sqrt(math.fsum(squares)))
    if len(sampled) == len(releases):
        return curves.sampled_gaussian(sampled)
    raise AccountingError(_REASONS["pld"])  # nothing is left out of a sum
