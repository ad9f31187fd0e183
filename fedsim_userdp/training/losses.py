"""Next-token losses of a causal language model."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from fedsim_userdp.models.output_layer import asking_for_losses
from fedsim_userdp.training.batches import IGNORED, MicroBatch

ModelFn = Callable[..., CausalLMOutput]


def token_losses(model: ModelFn, batch: MicroBatch) -> Tensor:
    """Returns the cross-entropy of every next token in nats, shape [rows, length], 0 where ignored.

    No attention mask is needed: padding stands on the right, and a causal model never looks there.
    """
    targets = batch.targets.flatten()
    with asking_for_losses(batch.predicted, targets.index_select(0, batch.predicted)) as request:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    if request.losses is None:
        every = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="none"
        )
    else:
        every = request.losses.new_zeros(len(targets)).index_copy(0, batch.predicted, request.losses)
    return every.view_as(batch.targets)


def record_losses(model: ModelFn, batch: MicroBatch) -> Tensor:
    """Returns each record's mean token loss in nats, shape [rows]."""
    counts = (batch.targets != IGNORED).sum(1)
    return token_losses(model, batch).sum(1) / counts


def unit_losses(model: ModelFn, batch: MicroBatch) -> Tensor:
    """Returns the mean over each unit's records of the record's mean token loss, shape [units]."""
    losses = record_losses(model, batch)
    if batch.rows.is_even:
        return losses.view(batch.rows.num_units, -1).mean(1)
    totals = torch.zeros(batch.rows.num_units, dtype=losses.dtype, device=losses.device)
    return totals.index_add(0, batch.rows.unit_of_row, losses) / batch.rows.rows_of_unit
