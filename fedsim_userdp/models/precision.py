"""Mixed precision: a float32 model whose matrix products are done in bfloat16."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import nn

_MARK = "autocast_dtype"  # of a model whose forward pass is in mixed precision
_IS_SUSPENDED: ContextVar[bool] = ContextVar("is_suspended", default=False)


def autocast_forward(model: nn.Module, dtype: torch.dtype) -> None:
    """Makes every forward pass of `model` run under torch's autocast: weights, sums and losses stay float32.

    The backward pass follows the forward pass; gradients of float32 adapters are float32, and so are clipping and sums.

    Args:
        model: a model on the device where it is used.
        dtype: what products are done in, such as `torch.bfloat16`.
    """
    device, forward = next(model.parameters()).device.type, model.forward

    @functools.wraps(forward)
    def under_autocast(*args: object, **kwargs: object) -> object:
        """The forward pass in mixed precision, unless that is suspended."""
        with torch.autocast(device, dtype=dtype, enabled=not _IS_SUSPENDED.get()):
            return forward(*args, **kwargs)

    model.__dict__["forward"] = under_autocast
    model.__dict__[_MARK] = dtype


def is_reduced(model: nn.Module) -> bool:
    """Returns whether some of a model's products are done in less than float32, autocast included.

    Then what a unit adds depends, by up to 0.02 clip norms, on the shape of the micro-batch that it shares with others
    (docs/decisions/0012): private training computes such units one after the other.
    """
    frozen = (parameter.dtype for parameter in model.parameters())
    return any(dtype.itemsize < 4 for dtype in frozen) or any(_MARK in module.__dict__ for module in model.modules())


@contextmanager
def without_autocast() -> Iterator[None]:
    """Within the block, such models compute in float32 after all, for comparisons that rounding would blur."""
    token = _IS_SUSPENDED.set(True)
    try:
        yield
    finally:
        _IS_SUSPENDED.reset(token)
