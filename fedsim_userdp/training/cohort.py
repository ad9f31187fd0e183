"""The sum of a cohort's clipped updates, micro-batch by micro-batch: memory does not grow with the cohort."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedsim_userdp.models.precision import is_reduced
from fedsim_userdp.models.stacked import stack
from fedsim_userdp.privacy.clipping import ClippedSum, Clipping, clip_and_sum, clip_each_and_sum
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.signals import Query
from fedsim_userdp.training.batches import MicroBatch, StepAddress, Unit, micro_batches
from fedsim_userdp.training.gradients import UnitGradients
from fedsim_userdp.training.memory import units_in_memory

_FIRST = StepAddress()
_COPIES = 2  # of the adapter that a unit of a micro-batch needs: its own and its gradient


@dataclass(frozen=True)
class LocalTraining:
    """What a unit does with its records.

    Attributes:
        steps: local gradient steps, at least 1; 1 is user-wise DP-SGD, more is DP-FedAvg.
        learning_rate: of the local steps, in (0, 1e30]; without effect when `steps` is 1.
        max_tokens: padded tokens of a micro-batch of units, at least 1.

    Raises:
        ValueError: when one of them is out of range.
    """

    steps: int = 1
    learning_rate: float = 0.1
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"local.steps={self.steps} must be at least 1")
        if not 0 < self.learning_rate <= 1e30:  # beyond, float32 overflows
            raise ValueError(f"local.learning_rate={self.learning_rate} must be above 0 and at most 1e+30")
        if self.max_tokens < 1:
            raise ValueError(f"local.max_tokens={self.max_tokens} must be at least 1")


@dataclass(frozen=True)
class CohortUpdate:
    """What a node answers: `clipped.total` and `signals` are what a secure sum would reveal, the rest is not private.

    Attributes:
        clipped: the sum of the units' clipped updates, and counts.
        loss_sum: sum over the units of their mean loss before any local step, in nats.
        num_tokens: predicted tokens, times local steps.
        failed: numbers of users whose update could not be computed; they add an exact zero and are not in `clipped`.
        reason: why the first of them failed; for the terminal, not for files.  Empty where nobody did.
        signals: sums and counts of what the units send besides, see `Query.answer`, shape [2, groups]; zeros of shape
            [2, 1] where nobody sends any.
    """

    clipped: ClippedSum
    loss_sum: float
    num_tokens: int
    failed: tuple[int, ...] = ()
    reason: str = ""
    signals: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 1)))

    @property
    def num_failed(self) -> int:
        """Number of users whose update could not be computed."""
        return len(self.failed)


def clipped_update_sum(
    gradients: UnitGradients,
    state: Mapping[str, Tensor],
    units: Sequence[Unit],
    local: LocalTraining,
    clip_norm: float,
    *,
    round: int = 0,
    key: RunKey | None = None,
    clipping: Clipping | None = None,
    query: Query | None = None,
) -> CohortUpdate:
    """Returns the sum over the units of their clipped updates.

    A unit's update is (start - end) / local.learning_rate over all its local steps: the gradient of its mean
    loss when there is one step.  It is clipped once, as a whole.  With several local steps, or in bfloat16, units are
    computed one after the other: beside others, rounding would depend on who they are, which steps that diverge, or
    products of 8 bits, make large (docs/decisions/0012).

    Guarantee: adding or removing one unit changes `clipped.total` by at most its weight (1 as a rule) times
    `clip_norm` in L2 norm, up to what the rounding of sums (and, with one step, of products in a shared micro-batch)
    amounts to.

    Args:
        gradients: computes each unit's gradient, with its model.
        state: the global adapter, name to tensor.
        units: the cohort; units without records are left out by the caller and count as zero.
        local: steps and micro-batch size.
        clip_norm: bound on the norm of a unit's update, above 0.
        round: the round, which addresses dropout masks.
        key: what dropout masks derive from; None where nothing is dropped.
        clipping: what shrinks a unit's update; None for scaling it as a whole.
        query: what the units send besides, each a user; None for nothing.
    """
    device = next(gradients.model.parameters()).device
    state = {name: tensor.to(device) for name, tensor in state.items()}
    is_alone = local.steps > 1 or is_reduced(gradients.model)
    max_units = 1 if is_alone else units_in_memory(state, device, copies=_COPIES)
    total, at = zero_update(state, torch.float64), StepAddress(round, key=key)
    for batch in micro_batches(units, local.max_tokens, device, max_units=max_units):
        total = add(total, _clipped_sum_of(gradients, state, batch, local, clip_norm, at, clipping, query))
    return in_float32(total)


def _clipped_sum_of(
    gradients: UnitGradients,
    state: Mapping[str, Tensor],
    batch: MicroBatch,
    local: LocalTraining,
    clip_norm: float,
    at: StepAddress,
    clipping: Clipping | None,
    query: Query | None,
) -> CohortUpdate:
    """The sum of a micro-batch's clipped updates; whatever else it needed is free again when it is there."""
    updates, losses = local_updates(gradients, state, batch, local, at)
    weights = [unit.weight for unit in batch.members]
    clipped = (
        clip_each_and_sum(updates, clip_norm, clipping, weights)
        if clipping
        else clip_and_sum(updates, clip_norm, weights)
    )
    found = CohortUpdate(clipped, float(losses.nansum()), batch.num_tokens * local.steps)
    if query is None:
        return found
    told = zip(batch.members, losses.tolist(), strict=True)
    answers = [query.answer(unit.index, loss, unit.weight) for unit, loss in told]
    return replace(found, signals=np.sum(answers, axis=0))


