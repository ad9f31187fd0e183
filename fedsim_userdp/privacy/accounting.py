"""What a run costs: epsilon(delta), delta(epsilon) and calibration, for every description and accountant.

The public face of the accounting. It needs numpy and scipy; dp_accounting is imported when RDP is asked for.

    from fedsim_userdp.privacy import accounting as acc
    run = acc.calibrate(acc.UserWise(1.0, sampling_prob=0.05, rounds=200), epsilon=3.0, delta=1e-5)
    acc.epsilon(run, 1e-5)

| description | methods (default first) | guarantee |
|---|---|---|
| UserWise | pld, rdp | user level, add or remove |
| RecordLevel | group, tight | user level, add or remove |
| RecordLevel | record | record level only |
| FixedSize | rdp | user level, replace one |
| NoAmplification | pld (closed form), rdp | user level, zero out or replace one |
| AdaptiveClipping | those of its run | that of its run |
| HyperparameterSearch | rdp; group, record for RecordLevel | that of its run |
"""

import dataclasses
import math
from typing import TypeVar

from fedsim_userdp.privacy import curves
from fedsim_userdp.privacy.calibration import least_noise
from fedsim_userdp.privacy.curve import Curve
from fedsim_userdp.privacy.descriptions import (
    AdaptiveClipping,
    Adjacency,
    Description,
    FixedSize,
    HyperparameterSearch,
    NoAmplification,
    RecordLevel,
    Unamplified,
    UserWise,
)
from fedsim_userdp.privacy.errors import AccountingError
from fedsim_userdp.privacy.group import is_vacuous, log_delta_factor, to_record_level, to_user_level
from fedsim_userdp.privacy.pld import MIN_LOG_DELTA
from fedsim_userdp.privacy.validation import check_delta, check_epsilon

__all__ = [
    "AccountingError",
    "AdaptiveClipping",
    "Adjacency",
    "Description",
    "FixedSize",
    "HyperparameterSearch",
    "NoAmplification",
    "RecordLevel",
    "Unamplified",
    "UserWise",
    "calibrate",
    "delta",
    "epsilon",
    "is_vacuous",
    "methods",
    "to_record_level",
    "to_user_level",
]

AnyDescription = TypeVar(
    "AnyDescription", UserWise, RecordLevel, FixedSize, NoAmplification, AdaptiveClipping, HyperparameterSearch
)


def epsilon(description: Description, delta: float, method: str | None = None) -> float:
    """Returns an upper bound of the epsilon of a run at `delta`.

    Args:
        description: What the run releases; its `adjacency` is the neighbouring relation of the answer (but one record
            for method "record").
        delta: In (0, 1).
        method: Accountant, one of `methods(description)`; the first of them by default.

    Returns:
        Epsilon in [0, inf). PLD is within about 0.1% of the exact value, from above.

    Raises:
        ValueError: delta is out of range, or the accountant does not fit the description.
        AccountingError: A ValueError for what cannot be accounted for, with the reason.
    """
    return _curve(description, method).epsilon(math.log(check_delta("delta", delta)))


def delta(description: Description, epsilon: float, method: str | None = None) -> float:
    """Returns an upper bound of the delta of a run at `epsilon`.

    Args:
        description: What the run releases, as for `epsilon`.
        epsilon: In (0, inf).
        method: Accountant, as for `epsilon`.

    Returns:
        Delta in (0, 1]; never below about 1e-278. 1 is vacuous: it says that this accountant guarantees nothing.

    Raises:
        ValueError: epsilon is out of range, or the accountant does not fit the description.
        AccountingError: A ValueError for what cannot be accounted for, with the reason.
    """
    log_delta = _curve(description, method).log_delta(check_epsilon("epsilon", epsilon))
    return math.exp(min(max(log_delta, MIN_LOG_DELTA), 0.0))


