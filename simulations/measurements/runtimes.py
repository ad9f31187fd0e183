"""One round of the same run on several runtimes: this process, Flower's Simulation Runtime, pfl."""

import importlib.util
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from fedsim_userdp.federation.engines.flower_engine import FlowerEngine
from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.federation.rounds import Rounds
from fedsim_userdp.federation.worker import Worker, WorkerRecipe
from fedsim_userdp.models.adapters import attach_lora, trainable_state
from fedsim_userdp.models.frozen_layers import restore_layers, speed_up_frozen_layers
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.models.output_layer import stop_answering
from fedsim_userdp.selection import CyclicSelector, FixedSizeSelector
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.simulations.measurements.results import PartResult, speed
from fedsim_userdp.simulations.measurements.synthetic import SyntheticUsers
from fedsim_userdp.simulations.measurements.timing import Alternation, BenchmarkError, RoundTimes, affordable
from fedsim_userdp.simulations.measurements.training import TrainingRounds, benchmark_strategy
from fedsim_userdp.simulations.measurements.updates import cohort_update
from fedsim_userdp.simulations.measurements.watched_rounds import WatchedStrategy
from fedsim_userdp.simulations.measurements.workbench import Workbench, check_agreement
from fedsim_userdp.training.cohort import CohortUpdate, LocalTraining
from fedsim_userdp.training.gradients import StackedGradients

FIXED_USERS, FIXED_COHORT = SyntheticUsers(num_users=100, records=4, length=64), 16
FIXED_LORA = LoraSettings(rank=8, alpha=8.0, target_modules=("c_attn",), freeze_a=False)
NUM_WARM = 2  # rounds in which worker processes start and load
_FLOWER_ROUNDS = 3  # times as many repeats: its rounds end at ticks of about 0.1 s, and a median of five jumps
_FIXED_TOKENS = 4096  # of a micro-batch: the whole cohort


def fixed_task(bench: Workbench) -> WorkerRecipe:
    """Returns the run on which runtimes are compared: 4 records of 64 tokens, the bundled GPT-2, LoRA on c_attn."""
    return WorkerRecipe(
        settings="benchmark-fixed-run",
        model=ModelSource(device=bench.model.device),
        lora=FIXED_LORA,
        users=FIXED_USERS.recipe(bench.cache_dir),
        local=LocalTraining(max_tokens=_FIXED_TOKENS),
        seed=0,
    )


def cohort_vs_flower(bench: Workbench) -> PartResult:
    """Users per second of warm rounds: one node in this process against Flower's runtime with a node for each user.

    The nodes load their model in the train handler, as the apps of Flower's documentation do; a note has the ratio to
    this package's own nodes under Flower's runtime, which keep their model from one message to the next.
    """
    recipe = fixed_task(bench)
    seconds, distance = _flower_against_this_process(bench, AsInFlowersDocumentation(**vars(recipe)))
    kept, _ = _flower_against_this_process(bench, recipe)
    notes = {"relative_distance": distance, "own_nodes": _median_ratio(kept, "flower")}
    return PartResult(speed("cohort_vs_flower", seconds, "in_process", "flower", {"users": FIXED_COHORT}, notes))


class AsInFlowersDocumentation(WorkerRecipe):
    """A node that loads model and adapter in its train handler, as torch and PEFT give them, and no more than that."""

    def train(self, request: TrainRequest) -> CohortUpdate:
        """Answers with a model loaded for the request."""
        torch.set_num_threads(self.threads or torch.get_num_threads())
        model = attach_lora(replace(self.model).load(), self.lora, self.seed)
        restore_layers(model)
        stop_answering(model)
        return Worker(StackedGradients(model), self.users.open(), self.local).train(request)


