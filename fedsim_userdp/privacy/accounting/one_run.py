"""What a single run releases, apart from what it costs: frozen descriptions that the accountants take.

Every description names its neighbouring relation (`adjacency`) and gives the `dp_accounting` event of the whole run
(`event()`), so that anyone can account for it with another tool. Units: `noise_multiplier` is the standard deviation of
the noise on the *sum* of clipped updates, divided by the clip norm C.
"""

import dataclasses
import enum
import math
from typing import TYPE_CHECKING, Self

from fedsim_userdp.privacy.validation import (
    MAX_RECORDS_PER_USER,
    check_count,
    check_noise_multiplier,
    check_sampling_prob,
)

if TYPE_CHECKING:
    import dp_accounting


class Adjacency(enum.Enum):
    """Which two data sets a guarantee calls neighbours."""

    ADD_OR_REMOVE_USER = "add or remove one user with all their records"
    REPLACE_USER = "replace one user with all their records by another"
    REPLACE_USER_IN_GROUP = "replace one user with all their records by another of the same public group"
    REPLACE_RECORDS = "replace the records of one user, who keeps their id and their place in the public schedule"
    ZERO_OUT_USER = "empty the records of one user, who keeps their place in the public schedule"
    ADD_OR_REMOVE_RECORD = "add or remove one record of the pool"


@dataclasses.dataclass(frozen=True)
class PoissonUsers:
    """User-wise DP-SGD or DP-FedAvg: Poisson sampling of users, each user's whole update clipped to C.

    Guarantee: each round is a Poisson-subsampled Gaussian of sensitivity C under add-or-remove of one user.
    Assumes: every user takes part in a round independently with probability `sampling_prob`, a fixed denominator, and
        fresh noise of stddev `noise_multiplier * C` on the sum.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm, in (0, inf).
        sampling_prob: Probability with which each user takes part in a round, in (0, 1].
        rounds: Number of releases, in [1, 1e9].
    """

    noise_multiplier: float
    sampling_prob: float
    rounds: int

    adjacency = Adjacency.ADD_OR_REMOVE_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        check_sampling_prob("sampling_prob", self.sampling_prob)
        check_count("rounds", self.rounds)

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the whole run."""
        import dp_accounting as dp

        step = dp.PoissonSampledDpEvent(self.sampling_prob, dp.GaussianDpEvent(self.noise_multiplier))
        return dp.SelfComposedDpEvent(step, self.rounds)

    @property
    def num_releases(self) -> int:
        """Number of releases."""
        return self.rounds

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run, or more of the same."""
        return dataclasses.replace(self, rounds=num_releases)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)


@dataclasses.dataclass(frozen=True)
class RecordLevel:
    """Record-level DP-SGD with at most k records of each user: Poisson sampling of records, each gradient clipped to C.

    Guarantee: each step is a Poisson-subsampled Gaussian of sensitivity C under add-or-remove of one record. For a
        user with at most k records the step is dominated by N(0, s^2) against
        sum_i Binom(k, q)(i) N(i, s^2), s = noise_multiplier, in units of C.
    Assumes: every record is sampled independently with probability `sampling_prob`, records are owned by one user
        each, and no user has more than `records_per_user` of them in the training set.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm, in (0, inf).
        sampling_prob: Probability with which each record takes part in a step, in (0, 1].
        steps: Number of releases, in [1, 1e9].
        records_per_user: Largest number of records of one user, k in [1, 1000].
    """

    noise_multiplier: float
    sampling_prob: float
    steps: int
    records_per_user: int

    adjacency = Adjacency.ADD_OR_REMOVE_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        check_sampling_prob("sampling_prob", self.sampling_prob)
        check_count("steps", self.steps)
        check_count("records_per_user", self.records_per_user, 1, MAX_RECORDS_PER_USER)

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the user-level dp_accounting event of the whole run, a composed mixture of Gaussians."""
        import dp_accounting as dp
        from scipy.stats import binom

        counts = range(self.records_per_user + 1)
        probs = [float(p) for p in binom.pmf(counts, self.records_per_user, self.sampling_prob)]
        support = [i for i in counts if probs[i] > 0.0]
        total = math.fsum(probs)
        step = dp.dp_event.MixtureOfGaussiansDpEvent(
            self.noise_multiplier, [float(i) for i in support], [probs[i] / total for i in support]
        )
        return dp.SelfComposedDpEvent(step, self.steps)

    def one_record(self) -> PoissonUsers:
        """Returns the same run seen by one record: a Poisson-subsampled Gaussian whose "user" is a record."""
        return PoissonUsers(self.noise_multiplier, self.sampling_prob, self.steps)

    @property
    def num_releases(self) -> int:
        """Number of releases."""
        return self.steps

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run, or more of the same."""
        return dataclasses.replace(self, steps=num_releases)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)


