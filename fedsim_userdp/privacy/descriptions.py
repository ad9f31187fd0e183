"""What a run releases, apart from what it costs: frozen descriptions that the accountants take.

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
    check_real,
    check_sampling_prob,
)

if TYPE_CHECKING:
    import dp_accounting


class Adjacency(enum.Enum):
    """Which two data sets a guarantee calls neighbours."""

    ADD_OR_REMOVE_USER = "add or remove one user with all their records"
    REPLACE_USER = "replace one user with all their records by another"
    ZERO_OUT_USER = "empty the records of one user, who keeps their place in the public schedule"
    ADD_OR_REMOVE_RECORD = "add or remove one record"


@dataclasses.dataclass(frozen=True)
class UserWise:
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

    def one_record(self) -> UserWise:
        """Returns the same run seen by one record: a Poisson-subsampled Gaussian whose "user" is a record."""
        return UserWise(self.noise_multiplier, self.sampling_prob, self.steps)

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
        records are emptied (ZERO_OUT_USER) or 2 C when they are replaced (REPLACE_USER); the other releases are equal.
    Assumes: who takes part when is a public schedule that does not depend on anyone's data. Adding or removing a user
        would shift the places of others in a shuffle or cycle, so that relation is refused here.

    Attributes:
        noise_multiplier: stddev of the noise on the sum / clip norm C, in (0, inf).
        max_participations: Largest number of rounds in which one user takes part, in [1, 1e9].
        adjacency: ZERO_OUT_USER (default) or REPLACE_USER.
    """

    noise_multiplier: float
    max_participations: int
    adjacency: Adjacency = Adjacency.ZERO_OUT_USER

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range or the relation does not fit."""
        check_noise_multiplier("noise_multiplier", self.noise_multiplier)
        check_count("max_participations", self.max_participations)
        if self.adjacency not in (Adjacency.ZERO_OUT_USER, Adjacency.REPLACE_USER):
            raise ValueError(
                f"adjacency must be ZERO_OUT_USER or REPLACE_USER, got {self.adjacency!r}: without Poisson sampling, "
                "adding or removing a user changes who else takes part when"
            )

    @property
    def sensitivity(self) -> float:
        """Largest change of one release's sum, in clip norms: 1 or 2."""
        return 2.0 if self.adjacency is Adjacency.REPLACE_USER else 1.0

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
Run = UserWise | RecordLevel | FixedSize | NoAmplification


