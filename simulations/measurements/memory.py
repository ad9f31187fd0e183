"""The most memory that a round takes at a small and at a large cohort, each in a process of its own."""

import resource
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch

from fedsim_userdp.federation.worker import WorkerRecipe
from fedsim_userdp.selection import FixedSizeSelector
from fedsim_userdp.simulations.measurements.results import Comparison, PartResult
from fedsim_userdp.simulations.measurements.synthetic import SyntheticUsers
from fedsim_userdp.simulations.measurements.training import TrainingRounds, benchmark_strategy
from fedsim_userdp.simulations.measurements.workbench import Workbench
from fedsim_userdp.simulations.process import prepare_process

COHORTS = (512, 64)
_RECORDS, _LENGTH = 2, 32  # of every user: the smaller cohort fills a micro-batch
_MOST_TOKENS = 4096  # of a micro-batch, on every device: where the larger cohort fits into one, nothing is compared
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Memory:
    """Bytes of a process, or on its GPU.

    Attributes:
        before: the most until the model was loaded.
        peak: the most until the round was over.
    """

    before: int
    peak: int


def memory_512_vs_64(bench: Workbench, cohorts: tuple[int, int] = COHORTS) -> PartResult:
    """Peak memory of a round with the larger cohort over that with the smaller one.

    Args:
        bench: the benchmark.
        cohorts: the larger and the smaller number of users.
    """
    max_tokens = min(_MOST_TOKENS, bench.run.study.local.max_tokens)
    recipe = WorkerRecipe(
        settings="benchmark-memory",
        model=bench.model,
        lora=bench.run.study.lora,
        users=SyntheticUsers(2 * cohorts[0], _RECORDS, _LENGTH).recipe(bench.cache_dir),
        local=replace(bench.run.study.local, max_tokens=max_tokens),
        seed=0,
        threads=torch.get_num_threads(),
    )
    measured: dict[str, list[Memory]] = {str(cohort): [] for cohort in cohorts}
    for repeat in range(bench.repeats):
        for cohort in cohorts if repeat % 2 == 0 else reversed(cohorts):
            measured[str(cohort)].append(in_fresh_process(recipe, cohort))
    before = statistics.median(memory.before for memories in measured.values() for memory in memories)
    peaks = {cohort: [float(memory.peak) for memory in memories] for cohort, memories in measured.items()}
    over, under = map(str, cohorts)
    notes = {"median_bytes_before_the_round": before, "micro_batch": max_tokens}
    return PartResult(Comparison("memory_512_vs_64", peaks, over, under, unit="bytes", notes=notes))


def in_fresh_process(recipe: WorkerRecipe, cohort: int) -> Memory:
    """Returns what a round with `cohort` users takes in a process that does nothing else."""
    plain = replace(recipe, model=replace(recipe.model))  # without what this process found out
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(memory_of_round, plain, cohort).result()


def memory_of_round(recipe: WorkerRecipe, cohort: int) -> Memory:
    """Returns the memory of this process, or its GPU's, before and after a round with `cohort` users."""
    prepare_process()
    worker = recipe.build()
    device = next(worker.gradients.model.parameters()).device
    training = TrainingRounds.in_process(worker, benchmark_strategy(worker, FixedSizeSelector(cohort)))
    before = peak_bytes(device)
    training()
    return Memory(before, peak_bytes(device))


def peak_bytes(device: torch.device) -> int:
    """Returns the most bytes so far: of tensors on a GPU, else resident of this process.

    On Linux the kernel's own high-water mark of the process is read: what `getrusage` says begins with the size of
    the process that started this one.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