def calibrate(
    description: AnyDescription, *, epsilon: float, delta: float, method: str | None = None
) -> AnyDescription:
    """Returns the description with the least noise that meets (epsilon, delta).

    Args:
        description: What the run releases; its own noise multiplier is ignored.
        epsilon: Target, in (0, inf).
        delta: In (0, 1).
        method: Accountant, as for the function `epsilon`.

    Returns:
        A new description, whose epsilon by the same accountant is at most the target and at least 99% of it.

    Raises:
        ValueError: An argument is out of range, or the accountant does not fit the description.
        AccountingError: A ValueError for a target that no noise multiplier from 0.001 to 1e7 meets.
    """
    target, log_delta = check_epsilon("epsilon", epsilon), math.log(check_delta("delta", delta))
    _check_method(description, method)
    run = description.run if isinstance(description, AdaptiveClipping) else description

    def epsilon_of(noise_multiplier: float) -> float:
        return _curve(run.with_noise_multiplier(noise_multiplier), method).epsilon(log_delta)

    start, step = _first_guess(run, target, log_delta, method)
    return description.with_noise_multiplier(least_noise(epsilon_of, target, start, step))


def _first_guess(run: Description, target: float, log_delta: float, method: str | None) -> tuple[float, float]:
    """Where the search for the noise multiplier starts, and its first step on a log scale."""
    if not (isinstance(run, RecordLevel) and _check_method(run, method) == "group"):
        return 1.0, 0.7
    share = target / run.records_per_user
    record_log_delta = log_delta - log_delta_factor(share, run.records_per_user)

    def epsilon_of(noise_multiplier: float) -> float:
        return _curve(run.with_noise_multiplier(noise_multiplier), "record").epsilon(record_log_delta)

    return least_noise(epsilon_of, share, 1.0, 0.7), 0.002


def methods(description: Description) -> tuple[str, ...]:
    """Returns the names of the accountants that fit a description, the default first.

    Raises:
        ValueError: `description` is not a description.
    """
    match description:
        case UserWise() | NoAmplification():
            return ("pld", "rdp")
        case RecordLevel():
            return ("group", "tight", "record")
        case FixedSize():
            return ("rdp",)
        case AdaptiveClipping():
            return methods(description.run)
        case HyperparameterSearch():
            return ("group", "record") if isinstance(description.run, RecordLevel) else ("rdp",)
    raise ValueError(
        f"description must be one of {[kind.__name__ for kind in AnyDescription.__constraints__]}, got {description!r}"
    )


def _check_method(description: Description, method: str | None) -> str:
    """The name of the accountant, if it fits."""
    allowed = methods(description)
    if method is None:
        return allowed[0]
    if method not in allowed:
        reason = _REASONS.get((type(description), str(method)), "this accountant does not cover it")
        raise AccountingError(
            f"method must be one of {list(allowed)} for {type(description).__name__}, got {method!r}: {reason}"
        )
    return method


_REASONS = {
    (FixedSize, "pld"): "no privacy loss distribution is known here for cohorts without replacement under replace-one",
    (RecordLevel, "pld"): "say which unit is meant: 'group' or 'tight' for a user, 'record' for one record",
    (HyperparameterSearch, "pld"): "the cost of a search over hyper-parameters is known in RDP terms only",
    (HyperparameterSearch, "tight"): "the cost of a search over hyper-parameters is known in RDP terms only",
}


def _curve(description: Description, method: str | None) -> Curve:
    """The curve of a description by an accountant that fits it."""
    name = _check_method(description, method)
    match description:
        case AdaptiveClipping():
            return _curve(description.run, name)
        case UserWise() if name == "pld":
            return curves.sampled_gaussian(description.noise_multiplier, description.sampling_prob, description.rounds)
        case NoAmplification() if name == "pld":
            return curves.shifted_gaussian(
                description.sensitivity * math.sqrt(description.max_participations) / description.noise_multiplier
            )
        case RecordLevel() if name == "tight":
            return curves.sampled_gaussian(
                description.noise_multiplier, description.sampling_prob, description.steps, description.records_per_user
            )
        case RecordLevel():
            record = curves.sampled_gaussian(description.noise_multiplier, description.sampling_prob, description.steps)
            return record if name == "record" else curves.grouped(record, description.records_per_user)
        case HyperparameterSearch(run=RecordLevel() as run):
            record = curves.renyi(dataclasses.replace(description, run=run.one_record()))
            return record if name == "record" else curves.grouped(record, run.records_per_user)
        case _:
            return curves.renyi(description)
