"""What a user-level budget costs in noise, before any data or model: three mechanisms side by side at equal compute.

A round of user-wise DP-SGD averages a cohort of q N users, a step of record-level DP-SGD the q N k records that the
same users would bring. On those means lies Gaussian noise, in each coordinate, of

    stddev = noise_multiplier * clip_norm / (q N)         user-wise
    stddev = noise_multiplier * clip_norm / (q N k)       group privacy and tight ELS

Source: Chua et al., arXiv 2406.14322; Charles et al., arXiv 2407.07737, who compare the two at equal compute.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.delta import default_delta
from fedsim_userdp.privacy.validation import MAX_RECORDS_PER_USER, check_count, check_delta, check_epsilon, check_real

MECHANISMS = ("user_wise", "group_privacy", "example_level_tight")
COUNTS = ("records_per_user", "rounds", "num_users")
AXES = (*COUNTS, "epsilon", "cohort", "sampling_prob")


@dataclasses.dataclass(frozen=True)
class ClipNorms:
    """Bounds on the norm of a unit's gradient: a user's mean gradient, or a record's. Each in (0, inf)."""

    user_wise: float = 1.0
    group_privacy: float = 1.0
    example_level_tight: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError where a bound is out of range."""
        for field in dataclasses.fields(self):
            check_real(f"clip_norm.{field.name}", getattr(self, field.name), 0.0, math.inf)


@dataclasses.dataclass(frozen=True)
class BudgetSetting:
    """What is planned for.

    Assumes: Poisson selection with the same probability for users and for records, and k records of every user.

    Attributes:
        num_users: N, in [2, 1e9].
        records_per_user: k, in [1, 1000].
        rounds: Rounds of user-wise DP-SGD and steps of record-level DP-SGD, in [1, 1e9].
        epsilon: User-level target, in (0, inf).
        delta: User-level delta, in (0, 1/N]; None stands for N^-1.1.
        cohort: Expected users in a round, in (0, N]; None where `sampling_prob` is given.
        sampling_prob: q, in (0, 1]; None where `cohort` is given, and then it is cohort / N.
        clip_norms: One bound for each mechanism.

    Raises:
        ValueError: A value is out of range; the message begins with the attribute's name (`clip_norm.NAME` for those).
    """

    num_users: int
    records_per_user: int
    rounds: int
    epsilon: float
    delta: float | None = None
    cohort: float | None = None
    sampling_prob: float | None = None
    clip_norms: ClipNorms = ClipNorms()

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        check_count("num_users", self.num_users, 2)
        check_count("records_per_user", self.records_per_user, 1, MAX_RECORDS_PER_USER)
        check_count("rounds", self.rounds)
        check_epsilon("epsilon", self.epsilon)
        if self.delta is not None and check_delta("delta", self.delta) > 1 / self.num_users:
            raise ValueError(
                f"delta must be at most 1/num_users = {1 / self.num_users:.3g}, got {self.delta:g}, which would allow "
                "publishing somebody's data; leave it null for num_users^-1.1"
            )
        if (self.cohort is None) == (self.sampling_prob is None):
            raise ValueError("cohort or sampling_prob must be given, and not both")
        if self.cohort is not None and check_real("cohort", self.cohort, 0.0, math.inf) > self.num_users:
            raise ValueError(f"cohort must be at most num_users = {self.num_users}, got {self.cohort:g}")
        if self.sampling_prob is not None:
            check_real("sampling_prob", self.sampling_prob, 0.0, 1.0, open_high=False)

    @property
    def user_level_delta(self) -> float:
        """The delta asked for, N^-1.1 unless given."""
        return default_delta(self.num_users) if self.delta is None else self.delta

    @property
    def probability(self) -> float:
        """q, the probability with which each unit takes part in a round, in (0, 1]."""
        return self.cohort / self.num_users if self.cohort is not None else float(self.sampling_prob or 0.0)

    @property
    def expected_cohort(self) -> float:
        """Expected users in a round, in (0, N]."""
        return self.probability * self.num_users if self.cohort is None else float(self.cohort)

    def at(self, axis: str, value: float) -> Self:
        """Returns the setting with another value on one of the `AXES`; cohort and sampling_prob replace each other.

        Raises:
            ValueError: `axis` is none of `AXES`, or the value is out of range.
        """
        if axis not in AXES:
            raise ValueError(f"axis must be one of {', '.join(AXES)}, got {axis!r}")
        other = {"cohort": "sampling_prob", "sampling_prob": "cohort"}.get(axis)
        changes: dict[str, Any] = {axis: value, **({other: None} if other else {})}
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True)
class BudgetRow:
    """One mechanism at one setting, a row of `budget.csv`.

    Attributes:
        mechanism: One of `MECHANISMS`.
        unit: Privacy unit whose gradient is clipped: "user" or "record".
        num_users: N.
        records_per_user: k.
        rounds: Rounds or steps.
        sampling_prob: q, of a unit in a round.
        cohort: q N, expected users in a round.
        epsilon_target: User-level epsilon asked for.
        delta: User-level delta.
        clip_norm: Bound on the norm of a unit's gradient.
        expected_units: Denominator of the mean: q N users, or q N k records.
        noise_multiplier: stddev of the noise on the sum / clip_norm; None where no noise was found to meet the target.
        noise_stddev: stddev of the noise on the mean, in each coordinate; None likewise.
        epsilon: User-level epsilon of this noise multiplier by the mechanism's own accountant; None likewise.
        epsilon_tight: User-level epsilon of the same run by the tight accountant; for record units only.
        tie_ratio: How many times smaller the user-wise clip norm must be than this mechanism's for equal noise on the
            mean; below 1 user-wise has less noise at equal clip norm. For record units only.
        problem: Why there is no noise multiplier; empty where there is one.
    """

    mechanism: str
    unit: str
    num_users: int
    records_per_user: int
    rounds: int
    sampling_prob: float
    cohort: float
    epsilon_target: float
    delta: float
    clip_norm: float
    expected_units: float
    noise_multiplier: float | None = None
    noise_stddev: float | None = None
    epsilon: float | None = None
    epsilon_tight: float | None = None
    tie_ratio: float | None = None
    problem: str = ""

    @property
    def noise_per_clip(self) -> float | None:
        """stddev of the noise on the mean at clip norm 1: what mechanisms are compared by at equal clip norm."""
        return None if self.noise_multiplier is None else self.noise_multiplier / self.expected_units


def plan(setting: BudgetSetting, selected: acc.Description | None = None) -> list[BudgetRow]:
    """Returns one row for each of `MECHANISMS`, in that order; a mechanism that cannot meet the target says why.

    Guarantee: a row's `epsilon` is an upper bound of the user-level epsilon of its run, and at most the target.

    Args:
        setting: what is planned for; its probability is the mean share of the users where a selection is given.
        selected: what user_wise releases under a selection; None for Poisson sampling with one probability.
    """
    rows = [_row(setting, mechanism, selected) for mechanism in MECHANISMS]
    return [rows[0], *(_with_tie(row, rows[0]) for row in rows[1:])]


def sweep(setting: BudgetSetting, axis: str, values: Sequence[float]) -> list[list[BudgetRow]]:
    """Returns the rows of `plan` for each value of one axis.

    Args:
        setting: Everything but that axis.
        axis: One of `AXES`.
        values: At least one; whole numbers for `COUNTS`. All are checked before the first is planned.

    Raises:
        ValueError: There is no value, `axis` is none of `AXES`, or a value is out of range.
    """
    if not values:
        raise ValueError(f"values of {axis} must be at least one, got none")
    return [plan(each) for each in [setting.at(axis, value) for value in values]]


def _row(setting: BudgetSetting, mechanism: str, selected: acc.Description | None = None) -> BudgetRow:
    """A mechanism's row, without its tie ratio."""
    users = setting.expected_cohort
    of_users = mechanism == "user_wise"
    row = BudgetRow(
        mechanism=mechanism,
        unit="user" if of_users else "record",
        num_users=setting.num_users,
        records_per_user=setting.records_per_user,
        rounds=setting.rounds,
        sampling_prob=setting.probability,
        cohort=users,
        epsilon_target=float(setting.epsilon),
        delta=setting.user_level_delta,
        clip_norm=float(getattr(setting.clip_norms, mechanism)),
        expected_units=users if of_users else users * setting.records_per_user,
    )
    try:
        if of_users and selected is not None:
            return _with_noise_of(selected, row)
        return _with_noise(row, {"user_wise": "pld", "group_privacy": "group"}.get(mechanism, "tight"))
    except acc.AccountingError as error:
        return dataclasses.replace(row, problem=str(error))