@dataclasses.dataclass(frozen=True)
class AdaptiveClipping:
    """A run whose clip norm follows a noisy quantile (Andrew et al., NeurIPS 2021), at the cost of `run` in all.

    Each round also releases the number of users whose update was not clipped, each counted as +1/2 or -1/2, with
    Gaussian noise of stddev `count_stddev`: sensitivity 1/2. The update and the count together are one Gaussian of
    noise multiplier sigma with sigma^-2 = update_noise_multiplier^-2 + (2 count_stddev)^-2, so the update must carry
    *more* noise than `run.noise_multiplier` says (Theorem 1 there).

    Guarantee: the run costs what `run` costs, if updates carry `update_noise_multiplier` and counts `count_stddev`.
    Assumes: both queries see the same sampled users, and the clip norm of a round depends on earlier releases only.

    Attributes:
        run: The user-level run with the noise multiplier of the pair of queries: not a RecordLevel one.
        count_stddev: stddev of the noise on the count of unclipped updates, in (run.noise_multiplier / 2, inf).
    """

    run: UserWise | FixedSize | NoAmplification
    count_stddev: float

    def __post_init__(self) -> None:
        """Raises ValueError where the split is impossible."""
        if not isinstance(self.run, UserWise | FixedSize | NoAmplification):
            raise ValueError(f"run must be a UserWise, FixedSize or NoAmplification description, got {self.run!r}")
        check_real("count_stddev", self.count_stddev, self.run.noise_multiplier / 2.0, math.inf)

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of the run."""
        return self.run.adjacency

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of the update and the count together."""
        return self.run.noise_multiplier

    @property
    def update_noise_multiplier(self) -> float:
        """Noise multiplier that the update itself must carry, (sigma^-2 - (2 count_stddev)^-2)^(-1/2)."""
        ratio = self.run.noise_multiplier / (2.0 * self.count_stddev)
        return self.run.noise_multiplier / math.sqrt((1.0 - ratio) * (1.0 + ratio))

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the whole run, with the pair of queries as one Gaussian."""
        return self.run.event()

    @property
    def num_releases(self) -> int:
        """Number of releases of update and count together."""
        return self.run.num_releases

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run, or more of the same."""
        return dataclasses.replace(self, run=self.run.first(num_releases))

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier of the pair of queries."""
        return dataclasses.replace(self, run=self.run.with_noise_multiplier(noise_multiplier))


@dataclasses.dataclass(frozen=True)
class HyperparameterSearch:
    """The best of a random number of runs, only the best being released (Papernot & Steinke, ICLR 2022).

    The number of runs follows a truncated negative binomial distribution: shape 1 is geometric, 0 logarithmic, and
    infinity Poisson. Each run draws its hyper-parameters afresh from a fixed list, and the best is chosen by a score
    that belongs to the run's private output or to public data.

    Guarantee: RDP of the released run by Theorems 2 and 6 there, by way of dp_accounting's RepeatAndSelectDpEvent.
    Assumes: the number of runs was drawn from that distribution before any was made, and nothing of the losing runs
        is kept or shown. A search by hand, or over a fixed list, is `rounds * runs` of plain composition instead.

    Attributes:
        run: What each single run releases (all the same cost).
        mean_runs: Mean number of runs, in (1, 1e6]; at shape infinity, in (0, 1e6].
        shape: Shape of the distribution, in [0, inf].
    """

    run: Run | AdaptiveClipping
    mean_runs: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        if not isinstance(self.run, Run | AdaptiveClipping):
            raise ValueError(f"run must be the description of one run, got {self.run!r}")
        if self.shape != math.inf:
            check_real("shape", self.shape, 0.0, math.inf, open_low=False)
        low = 0.0 if self.shape == math.inf else 1.0
        check_real("mean_runs", self.mean_runs, low, 1e6, open_high=False)

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of the single run."""
        return self.run.adjacency

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of the single run."""
        return self.run.noise_multiplier

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the search."""
        import dp_accounting as dp

        return dp.dp_event.RepeatAndSelectDpEvent(self.run.event(), self.mean_runs, self.shape)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same search with another noise multiplier of every run."""
        return dataclasses.replace(self, run=self.run.with_noise_multiplier(noise_multiplier))


@dataclasses.dataclass(frozen=True)
class Composed:
    """Several runs one after the other, all of them released: other noise from some round on, or a search by hand.

    Guarantee: adaptive composition of the parts, which must share one neighbouring relation. A search over a fixed
        list of m settings is `Composed((run,) * m)`, whatever is kept of it.

    Attributes:
        parts: Single runs, at least one. Equal releases are counted together.
    """

    parts: tuple[Run | AdaptiveClipping, ...]

    def __post_init__(self) -> None:
        """Raises ValueError where the parts are no runs, or their neighbouring relations differ."""
        if not isinstance(self.parts, tuple) or not self.parts:
            raise ValueError(f"parts must be a tuple of at least one description, got {self.parts!r}")
        for part in self.parts:
            if not isinstance(part, Run | AdaptiveClipping):
                raise ValueError(f"parts must be descriptions of single runs, got {part!r}")
        relations = sorted({part.adjacency.value for part in self.parts})
        if len(relations) > 1:
            raise ValueError(f"parts must share one neighbouring relation to have one epsilon, got {relations}")

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of every part."""
        return self.parts[0].adjacency

    def counted(self) -> list[tuple[Run, int]]:
        """Returns the distinct single releases, and how often each is made."""
        counts: dict[Run, int] = {}
        for part in self.parts:
            run = part.run if isinstance(part, AdaptiveClipping) else part
            counts[run.first(1)] = counts.get(run.first(1), 0) + run.num_releases
        return list(counts.items())

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of all parts."""
        import dp_accounting as dp

        return dp.ComposedDpEvent([run.first(count).event() for run, count in self.counted()])

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same runs, all with one other noise multiplier."""
        return dataclasses.replace(self, parts=tuple(p.with_noise_multiplier(noise_multiplier) for p in self.parts))


Description = Run | AdaptiveClipping | HyperparameterSearch | Composed
