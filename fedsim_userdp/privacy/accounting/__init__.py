"""What a run costs: epsilon(delta), delta(epsilon) and calibration, for every description and accountant.

The public face of the accounting. It needs numpy and scipy; dp_accounting is imported when RDP is asked for.

    from fedsim_userdp.privacy import accounting as acc
    run = acc.calibrate(acc.PoissonUsers(1.0, sampling_prob=0.05, rounds=200), epsilon=3.0, delta=1e-5)
    acc.epsilon(run, 1e-5)

| description | methods, the default first | guarantee |
|---|---|---|
| PoissonUsers | pld, rdp | user level, add or remove |
| PoissonGroups | pld, rdp | user level, add or remove, or zero out: that of the costliest group |
| RecordLevel | group, tight | user level, add or remove |
| RecordLevel | record | record level only: none for users |
| FixedSize | rdp | user level, replace one |
| NoAmplification | pld (closed form), rdp | user level, zero out or replace one |
| PaidSignals, AdaptiveClipping | those of its run | that of its run |
| HyperparameterSearch | rdp; group, record for RecordLevel | that of its run |
| Composed | those that all its parts have | that of its parts |

Every number is an upper bound. Random sources, finite precision of the noise and the training code are not part of it.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from fedsim_userdp import cache
from fedsim_userdp.errors import AccountingError
from fedsim_userdp.privacy.accounting import accountants, curves
from fedsim_userdp.privacy.accounting.accountants import methods
from fedsim_userdp.privacy.accounting.calibration import least_noise
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
    PoissonUsers,
    RecordLevel,
    TruncatedPoisson,
    Unamplified,
    inner_run,
)
from fedsim_userdp.privacy.accounting.group import is_vacuous, log_delta_factor, to_record_level, to_user_level
from fedsim_userdp.privacy.accounting.trajectories import counted
from fedsim_userdp.privacy.pld import MIN_LOG_DELTA
from fedsim_userdp.privacy.validation import MAX_COUNT, check_count, check_delta, check_epsilon

__all__ = [
    "AccountingError",
    "AdaptiveClipping",
    "Adjacency",
    "Composed",
    "Description",
    "FixedSize",
    "FixedSizeStrata",
    "HyperparameterSearch",
    "NoAmplification",
    "PaidSignals",
    "PoissonGroups",
    "PoissonUsers",
    "RecordLevel",
    "TruncatedPoisson",
    "Unamplified",
    "calibrate",
    "delta",
    "epsilon",
    "epsilon_per_round",
    "epsilons_by_group",
    "inner_run",
    "is_vacuous",
    "methods",
    "to_record_level",
    "to_user_level",
]

AnyDescription = TypeVar("AnyDescription", bound=Description)


def epsilon(description: Description, delta: float, method: str | None = None) -> float:
    """Returns an upper bound of the epsilon of a run at `delta`.

    Args:
        description: What the run releases; its `adjacency` is the neighbouring relation of the answer (but one record
            for method "record").
        delta: In (0, 1).
        method: Accountant, one of `methods(description)`; the first of them by default.

    Returns:
        Epsilon in [0, inf). PLD is as a rule within 0.1% of the exact value, from above.

    Raises:
        ValueError: delta is out of range, or `description` is none.
        AccountingError: A ValueError for what cannot be accounted for, with the reason.
    """
    log_delta = math.log(check_delta("delta", delta))
    name = accountants.check_method(description, method)
    return cache.remembered(
        ("epsilon", repr(description), name, log_delta),
        lambda: accountants.curve(description, name).epsilon(log_delta),
        worth=_is_slow(description),
    )


def delta(description: Description, epsilon: float, method: str | None = None) -> float:
    """Returns an upper bound of the delta of a run at `epsilon`.

    Args:
        description: What the run releases, as for `epsilon`.
        epsilon: In (0, inf).
        method: Accountant, as for `epsilon`.

    Returns:
        Delta in (0, 1]; never below about 1e-278, and perhaps loose below 1e-13. 1 is vacuous, since it
        says that this accountant guarantees nothing.

    Raises:
        ValueError: epsilon is out of range, or `description` is none.
        AccountingError: A ValueError for what cannot be accounted for, with the reason.
    """
    at = check_epsilon("epsilon", epsilon)
    name = accountants.check_method(description, method)
    log_delta = cache.remembered(
        ("log_delta", repr(description), name, at),
        lambda: max(accountants.curve(description, name).log_delta(at), MIN_LOG_DELTA),
        worth=_is_slow(description),
    )
    return math.exp(min(log_delta, 0.0))


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
        A new description, whose epsilon by the same accountant is at most the target and at least 99% of it. Where
        epsilon jumps over that range as noise grows (group privacy at rare sampling, RDP near zero), it is the least
        noise below the jump.

    Raises:
        ValueError: An argument is out of range, or `description` is none.
        AccountingError: A ValueError for what cannot be accounted for, or for a target that noise multipliers from
            0.001 to 1e7 do not enclose.
    """
    target, log_delta = check_epsilon("epsilon", epsilon), math.log(check_delta("delta", delta))
    name = accountants.check_method(description, method)
    run = _without_split(description)
    noise_multiplier = cache.remembered(
        ("calibrate", repr(run.with_noise_multiplier(1.0)), name, target, log_delta),
        lambda: _least_noise(run, target, log_delta, name),
        worth=_is_slow(description),
    )
    return cast(AnyDescription, description.with_noise_multiplier(noise_multiplier))