def _flower_against_this_process(bench: Workbench, recipe: WorkerRecipe) -> tuple[dict[str, list[float]], float]:
    """The seconds of both sides, and how far apart their adapters end.

    Half of the rounds in this process come before Flower's and half after them: threads of Flower's runtime poll in
    this process as long as it is up, and would be counted on both sides.
    """
    worker, selector = recipe.build(), FixedSizeSelector(FIXED_COHORT)
    own = TrainingRounds.in_process(worker, benchmark_strategy(worker, selector))
    inner = benchmark_strategy(worker, selector, num_nodes=len(worker.users))
    for _ in range(NUM_WARM):
        own()
    repeats = _FLOWER_ROUNDS * bench.repeats
    before = [bench.stopwatch.seconds(own) for _ in range(repeats // 2)]
    times = RoundTimes("flower", bench.stopwatch, NUM_WARM)
    run_flower(_engine_with_node_per_user(worker), WatchedStrategy(inner, times), times, recipe, worker, repeats)
    after = [bench.stopwatch.seconds(own) for _ in range(repeats - len(before))]
    seconds = times.seconds | {"in_process": before + after}
    return seconds, check_agreement("cohort_vs_flower", inner.optimizer.state, own.state, recipe.model)


def _engine_with_node_per_user(worker: Worker) -> FlowerEngine:
    """A one-thread worker process for each core, also where they all have to share one GPU."""
    cores = os.cpu_count() or 1
    is_on_gpu = next(worker.gradients.model.parameters()).device.type == "cuda"
    return FlowerEngine(num_gpus=torch.cuda.device_count() / cores if is_on_gpu else None)


def cohort_vs_pfl(bench: Workbench) -> PartResult:
    """Users per second of warm rounds: one node in this process against Apple's pfl in this process.

    pfl trains the model as torch and PEFT give it; a note has the ratio where it has this package's frozen layers.
    """
    if importlib.util.find_spec("pfl") is None:
        return PartResult(absent="pfl is not installed, see docs/benchmark.md")
    seconds = _pfl_against_this_process(bench, restore_layers)
    with_layers = _pfl_against_this_process(bench, speed_up_frozen_layers)
    notes = {"with_own_frozen_layers": _median_ratio(with_layers, "pfl")}
    return PartResult(speed("cohort_vs_pfl", seconds, "in_process", "pfl", {"users": FIXED_COHORT}, notes))


def _pfl_against_this_process(bench: Workbench, prepare: Callable[[nn.Module], None]) -> dict[str, list[float]]:
    """The seconds of both sides, pfl's model prepared before."""
    from fedsim_userdp.simulations.measurements.pfl_program import PflTraining

    worker, theirs = fixed_task(bench).build(), fixed_task(bench).build()
    prepare(theirs.gradients.model)
    own = TrainingRounds.in_process(worker, benchmark_strategy(worker, CyclicSelector(FIXED_COHORT)))
    turns = Alternation("pfl", "in_process", own, bench.stopwatch, NUM_WARM)
    PflTraining(theirs, FIXED_COHORT).run(NUM_WARM + bench.repeats, turns)
    return turns.seconds


def _median_ratio(seconds: dict[str, list[float]], other: str) -> float:
    """The median of another runtime's seconds over those of this process, pair by pair."""
    pairs = zip(seconds[other], seconds["in_process"], strict=True)
    return statistics.median(theirs / own for theirs, own in pairs)


def two_workers_vs_one(bench: Workbench) -> PartResult:
    """Users per second of warm rounds: two one-thread worker processes against one of them.

    Both have two nodes up; a round of two is followed by one that only the first node is asked in.
    """
    if (os.cpu_count() or 1) < 2:
        return PartResult(absent="this machine has one CPU core")
    run, worker = bench.run, bench.run.worker(bench.mechanism.records_per_user)
    update = partial(cohort_update, bench, worker.gradients)
    users = affordable(bench.users(), update, bench.seconds_each(2) / 2, bench.stopwatch)
    selector = FixedSizeSelector(len(users))
    two = benchmark_strategy(worker, selector, num_nodes=2, deals_by_size=True)
    one = TrainingRounds(benchmark_strategy(worker, selector, deals_by_size=True), lambda: strategy.first_node)
    turns = Alternation("two_workers", "one_worker", one, bench.stopwatch, NUM_WARM)
    strategy = WatchedStrategy(two, turns)
    engine = FlowerEngine(num_nodes=2, num_cpus=1, threads=1)
    recipe = run.worker_recipe(bench.mechanism.records_per_user)
    run_flower(engine, strategy, turns, recipe, worker, bench.repeats)
    notes = {"relative_distance": check_agreement("two_workers_vs_one", two.optimizer.state, one.state, bench.model)}
    work = {"users": len(users)}
    return PartResult(speed("two_workers_vs_one", turns.seconds, "two_workers", "one_worker", work, notes))


def run_flower(
    engine: FlowerEngine,
    strategy: WatchedStrategy,
    times: Alternation | RoundTimes,
    recipe: WorkerRecipe,
    worker: Worker,
    rounds: int,
) -> None:
    """Runs that many rounds after the warm-up under Flower's runtime, and lets `times` take them.

    Raises:
        BenchmarkError: when the runtime ended before.
    """
    state = trainable_state(worker.gradients.model)
    engine.run(strategy, recipe, worker, state, Rounds(1, NUM_WARM + rounds))
    measured = min(map(len, times.seconds.values()))
    if measured < rounds:
        raise BenchmarkError(f"Flower's runtime ended after {measured} of {rounds} measured rounds")
