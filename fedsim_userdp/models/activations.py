"""Trading time for memory: the activations of a block are computed again in the backward pass."""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fedsim_userdp.errors import ModelError


def checkpoint_activations(model: nn.Module) -> None:
    """Makes every transformer block of `model` keep its inputs only; the numbers stay the same.

    Transformers' own switch works in training mode only, where dropout would be drawn from global random state.

    Raises:
        ModelError: when the model has no blocks that can be checkpointed.
    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise ModelError(f"model.activation_checkpointing: {type(model).__name__} has no blocks to checkpoint")
    for block in blocks:
        block.forward = partial(_checkpointed, block.forward)


def is_checkpointed(model: nn.Module) -> bool:
    """Returns whether `checkpoint_activations` was applied to the model."""
    return any(
        isinstance(module, GradientCheckpointingLayer) and "forward" in module.__dict__ for module in model.modules()
    )


def _checkpointed(forward: Callable[..., object], *args: object, **kwargs: object) -> object:
    """The block's output, its inside forgotten where a backward pass will follow."""
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(partial(forward, **kwargs), *args, use_reentrant=False, preserve_rng_state=False)
