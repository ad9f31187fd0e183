"""Centralized training on the pooled records, step by step, whatever a step does.

The pool is capped at k records per user beforehand (`TrainingUsers.pool`), so that a record-level guarantee converts to
the user level.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedsim_userdp.errors import ReleasedOtherwise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import Unit


@dataclass(frozen=True)
class CentralSettings:
    """What a centralized run does; public.

    Attributes:
        steps: number of steps, at least 1.
        sampling_prob: probability with which each record takes part in a step, in (0, 1].
        key: the run's key, which the sampling derives from.

    Raises:
        ValueError: when `steps` or `sampling_prob` is out of range.
    """

    steps: int
    sampling_prob: float
    key: RunKey

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"mechanism.rounds={self.steps} must be at least 1")
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"selection.sampling_prob={self.sampling_prob} must lie in (0, 1]")


@dataclass(frozen=True)
class Pool:
    """The records that a centralized run trains on, at most k of each user.

    Attributes:
        units: one unit for each record; one whose record has no tokens counts and adds nothing.
        id_hashes: hash of the id of each record's user, shape [records].
        places: number of each record among those chosen from its user, shape [records]; with the hash, its address.
    """

    units: Sequence[Unit]
    id_hashes: NDArray[np.uint64]
    places: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.units)

    def sample(self, sampling_prob: float, step: int, key: RunKey) -> list[Unit]:
        """Returns the records of a step: each with `sampling_prob`, by a coin of its own that no other record moves."""
        coins = key.coins("selection", self.id_hashes, self.places, round=step)
        return [self.units[int(index)] for index in np.flatnonzero(coins < sampling_prob)]


@dataclass(frozen=True)
class StepReport:
    """What a step did; diagnostics, not private.

    Attributes:
        step: the step, from 1.
        num_records: records of the batch.
        num_tokens: predicted tokens.
        num_nonfinite: records whose gradient was not finite and counted as zero; 0 where that is not looked for.
        loss_sum: sum over the records of their mean token loss before the step, in nats; NaN counts as 0 in private
            steps.
    """

    step: int
    num_records: int
    num_tokens: int
    num_nonfinite: int
    loss_sum: float


class RecordStep(Protocol):
    """One optimizer step on a batch of records, given as units of one record each."""

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose state a checkpoint keeps."""
        ...

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Changes the model in place."""
        ...


def train_on_records(
    take_step: RecordStep,
    pool: Pool,
    settings: CentralSettings,
    before_release: Callable[[int], None],
    first: int = 1,
) -> Iterator[StepReport]:
    """Yields a report after each step; every record takes part independently with `sampling_prob`.

    Args:
        take_step: what is done with the records of a step.
        pool: the capped pool.
        settings: steps and sampling.
        before_release: called with the step before its noise is drawn; where it raises `ReleasedOtherwise`, the step is
            lost and no report of it is given.
        first: the first step to take, at least 1; later ones when a run is resumed.
    """
    for step in range(first, settings.steps + 1):
        sampled = pool.sample(settings.sampling_prob, step, settings.key)
        try:
            before_release(step)
        except ReleasedOtherwise:
            continue
        yield take_step(step, [unit for unit in sampled if len(unit.records[0])])