def epsilon_per_round(
    description: Description, delta: float, rounds: int | Sequence[int] | None = None, method: str | None = None
) -> list[float]:
    """Returns the epsilon after each of the given rounds of a run, for showing its progress.

    Args:
        description: The whole run, of one kind of release.
        delta: In (0, 1).
        rounds: Numbers of releases made so far, each at least 1, or how many rounds to go through from the first on; by
            default all rounds of the run. Each takes some 10 ms ("group": 60 ms). A run without amplification stops
            spending at its `max_participations`; one of PoissonGroups has no rounds beyond its own.
        method: Accountant, as for `epsilon`.

    Returns:
        One epsilon for each number, not decreasing in it.

    Raises:
        ValueError: An argument is out of range, or the description has no rounds.
        AccountingError: A ValueError for what cannot be accounted for, with the reason.
    """
    log_delta = math.log(check_delta("delta", delta))
    name = accountants.check_method(description, method)
    if isinstance(description, HyperparameterSearch | Composed):
        raise AccountingError(f"a {type(description).__name__} has no rounds of its own: ask for those of its runs")
    last = description.num_releases if rounds is None else rounds
    wanted = range(1, check_count("rounds", last) + 1) if not isinstance(last, Sequence | np.ndarray) else last
    run = _without_split(description)
    cap = run.max_participations if isinstance(run, NoAmplification) else MAX_COUNT
    answers: dict[int, float] = {}
    spent = 0.0
    for number in sorted({min(check_count("rounds", each), cap) for each in wanted}):
        spent = max(spent, accountants.curve(description.first(number), name).epsilon(log_delta))
        answers[number] = spent
    return [answers[min(number, cap)] for number in wanted]


def epsilons_by_group(
    description: PoissonGroups | PaidSignals | AdaptiveClipping, delta: float, method: str | None = None
) -> tuple[float, ...]:
    """Returns the epsilon of the users of each group of a run.

    Args:
        description: A run with PoissonGroups, or signals or adaptive clipping around one.
        delta: In (0, 1).
        method: Accountant, as for `epsilon`.

    Returns:
        One epsilon for each group, in their order; 0 where nothing is released about its users. The largest is that of
        the run, up to the accuracy of the accountant.

    Raises:
        ValueError: delta is out of range, or `description` has no groups.
        AccountingError: A ValueError for what cannot be accounted for, with the reason.
    """
    run = _without_split(description)
    if not isinstance(run, PoissonGroups):
        raise ValueError(f"description must be of PoissonGroups, got {description!r}")
    check_delta("delta", delta)
    name = accountants.check_method(run, method)
    known: dict[frozenset[tuple[tuple[float, float], int]], float] = {frozenset(): 0.0}
    found = []
    for number, trajectory in enumerate(run.groups):
        rounds = frozenset(counted(trajectory).items())
        if rounds not in known:
            known[rounds] = epsilon(cast(Composed, run.group(number)), delta, name)
        found.append(known[rounds])
    return tuple(found)


