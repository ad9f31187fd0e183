"""Everything that the accountants take: single runs, and what is made of them.

Signals beside the update, adaptive clipping, a private search over hyper-parameters, and several runs one after the
other.
"""

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Self

from fedsim_userdp.privacy.accounting.one_run import (
    Adjacency,
    FixedSize,
    NoAmplification,
    PoissonUsers,
    RecordLevel,
    Unamplified,
)
from fedsim_userdp.privacy.accounting.poisson_groups import PoissonGroups
from fedsim_userdp.privacy.accounting.strata import FixedSizeStrata
from fedsim_userdp.privacy.accounting.trajectories import highest
from fedsim_userdp.privacy.accounting.truncated import TruncatedPoisson
from fedsim_userdp.privacy.validation import check_real

if TYPE_CHECKING:
    import dp_accounting

__all__ = [
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
    "Run",
    "TruncatedPoisson",
    "Unamplified",
    "inner_run",
]

UserLevelRun = PoissonUsers | PoissonGroups | TruncatedPoisson | FixedSize | FixedSizeStrata | NoAmplification
Run = UserLevelRun | RecordLevel
_MOST_COMBINATIONS = 64


@dataclasses.dataclass(frozen=True)
class PaidSignals:
    """A run whose users also send a clipped number each, at the cost of `run` in all.

    Each round also releases, for each public group of users, the sum of the numbers and how many there are, with noise
    of their own.  A number in [0, bound] counts as its distance from bound / 2, so that a user moves the sums by at
    most bound / 2 and the counts by at most 1, in one group.  Update, sums and counts together are one Gaussian:
    inverse squares of noise multipliers add.  `share` of the whole goes to the signal, half of it to the sums and half
    to the counts; the update carries *more* noise than `run.noise_multiplier` says.

    Guarantee: the run costs what `run` costs, if updates carry `update_noise_multiplier`, and sums and counts
        `signal_noise_multiplier` each, times their sensitivities.  A user of weight w moves all three by w times that.
    Assumes: all three see the same sampled users, groups are public, and what a round does depends on earlier releases
        only.

    Attributes:
        run: The user-level run with the noise multiplier of update and signal together: not a RecordLevel one.
        share: of run.noise_multiplier^-2 that the signal takes, in (0, 1).
    """

    run: UserLevelRun
    share: float

    def __post_init__(self) -> None:
        """Raises ValueError where the split is impossible."""
        if not isinstance(self.run, UserLevelRun):
            raise ValueError(f"run must be the description of a user-level run, got {self.run!r}")
        check_real("share", self.share, 0.0, 1.0)

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of the run."""
        return self.run.adjacency

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of update and signal together."""
        return self.run.noise_multiplier

    @property
    def update_noise_multiplier(self) -> float:
        """Noise multiplier that the update itself must carry, sigma / sqrt(1 - share)."""
        return self.run.noise_multiplier / math.sqrt(1.0 - self.share)

    @property
    def signal_noise_multiplier(self) -> float:
        """Noise multiplier that the sums must carry, and the counts as well, sigma / sqrt(share / 2)."""
        return self.run.noise_multiplier / math.sqrt(self.share / 2.0)

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of the whole run, with update and signal as one Gaussian."""
        return self.run.event()

    @property
    def num_releases(self) -> int:
        """Number of releases of update and signal together."""
        return self.run.num_releases

    def first(self, num_releases: int) -> Self:
        """Returns the first `num_releases` >= 1 releases of the run, or more of the same."""
        return dataclasses.replace(self, run=self.run.first(num_releases))

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same run with another noise multiplier of update and signal together."""
        return dataclasses.replace(self, run=self.run.with_noise_multiplier(noise_multiplier))


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
        run: The user-level run with the noise multiplier of all queries together: not a RecordLevel one, and with no
            weight but 1, which would shrink a user's update and not their part of the count.  With paid signals, the
            pair of queries has what these leave, `run.update_noise_multiplier`.
        count_stddev: stddev of the noise on the count of unclipped updates, above half of the pair's noise multiplier.
    """

    run: UserLevelRun | PaidSignals
    count_stddev: float

    def __post_init__(self) -> None:
        """Raises ValueError where the split is impossible."""
        if not isinstance(self.run, UserLevelRun | PaidSignals):
            raise ValueError(f"run must be the description of a user-level run or PaidSignals, got {self.run!r}")
        inner = inner_run(self.run)
        if isinstance(inner, PoissonGroups) and not inner.is_unweighted:
            raise ValueError(f"run must have weights of 1 only, since a count has no weights, got {self.run!r}")
        check_real("count_stddev", self.count_stddev, self._of_the_pair / 2.0, math.inf)

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of the run."""
        return self.run.adjacency

    @property
    def noise_multiplier(self) -> float:
        """Noise multiplier of all that a round releases together."""
        return self.run.noise_multiplier

    @property
    def update_noise_multiplier(self) -> float:
        """Noise multiplier that the update itself must carry, (sigma^-2 - (2 count_stddev)^-2)^(-1/2)."""
        ratio = self._of_the_pair / (2.0 * self.count_stddev)
        return self._of_the_pair / math.sqrt((1.0 - ratio) * (1.0 + ratio))

    @property
    def _of_the_pair(self) -> float:
        """Noise multiplier sigma of the update and the count together, without signals."""
        return self.run.update_noise_multiplier if isinstance(self.run, PaidSignals) else self.run.noise_multiplier

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

    run: Run | AdaptiveClipping | PaidSignals
    mean_runs: float
    shape: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError where an attribute is out of range."""
        if not isinstance(self.run, Run | AdaptiveClipping | PaidSignals):
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


# From the narrower to the wider: what holds for one holds for those before it.
_REPLACED = (Adjacency.REPLACE_RECORDS, Adjacency.REPLACE_USER_IN_GROUP, Adjacency.REPLACE_USER)


@dataclasses.dataclass(frozen=True)
class Composed:
    """Several runs one after the other, all of them released: other noise from some round on, or a search by hand.

    Guarantee: adaptive composition of the parts, which must share one neighbouring relation; what holds for replacing a
        user by any other holds for replacing their records as well. A search over a fixed
        list of m settings is `Composed((run,) * m)`, whatever is kept of it.

    Users of one group of a PoissonGroups part may be in any group of another part: the costliest combination counts.

    Attributes:
        parts: Single runs, at least one. Equal releases are counted together.
    """

    parts: tuple[Run | AdaptiveClipping | PaidSignals, ...]

    def __post_init__(self) -> None:
        """Raises ValueError where the parts are no runs, or their neighbouring relations differ."""
        if not isinstance(self.parts, tuple) or not self.parts:
            raise ValueError(f"parts must be a tuple of at least one description, got {self.parts!r}")
        for part in self.parts:
            if not isinstance(part, Run | AdaptiveClipping | PaidSignals):
                raise ValueError(f"parts must be descriptions of single runs, got {part!r}")
        relations = {part.adjacency for part in self.parts}
        if len(relations) > 1 and not relations <= set(_REPLACED):
            names = sorted(relation.value for relation in relations)
            raise ValueError(f"parts must share one neighbouring relation to have one epsilon, got {names}")

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of every part, the narrowest of those that hold."""
        relations = {part.adjacency for part in self.parts}
        return next((one for one in _REPLACED if one in relations), self.parts[0].adjacency)

    @property
    def noise_multiplier(self) -> float:
        """The least noise multiplier of all parts."""
        return min(part.noise_multiplier for part in self.parts)

    @property
    def runs(self) -> list[Run]:
        """The parts, without what signals and adaptive clipping are around them."""
        return [inner_run(part) for part in self.parts]

    def counted(self) -> list[tuple[Run, int]]:
        """Returns the distinct single releases, and how often each is made."""
        counts: dict[Run, int] = {}
        for run in self.runs:
            for release, count in _singles(run):
                counts[release] = counts.get(release, 0) + count
        return list(counts.items())

    def kinds(self) -> "list[Composed]":
        """Returns what is released about users without PoissonGroups, one description for each kind of user.

        A kind is a combination of groups, one of each part, those about whom nothing is released at all left out. Where
        several parts make more than 64, a group that dominates all of its part is taken instead, for each of them.
        """
        grouped = [run for run in self.runs if isinstance(run, PoissonGroups)]
        others = tuple(run for run in self.runs if not isinstance(run, PoissonGroups))
        choices = [[kind.parts for kind in run.kinds()] or [()] for run in grouped]
        if len(grouped) > 1 and math.prod(map(len, choices)) > _MOST_COMBINATIONS:
            choices = [[kind.parts for kind in _highest(run).kinds()] for run in grouped]
        found = [others + tuple(itertools.chain(*chosen)) for chosen in itertools.product(*choices)]
        kinds = {frozenset(kind.counted()): kind for kind in (Composed(parts) for parts in found if parts)}
        return list(kinds.values())

    def event(self) -> "dp_accounting.DpEvent":
        """Returns the dp_accounting event of all parts; of PoissonGroups parts, that of the costliest group of each."""
        import dp_accounting as dp

        grouped = [run.event() for run in self.runs if isinstance(run, PoissonGroups)]
        counted = [(run, count) for run, count in self.counted() if not isinstance(run, PoissonGroups)]
        return dp.ComposedDpEvent([*(run.first(count).event() for run, count in counted), *grouped])

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Returns the same runs, all with one other noise multiplier."""
        return dataclasses.replace(self, parts=tuple(p.with_noise_multiplier(noise_multiplier) for p in self.parts))


def _singles(run: Run) -> list[tuple[Run, int]]:
    """The distinct single releases of a run, and how often each is made."""
    return [*run.singles()] if isinstance(run, PoissonGroups) else [(run.first(1), run.num_releases)]


def _highest(run: PoissonGroups) -> PoissonGroups:
    """A run of one group, which dominates all of the run's."""
    return dataclasses.replace(run, groups=(highest(run.groups),))


Description = Run | PaidSignals | AdaptiveClipping | HyperparameterSearch | Composed


def inner_run(description: Run | PaidSignals | AdaptiveClipping) -> Run:
    """Returns the run that signals and adaptive clipping are around."""
    while isinstance(description, PaidSignals | AdaptiveClipping):
        description = description.run
    return description