def local_updates(
    gradients: UnitGradients,
    state: Mapping[str, Tensor],
    batch: MicroBatch,
    local: LocalTraining,
    at: StepAddress = _FIRST,
) -> tuple[dict[str, Tensor], Tensor]:
    """Returns each unit's unclipped update (name to [units, ...]) and its loss before training, shape [units].

    Args:
        gradients: computes each unit's gradient, with its model.
        state: the global adapter, name to tensor.
        batch: the units' records.
        local: steps and their learning rate.
        at: address of the first step.

    Returns:
        Updates as in `clipped_update_sum`, and the units' mean losses in nats.
    """
    start = stack(state, batch.rows.num_units, batch.input_ids.device)
    moved, first_losses = gradients(start, batch, at)
    for step in range(1, local.steps):
        current = {n: (start[n] - local.learning_rate * moved[n]).detach().requires_grad_() for n in start}
        found, _ = gradients(current, batch, replace(at, local_step=step))
        moved = {n: moved[n] + found[n] for n in start}
    return moved, first_losses


def zero_update(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> CohortUpdate:
    """Returns the update of an empty cohort: an exact zero; what is added to it is summed up in `dtype`."""
    zeros = {name: torch.zeros_like(tensor, dtype=dtype) for name, tensor in state.items()}
    return CohortUpdate(ClippedSum(zeros, 0, 0, 0, 0.0), 0.0, 0)


def in_float32(update: CohortUpdate) -> CohortUpdate:
    """Returns the update with its sum rounded to float32, once."""
    total = {name: tensor.float() for name, tensor in update.clipped.total.items()}
    return replace(update, clipped=replace(update.clipped, total=total))


def add(a: CohortUpdate, b: CohortUpdate) -> CohortUpdate:
    """Returns the update of both cohorts together, on the device of `a`."""
    x, y = a.clipped, b.clipped
    return CohortUpdate(
        clipped=ClippedSum(
            total={name: x.total[name] + y.total[name].to(x.total[name].device) for name in x.total},
            num_units=x.num_units + y.num_units,
            num_nonfinite=x.num_nonfinite + y.num_nonfinite,
            num_clipped=x.num_clipped + y.num_clipped,
            norm_sum=x.norm_sum + y.norm_sum,
        ),
        loss_sum=a.loss_sum + b.loss_sum,
        num_tokens=a.num_tokens + b.num_tokens,
        failed=a.failed + b.failed,
        reason=a.reason or b.reason,
        signals=a.signals + b.signals,
    )