def _without_split(description: Description) -> Description:
    """The description of which a round's queries are parts: what they cost together."""
    return inner_run(description) if isinstance(description, AdaptiveClipping | PaidSignals) else description


if not TYPE_CHECKING:  # which is to know every name

    def __getattr__(name: str) -> object:
        """Returns what a name stood for in earlier versions."""
        if name == "UserWise":
            warnings.warn("acc.UserWise is called acc.PoissonUsers", DeprecationWarning, stacklevel=2)
            return PoissonUsers
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _least_noise(
    run: Description, target: float, log_delta: float, method: str, start: float = 1.0, step: float = 0.7
) -> float:
    """The noise multiplier for a checked target, looked for from `start` on in growing steps on a log scale.

    Group privacy starts from the record-level target that it implies.
    """

    def epsilon_of(noise_multiplier: float) -> float:
        return accountants.curve(run.with_noise_multiplier(noise_multiplier), method).epsilon(log_delta)

    if isinstance(run, PoissonGroups) and len(apart := run.apart()) > 1:
        with suppress(AccountingError):  # of a group that this much noise is too little for: all together, then
            return _least_noise_of_groups(apart, target, log_delta, method)
    if method == "group" and isinstance(run, RecordLevel):
        share = target / run.records_per_user
        record_log_delta = log_delta - log_delta_factor(share, run.records_per_user)

        def record_epsilon_of(noise_multiplier: float) -> float:
            return accountants.curve(run.with_noise_multiplier(noise_multiplier), "record").epsilon(record_log_delta)

        def user_epsilon_of(noise_multiplier: float) -> float:
            record = accountants.curve(run.with_noise_multiplier(noise_multiplier), "record")
            return curves.grouped(record, run.records_per_user, limit=2.0 * target).epsilon(log_delta)

        start = least_noise(record_epsilon_of, share, start, step)
        return _confirmed(epsilon_of, target, least_noise(user_epsilon_of, target, start, 0.002))
    return least_noise(epsilon_of, target, start, step)


def _least_noise_of_groups(apart: Sequence[PoissonGroups], target: float, log_delta: float, method: str) -> float:
    """The noise multiplier for the costliest of several groups, found by that of one of them after the other.

    That of one group is enough for all of them, or the costliest group at it needs more.
    """

    def kinds(noise_multiplier: float) -> list[Composed]:
        return [kind for each in apart for kind in each.with_noise_multiplier(noise_multiplier).kinds()]

    group, least, near = accountants.likely_costliest(kinds(1.0), log_delta), 0.0, (1.0, 0.7)
    while True:
        found = max(_least_noise(apart[group], target, log_delta, method, *near), least)
        group, spent = accountants.costliest(kinds(found), method, log_delta)
        if spent <= target:
            return found
        least, near = found * (1.0 + 1e-4), (found, 0.05)


def _confirmed(epsilon_of: Callable[[float], float], target: float, noise_multiplier: float) -> float:
    """The noise multiplier, raised until its epsilon is at most the target.

    Where group privacy's epsilon jumps, a search with a limit can find one that the search without passes over.
    """
    step = 1e-4
    while True:
        with suppress(AccountingError):
            if epsilon_of(noise_multiplier) <= target:
                return noise_multiplier
        noise_multiplier, step = noise_multiplier * (1.0 + step), 2.0 * step


def _is_slow(description: Description) -> bool:
    """Whether answers are worth keeping on disk."""
    return not isinstance(description, PoissonUsers | NoAmplification)
