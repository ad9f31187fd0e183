"""What one run promises: the calibrated release, its accountant and its epsilon."""

import bisect
import math
from dataclasses import dataclass
from typing import Literal

from fedsim_userdp.errors import AccountingError, ConfigError
from fedsim_userdp.participation import UserLevel
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ownership import BLANK_RECORDS, Ownership, check_ownership

Level = Literal["user", "record", "nobody"]
UNTRAINED, UNNOISED = "no training data used", "none: trained without privacy"  # a result's guarantee in words
_COMPUTED_ROUNDS = 40  # each takes 10 to 100 ms
_COMPUTED_ROUNDS_OF_GROUPS = 10  # each takes up to half a second
_FEW_GROUPS = 64  # of more, each takes up to 10 s: only the whole run's epsilon is shown
_LITTLE_NOISE = 0.1  # below it, some accountants have no answer for some numbers of rounds
_COUNT_SHARE = 0.05  # of the expected cohort: what the source takes as the count's standard deviation


@dataclass(frozen=True)
class Target:
    """The user-level target: epsilon (infinity for no noise), delta in (0, 1), and whose a record is."""

    epsilon: float
    delta: float
    ownership: Ownership = "assigned"


def declared_probability(release: acc.Description | None) -> float | None:
    """Returns the probability, in what a run releases, with which a unit takes part in a round; None without one."""
    run = _inner(release)
    return run.sampling_prob if isinstance(run, acc.PoissonUsers | acc.RecordLevel) else None


@dataclass(frozen=True)
class SpentByRound:
    """User-level epsilon after each round of a run.

    Attributes:
        rounds: those for which it was computed, ascending; the last round is one of them.
        epsilons: epsilon after each of these.
    """

    rounds: tuple[int, ...]
    epsilons: tuple[float, ...]

    def after(self, round: int) -> float:
        """Returns the epsilon after a round; where it was not computed, that of the next for which it was."""
        return 0.0 if round < 1 else self.epsilons[bisect.bisect_left(self.rounds, min(round, self.rounds[-1]))]


@dataclass(frozen=True)
class Guarantee:
    """The promise of one run.

    Attributes:
        release: what the run releases, with its noise multiplier; None where there is no noise.
        method: the accountant's name; None for the release's default.
        delta: the delta that epsilon is reported at.
        level: whom the promise covers: "user", "record" or "nobody".
        ownership: whose a record is, for a promise to users.
    """

    release: acc.Description | None
    method: str | None
    delta: float
    level: Level
    ownership: Ownership = "assigned"

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise on the sum, divided by the clip norm; 0 without noise."""
        if isinstance(self.release, acc.AdaptiveClipping | acc.PaidSignals):
            return self.release.update_noise_multiplier
        return 0.0 if self.release is None else self.release.noise_multiplier

    @property
    def declared(self) -> UserLevel | None:
        """What the selection of users declared, with the noise of all of a round together; None where it did not."""
        run = _inner(self.release)
        return run if isinstance(run, UserLevel) else None

    @property
    def signal_noise_multiplier(self) -> float:
        """Standard deviation of the noise on a signal's sums and counts, divided by their sensitivities; 0 without."""
        inner = self.release.run if isinstance(self.release, acc.AdaptiveClipping) else self.release
        return inner.signal_noise_multiplier if isinstance(inner, acc.PaidSignals) else 0.0

    @property
    def max_participations(self) -> int | None:
        """Rounds that a user may be in at most; None where the selection declares no such number."""
        return self.declared.max_participations if isinstance(self.declared, acc.NoAmplification) else None

    @property
    def epsilon(self) -> float | None:
        """User-level epsilon of the whole run, recomputed from the release; None where there is no such promise."""
        if self.release is None or self.level != "user":
            return None
        return acc.epsilon(self.release, self.delta, self.method)

    def epsilon_by(self, method: str) -> float | None:
        """Epsilon of the same run by another accountant; None where there is no noise, or too little for it."""
        if self.release is None:
            return None
        try:
            return acc.epsilon(self.release, self.delta, method)
        except AccountingError:  # for comparison only: what is promised has been computed
            return None

    def spent_by_round(self, rounds: int) -> "SpentByRound | None":
        """User-level epsilon after each of the rounds; None where there is no such promise."""
        if self.release is None or self.level != "user":
            return None
        parts = _COMPUTED_ROUNDS
        if isinstance(self.declared, acc.PoissonGroups):
            parts = _COMPUTED_ROUNDS_OF_GROUPS if len(self.declared.groups) <= _FEW_GROUPS else 1
        computed = sorted({-(-rounds * part // parts) for part in range(1, parts + 1)})
        epsilons = acc.epsilon_per_round(self.release, self.delta, computed, self.method)
        return SpentByRound(tuple(computed), tuple(epsilons))

    def in_words(self) -> str:
        """One sentence."""
        if self.release is None or self.level == "nobody":
            return "none: trained without noise"
        if self.level == "record":
            neighbours = acc.Adjacency.ADD_OR_REMOVE_RECORD.value
            return f"for one record only (neighbours: {neighbours}); NO user-level guarantee"
        neighbours = BLANK_RECORDS if self.ownership == "declared" else self.release.adjacency.value
        return f"user level (neighbours: {neighbours}), accountant {self.method or 'default'}"


def _inner(release: acc.Description | None) -> acc.Description | None:
    """The run that signals and adaptive clipping are around; others as they are."""
    return acc.inner_run(release) if isinstance(release, acc.AdaptiveClipping | acc.PaidSignals) else release


def level_of(accountant: str) -> Literal["user", "record"]:
    """Returns whom a promise by an accountant of record-level DP-SGD covers."""
    return "record" if accountant == "record" else "user"


def default_count_stddev(expected_cohort: float, noise_multiplier: float) -> float:
    """Returns the noise on the count of unclipped users where none is given: a twentieth of the expected cohort.

    Args:
        expected_cohort: Expected number of users in a round.
        noise_multiplier: of update and count together; the answer is at least this.
    """
    return max(_COUNT_SHARE * expected_cohort, noise_multiplier)


def calibrated(
    release: acc.Description, target: Target, method: str | None, level: Literal["user", "record"]
) -> Guarantee:
    """Returns the promise of `release` with the least noise that reaches the target; no noise at epsilon = infinity.

    Raises:
        ConfigError: when the budget is for all declared owners and the release cannot promise them anything.
    """
    if math.isinf(target.epsilon):
        return Guarantee(None, method, target.delta, "nobody")
    try:
        check_ownership(target.ownership if level == "user" else "assigned", release)
    except ValueError as error:
        raise ConfigError(
            f"the data declares several owners of a record, and {error}: use mechanism=group_privacy or "
            "example_level_tight, or set data.owners=sender (Enron) or data.owners_column=null (tables), so that a "
            "record counts for its user only"
        ) from error
    try:
        found = acc.calibrate(release, epsilon=target.epsilon, delta=target.delta, method=method)
        guarantee = Guarantee(found, method, target.delta, level, target.ownership)
        if guarantee.noise_multiplier < _LITTLE_NOISE:  # what is stated later must be computable before training
            acc.epsilon(found, target.delta, method)
            guarantee.spent_by_round(getattr(found, "num_releases", 1))
    except AccountingError as error:
        raise ConfigError(
            f"privacy.epsilon={target.epsilon:g} at privacy.delta={target.delta:.3g} cannot be kept and stated: "
            f"{error}; choose another epsilon, or inf for no noise"
        ) from error
    return guarantee


NO_GUARANTEE = Guarantee(None, None, 1.0, "nobody")
