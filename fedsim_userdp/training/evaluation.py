"""Perplexity on held-out users."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedsim_userdp.training.batches import IGNORED, Unit, micro_batches
from fedsim_userdp.training.losses import token_losses

_DRAWS = 2000


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


@torch.inference_mode()
def summed_losses(
    model: nn.Module, units: Sequence[Unit], max_tokens: int = 8192
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns the sum of next-token losses of each unit, in nats, and how many tokens it is of, each of shape [units].

    Args:
        model: a causal language model, in eval mode.
        units: users with the records that are scored.
        max_tokens: padded tokens of a micro-batch.
    """
    device = next(model.parameters()).device
    owner = [number for number, unit in enumerate(units) for _ in unit.records]
    records = [Unit(i, [record]) for i, record in enumerate(r for unit in units for r in unit.records)]
    sums, counts = np.zeros(len(units)), np.zeros(len(units), dtype=np.int64)
    for batch in micro_batches(records, max_tokens, device):
        of_units = np.array([owner[index] for index in batch.units])
        np.add.at(sums, of_units, token_losses(model, batch).cpu().double().sum(1).numpy())
        np.add.at(counts, of_units, (batch.targets != IGNORED).sum(1).cpu().numpy())
    return sums, counts


def bootstrapped(sums: NDArray[np.float64], counts: NDArray[np.int64], seed: int = 0) -> tuple[float, float, float]:
    """Returns the perplexity of some units, and its 95% interval over them: 2,000 draws of units with replacement.

    Args:
        sums: losses of each unit, in nats, shape [units].
        counts: tokens of each unit, shape [units], at least one in all.
        seed: of the draws.
    """
    drawn = np.random.default_rng(seed).integers(len(sums), size=(_DRAWS, len(sums)))
    tokens = np.maximum(counts[drawn].sum(1), 1)
    low, high = np.quantile(np.minimum(sums[drawn].sum(1) / tokens, 700.0), [0.025, 0.975])
    mean = min(float(sums.sum() / counts.sum()), 700.0)
    return math.exp(mean), math.exp(low), math.exp(high)
