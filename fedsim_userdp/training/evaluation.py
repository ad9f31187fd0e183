"""Perplexity on held-out users."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fedsim_userdp.training.batches import Unit, micro_batches
from fedsim_userdp.training.losses import token_losses


@torch.inference_mode()
def perplexity(model: nn.Module, units: Sequence[Unit], max_tokens: int = 8192) -> float:
    """Returns exp of the mean next-token loss over all tokens of the units.

    Args:
        model: a causal language model, in eval mode.
        units: held-out users with the records that are scored.
        max_tokens: padded tokens of a micro-batch.

    Raises:
        ValueError: when there is nothing to score.
    """
    if not units:
        raise ValueError("no held-out user has a record to score")
    device = next(model.parameters()).device
    records = [Unit(i, [record]) for i, record in enumerate(r for unit in units for r in unit.records)]
    total = count = 0.0
    for batch in micro_batches(records, max_tokens, device):
        total += float(token_losses(model, batch).cpu().double().sum())
        count += batch.num_tokens
    return math.exp(min(total / count, 700.0))