@dataclasses.dataclass(frozen=True)
class FixedSize:
    """Cohorts of a fixed size, drawn uniformly without replacement, afresh in each round.

    Guarantee: each round is a Gaussian on a sample without replacement, under *replace-one* user: two updates of norm
        C differ by up to 2 C, so the sensitivity is twice the clip norm.
    Assumes: the cohort of each round is drawn independently of the other rounds, of data and of losses.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm C (not / sensitivity), in (0, inf).
        num_users: Number of users, in [1, 1e9].
        cohort_size: Users per round, in [1, num_users].
        rounds: Number of releases, in [1, 1e9].
    """

    noise_multiplier: float
    num_users: int
    cohort_size: int
    rounds: int

    adjacency = Adjacency.REPLACE_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        check_count("num_users", self.num_users)
        check_count("cohort_size", self.cohort_size, 1, self.num_users)
        check_count("rounds", self.rounds)

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the whole run; sensitivity 2 C is already in its noise multiplier.

        Use it with the RDP accountant under REPLACE_ONE, which does not double the sensitivity by itself. (The PLD
        accountant does, and does not support sampling without replacement.)
        """
        import dp_accounting as dp

        gaussian = dp.GaussianDpEvent(self.noise_multiplier / 2.0)
        step = dp.SampledWithoutReplacementDpEvent(self.num_users, self.cohort_size, gaussian)
        return dp.SelfComposedDpEvent(step, self.rounds)

    @property
    def num_releases(self) -> int:
        """Number of releases."""
        return self.rounds

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run, or more of the same."""
        return dataclasses.replace(self, rounds=num_releases)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)


@dataclasses.dataclass(frozen=True)
class NoAmplification:
    """Any other selection of users (shuffled, cyclic, custom): no amplification, a declared cap on participations.

    Guarantee: a user's data enters at most `max_participations` releases, each a Gaussian of sensitivity C when their
        records are emptied (ZERO_OUT_USER) or 2 C when they are replaced (REPLACE_RECORDS); the other releases are
        equal.
    Assumes: who takes part when is a public schedule that does not depend on anyone's data. Adding or removing a user,
        or another user with another id in their place, would shift the places of others in a shuffle or cycle, so these
        relations are refused here.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm C, in (0, inf).
        max_participations: Largest number of rounds in which one user takes part, in [1, 1e9].
        adjacency: ZERO_OUT_USER (default) or REPLACE_RECORDS.
    """

    noise_multiplier: float
    max_participations: int
    adjacency: Adjacency = Adjacency.ZERO_OUT_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range or the relation does not fit."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        check_count("max_participations", self.max_participations)
        if self.adjacency not in (Adjacency.ZERO_OUT_USER, Adjacency.REPLACE_RECORDS):
            raise ValueError(
                f"adjacency must be ZERO_OUT_USER or REPLACE_RECORDS, got {self.adjacency!r}: without Poisson "
                "sampling, adding, removing or exchanging a user changes who else takes part when"
            )

    @classmethod
    def separated(cls, noise_multiplier: float, rounds: int, min_separation: int) -> Self:
        """Returns what a schedule with a least separation b releases: a user is in at most ceil(rounds / b) rounds.

        Args:
            noise_multiplier: stddev of the noise on the sum / clip norm C, in (0, inf).
            rounds: Number of rounds, T >= 1.
            min_separation: Least number of rounds from one in which a user takes part to the next, b >= 1. A selector
                that has it as `min_separation` is stopped where it chooses a user earlier.
        """
        check_count("min_separation", min_separation)
        return cls(noise_multiplier, -(-check_count("rounds", rounds) // min_separation))

    @property
    def sensitivity(self) -> float:
        """Largest change of one release's sum, in clip norms: 1 or 2."""
        return 2.0 if self.adjacency is Adjacency.REPLACE_RECORDS else 1.0

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the whole run; the sensitivity is already in its noise multiplier."""
        import dp_accounting as dp

        gaussian = dp.GaussianDpEvent(self.noise_multiplier / self.sensitivity)
        return dp.SelfComposedDpEvent(gaussian, self.max_participations)

    @property
    def num_releases(self) -> int:
        """Number of releases that one user's data enters, at most."""
        return self.max_participations

    def first(self, num_releases: int) -> Self:
        """Returns the run as it is for a user who takes part in `num_releases` >= 1 releases."""
        return dataclasses.replace(self, max_participations=num_releases)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier."""
        return dataclasses.replace(self, noise_multiplier=noise_multiplier)


Unamplified = NoAmplification
