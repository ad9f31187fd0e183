"""The share of a real run's rounds that is neither forward and backward pass nor evaluation."""

import io
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor

from fedsim_userdp.federation.engines import Engine, InProcessEngine
from fedsim_userdp.federation.rounds import RetryingStrategy, Rounds
from fedsim_userdp.federation.worker import Worker, WorkerRecipe
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.participation import expected_share
from fedsim_userdp.population import Past, Population
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.simulations.configured import configured_run
from fedsim_userdp.simulations.measurements.results import Comparison, PartResult
from fedsim_userdp.simulations.measurements.timing import Stopwatch
from fedsim_userdp.simulations.measurements.workbench import Workbench
from fedsim_userdp.training.batches import MicroBatch, StepAddress
from fedsim_userdp.training.gradients import UnitGradients


def overhead_share(bench: Workbench) -> PartResult:
    """Seconds of rounds without their gradients and evaluations over all their seconds, in the configured run.

    A repeat is as many rounds as there are between two evaluations, so that each has one.  The run is made again, from
    the start, until there are enough repeats.
    """
    overhead: list[float] = []
    total: list[float] = []
    whole = RoundSeconds()
    while len(total) < bench.repeats:
        times = _run(bench)
        whole.extend(times)
        for rounds in times.windows(bench.run.study.evaluate_every):
            total.append(sum(rounds.total))
            overhead.append(sum(rounds.total) - sum(rounds.computing))
    notes = {
        "share_of_the_whole_run": 1 - sum(whole.computing) / sum(whole.total),
        "rounds_a_repeat": min(bench.run.study.evaluate_every, bench.mechanism.rounds),
    }
    values = {"overhead": overhead, "round": total}
    return PartResult(Comparison("overhead_share", values, "overhead", "round", notes=notes))


@dataclass
class RoundSeconds:
    """Seconds of consecutive rounds, in all and in gradients and evaluation."""

    total: list[float] = field(default_factory=list)
    computing: list[float] = field(default_factory=list)

    def extend(self, other: "RoundSeconds") -> None:
        """Adds the other's rounds."""
        self.total += other.total
        self.computing += other.computing

    def windows(self, size: int) -> list["RoundSeconds"]:
        """Returns the rounds in groups of `size`, those left over at the end not; all in one where they are fewer."""
        size = min(size, len(self.total))
        starts = range(0, len(self.total) - size + 1, size)
        return [RoundSeconds(self.total[i : i + size], self.computing[i : i + size]) for i in starts]


class RoundClock:
    """Adds up what is spent on computing, and notes when rounds begin."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self.stopwatch, self._computing = stopwatch, 0.0
        self._marks: list[tuple[float, float]] = []
        self._round = 1

    def add(self, seconds: float) -> None:
        """Counts seconds of computing."""
        self._computing += seconds

    def mark_round(self, round: int) -> None:
        """Notes that a round begins, where it is another than the last and not the first."""
        if round != self._round:
            self._round = round
            self.mark()

    def mark(self) -> None:
        """Notes that a round begins now, or that the last one is over."""
        self._marks.append((self.stopwatch.now(), self._computing))

    def times(self) -> RoundSeconds:
        """Returns the rounds between the marks."""
        now, computing = np.diff(np.array(self._marks), axis=0).T
        return RoundSeconds([float(x) for x in now], [float(x) for x in computing])


def _run(bench: Workbench) -> RoundSeconds:
    """The times of the rounds of one run, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="overhead-", dir=bench.folder) as folder:
        clock = RoundClock(bench.stopwatch)
        run = timed(configured_run(bench.config, Path(folder)), clock)
        bench.mechanism.run(run, RunProgress(Console(file=io.StringIO())))
        return clock.times()


def timed(run: Run, clock: RoundClock) -> Run:
    """Returns the run on one node in this process, telling `clock` what it does."""
    study = run.study
    own = {item.name: getattr(study, item.name) for item in fields(Study)}
    sampling_prob = expected_share(study.selector, study.population, rounds=1)
    own |= {"engine": _MarkingEngine(InProcessEngine(), clock), "selector": _MarkingSelector(sampling_prob, clock)}
    return replace(run, study=TimedStudy(**own, clock=clock))


@dataclass(frozen=True, kw_only=True)
class TimedStudy(Study):
    """A study that takes the time of gradients and evaluations."""

    clock: RoundClock

    def gradients(self, model: PeftModel) -> UnitGradients:
        """Returns the study's gradients, timed."""
        return _TimedGradients(super().gradients(model), self.clock)

    def perplexity(self, model: torch.nn.Module) -> float:
        """Returns the perplexity, timed."""
        start = self.clock.stopwatch.now()
        found = super().perplexity(model)
        self.clock.add(self.clock.stopwatch.now() - start)
        return found


class _TimedGradients:
    """Another's gradients, timed."""

    def __init__(self, inner: UnitGradients, clock: RoundClock) -> None:
        self._inner, self._clock = inner, clock

    @property
    def model(self) -> torch.nn.Module:
        """The PEFT model."""
        return self._inner.model

    def __call__(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradients and losses."""
        start = self._clock.stopwatch.now()
        found = self._inner(stacked, batch, at)
        self._clock.add(self._clock.stopwatch.now() - start)
        return found


@dataclass(frozen=True)
class _MarkingSelector(PoissonSelector):
    """Poisson selection, which is the first thing of a round: a mark is set before each but the first."""

    clock: RoundClock

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        """Returns `sampling_prob`."""
        self.clock.mark_round(round)
        return super().probabilities(round, population, past)


@dataclass(frozen=True)
class _MarkingEngine:
    """Another engine, marks set where its rounds begin and end."""

    inner: Engine
    clock: RoundClock

    def num_nodes_for(self, num_users: int) -> int:
        """Returns the other's."""
        return self.inner.num_nodes_for(num_users)

    def deals_by_size(self, num_users: int) -> bool:
        """Returns the other's."""
        return self.inner.deals_by_size(num_users)

    def run(
        self,
        strategy: RetryingStrategy,
        recipe: WorkerRecipe,
        worker: Worker,
        state: Mapping[str, Tensor],
        rounds: Rounds,
    ) -> None:
        """Runs the rounds."""
        self.clock.mark()
        self.inner.run(strategy, recipe, worker, state, rounds)
        self.clock.mark()
