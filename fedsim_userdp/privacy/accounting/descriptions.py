"""Everything that the accountants take: single runs (`runs`), and what is made of them.

Adaptive clipping, a private search over hyper-parameters, and several runs one after the other.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Self

from fedsim_userdp.privacy.accounting.one_run import (
    Adjacency,
    FixedSize,
    NoAmplification,
    PoissonUsers,
    RecordLevel,
    Run,
    Unamplified,
)
from fedsim_userdp.privacy.validation import check_real

if TYPE_CHECKING:
    import dp_accounting

__all__ = [
    "AdaptiveClipping",
    "Adjacency",
    "Composed",
    "Description",
    "FixedSize",
    "HyperparameterSearch",
    "NoAmplification",
    "PoissonUsers",
    "RecordLevel",
    "Run",
    "Unamplified",
]


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

    run: PoissonUsers | FixedSize | NoAmplification
    count_stddev: float

    def __post_init__(self) -> None:
        """Raises ValueError where the split is impossible."""
        if not isinstance(self.run, PoissonUsers | FixedSize | NoAmplification):
            raise ValueError(f"run must be a PoissonUsers, FixedSize or NoAmplification description, got {self.run!r}")
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


_REPLACED = {Adjacency.REPLACE_USER, Adjacency.REPLACE_RECORDS}


@dataclasses.dataclass(frozen=True)
class Composed:
    """Several runs one after the other, all of them released: other noise from some round on, or a search by hand.

    Guarantee: adaptive composition of the parts, which must share one neighbouring relation; what holds for replacing a
        user by any other holds for replacing their records as well. A search over a fixed
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
        relations = {part.adjacency for part in self.parts}
        if len(relations) > 1 and relations != _REPLACED:
            names = sorted(relation.value for relation in relations)
            raise ValueError(f"parts must share one neighbouring relation to have one epsilon, got {names}")

    @property
    def adjacency(self) -> Adjacency:
        """Neighbouring relation of every part, the narrower of two that hold."""
        return min((part.adjacency for part in self.parts), key=lambda one: one is not Adjacency.REPLACE_RECORDS)

    @property
    def noise_multiplier(self) -> float:
        """The least noise multiplier of all parts."""
        return min(part.noise_multiplier for part in self.parts)

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
