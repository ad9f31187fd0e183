"""A run's state on disk: checkpoints when they are due, and the ledger before every release."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsim_userdp.models.adapters import load_trainable_state
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.training.checkpoints import Checkpoint, CheckpointFolder, optimizer_tensors
from simulations.diary import Diary
from simulations.guarantee import Guarantee
from simulations.task import Task


@dataclass(frozen=True)
class Saver:
    """Writes a run's checkpoints: every `every` rounds and after the last."""

    folder: CheckpointFolder
    every: int
    diary: Diary
    ledger: Ledger | None

    def save_if_due(self, round: int, adapter: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Writes a checkpoint of the state after `round` if one is due."""
        if round == self.diary.num_rounds or round % self.every == 0:
            notes = self.diary.notes() | {"ledger_head": None if self.ledger is None else self.ledger.head}
            self.folder.write(Checkpoint(round, dict(adapter), optimizer_tensors(optimizer), notes))

    def record(self, round: int) -> None:
        """Writes the release of `round` to the ledger, to be called before it is made."""
        if self.ledger is not None:
            self.ledger.record(round, single_release(self.diary.guarantee))


def single_release(guarantee: Guarantee) -> acc.UserWise | acc.RecordLevel | acc.FixedSize | acc.NoAmplification:
    """Returns what one round of the run releases; without amplification the declared cap goes with it."""
    release = guarantee.release
    if isinstance(release, acc.NoAmplification):
        return release
    if isinstance(release, acc.UserWise | acc.RecordLevel | acc.FixedSize):
        return release.first(1)
    raise acc.AccountingError(f"a ledger cannot hold a {type(release).__name__}")


def begin_or_resume(diary: Diary) -> Checkpoint | None:
    """Returns the checkpoint to go on from, its adapter and notes put in place; None for a run from the start."""
    start = diary.task.checkpoints.latest() if diary.task.is_resumed else None
    if start is None:
        diary.begin()
        return None
    load_trainable_state(diary.model, start.adapter)
    diary.resume(start.notes)
    return start


@contextmanager
def open_saver(task: Task, diary: Diary, start: Checkpoint | None) -> Iterator[Saver]:
    """Opens the ledger of a run for the duration of the block, and gives the saver that writes to it.

    Raises:
        LedgerError: when the ledger is damaged, in use, or lacks what the checkpoint `start` has seen.
    """
    guarantee = diary.guarantee
    if guarantee.release is None:
        yield Saver(task.checkpoints, task.checkpoint_every, diary, None)
        return
    path = task.folder / "ledger" / f"{task.run_name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    head = None if start is None else start.notes.get("ledger_head")
    with Ledger.open(
        path,
        delta=guarantee.delta,
        budget_epsilon=task.budget.epsilon,
        config_hash=task.config_hash,
        noise_source="seeded" if task.noise.is_seeded else "os",
        method=guarantee.method,
        must_contain=None if head is None else str(head),
    ) as ledger:
        yield Saver(task.checkpoints, task.checkpoint_every, diary, ledger)