def _with_noise(row: BudgetRow, method: str) -> BudgetRow:
    """The row with the least noise that meets its target by an accountant, and what that costs."""
    release = (
        acc.PoissonUsers(1.0, row.sampling_prob, row.rounds)
        if row.unit == "user"
        else acc.RecordLevel(1.0, row.sampling_prob, row.rounds, row.records_per_user)
    )
    run = acc.calibrate(release, epsilon=row.epsilon_target, delta=row.delta, method=method)
    return dataclasses.replace(
        row,
        noise_multiplier=run.noise_multiplier,
        noise_stddev=run.noise_multiplier * row.clip_norm / row.expected_units,
        epsilon=acc.epsilon(run, row.delta, method),
        epsilon_tight=acc.epsilon(run, row.delta, "tight") if row.unit == "record" else None,
    )


def _with_noise_of(release: acc.Description, row: BudgetRow) -> BudgetRow:
    """The row with the least noise that meets its target for what a selection releases."""
    run = acc.calibrate(release, epsilon=row.epsilon_target, delta=row.delta)
    noise = run.update_noise_multiplier if isinstance(run, acc.PaidSignals) else run.noise_multiplier
    return dataclasses.replace(
        row,
        noise_multiplier=noise,
        noise_stddev=noise * row.clip_norm / row.expected_units,
        epsilon=acc.epsilon(run, row.delta),
    )


def _with_tie(row: BudgetRow, user_wise: BudgetRow) -> BudgetRow:
    """The row with its tie ratio, where both have noise."""
    own, users = row.noise_per_clip, user_wise.noise_per_clip
    return row if own is None or users is None else dataclasses.replace(row, tie_ratio=users / own)
