"""Seconds of a round over cohort, records per user, length and rank, one varied at a time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.selection import FixedSizeSelector
from fedsim_userdp.simulations.measurements.results import CostCurve, PartResult
from fedsim_userdp.simulations.measurements.synthetic import SyntheticUsers
from fedsim_userdp.simulations.measurements.timing import take_turns
from fedsim_userdp.simulations.measurements.training import TrainingRounds, benchmark_strategy
from fedsim_userdp.simulations.measurements.workbench import Workbench
from fedsim_userdp.training.gradients import unit_gradients

AXES: Mapping[str, Sequence[int]] = {
    "cohort": (4, 8, 16, 32, 64),
    "records_per_user": (1, 2, 4, 8),
    "length": (16, 32, 64, 128),
    "rank": (2, 4, 8, 16, 32),
}
_USERS, _MOST_RECORDS = 64, 8


@dataclass(frozen=True)
class RoundShape:
    """What a round's cost depends on, at the values that the curves have in common."""

    cohort: int = 16
    records_per_user: int = 4
    length: int = 64
    rank: int = 8


def cost_curves(bench: Workbench, axes: Mapping[str, Sequence[int]] = AXES) -> PartResult:
    """Seconds of a round over each axis, the others kept.

    Args:
        bench: the benchmark.
        axes: values of each axis, ascending, at least two of them.
    """
    return PartResult(curves=[_curve(bench, axis, values) for axis, values in axes.items()])


def _curve(bench: Workbench, axis: str, values: Sequence[int]) -> CostCurve:
    """One curve, its values taking turns."""
    rounds = {str(value): training_of(bench, replace(RoundShape(), **{axis: value})) for value in values}
    seconds = take_turns(rounds, bench.repeats, bench.stopwatch)
    return CostCurve(axis, {value: seconds[str(value)] for value in values})


def training_of(bench: Workbench, shape: RoundShape) -> TrainingRounds:
    """Returns rounds of that shape on one node in this process."""
    recipe = SyntheticUsers(max(_USERS, shape.cohort), _MOST_RECORDS, shape.length).recipe(bench.cache_dir)
    users = replace(recipe, records_per_user=shape.records_per_user).open()
    lora = replace(bench.run.study.lora, rank=shape.rank)
    worker = Worker(
        unit_gradients(attach_lora(bench.model.load(), lora, 0), shape.length), users, bench.run.study.local
    )
    return TrainingRounds.in_process(worker, benchmark_strategy(worker, FixedSizeSelector(shape.cohort)))
