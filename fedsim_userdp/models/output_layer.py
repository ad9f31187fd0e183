"""Next-token losses straight from a model's output layer, some tokens at a time, so that its logits are never held.

With a vocabulary of 50,000 the logits of a micro-batch, their softmax and its gradient are by far the largest tensors
of training; here they exist for a few thousand tokens at once, and for tokens that predict something only.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedsim_userdp.errors import MODEL_FAILURES, ModelError
from fedsim_userdp.models.frozen_layers import FrozenLinear

_NUMBERS = 2**26  # logits that are held at once, 256 MB in float32, unless that is fewer tokens than
_FEWEST_TOKENS = 256
_MOST_TOKENS = {"cpu": 1024, "cuda": 4096, "mps": 4096}


@dataclass
class LossRequest:
    """What is asked of the output layer.

    Attributes:
        positions: which of the batch's tokens, in its flattened [rows, length], shape [tokens], int64.
        targets: the token that follows each, shape [tokens], int64.
        losses: the answer, the cross-entropy of each in nats, float32, shape [tokens]; None where the model gave
            logits instead.
    """

    positions: Tensor
    targets: Tensor
    losses: Tensor | None = None


_REQUEST: ContextVar[LossRequest | None] = ContextVar("loss_request", default=None)


@contextmanager
def asking_for_losses(positions: Tensor, targets: Tensor) -> Iterator[LossRequest]:
    """Within the block, one call of a model that `answer_with_losses` prepared answers the request.

    What such a model then returns as logits is of no use.

    Args:
        positions: see `LossRequest`.
        targets: see `LossRequest`.
    """
    request = LossRequest(positions, targets)
    token = _REQUEST.set(request)
    try:
        yield request
    finally:
        _REQUEST.reset(token)


def answer_with_losses(model: nn.Module) -> None:
    """Lets the model's output layer answer requests for losses; without one it does what it did.

    Nothing happens to a model whose logits are more than what a plain, frozen output layer says (soft caps, scales,
    an adapter): it is run once, on two tokens, with other numbers in the layer's place, to see what becomes of them.

    Raises:
        ModelError: when the model cannot read two tokens.
    """
    layer = _output_layer(model)
    if layer is not None and not is_prepared(layer) and _gives_the_logits(layer, model):
        layer.__dict__["forward"] = partial(_losses_or_logits, layer)


def stop_answering(model: nn.Module) -> None:
    """Undoes `answer_with_losses`."""
    for module in model.modules():
        if is_prepared(module):
            del module.__dict__["forward"]


def is_prepared(layer: nn.Module) -> bool:
    """Returns whether the layer answers requests for losses."""
    forward = layer.__dict__.get("forward")
    return isinstance(forward, partial) and forward.func is _losses_or_logits


def _output_layer(model: nn.Module) -> nn.Linear | None:
    """The model's output layer where it is a plain frozen one."""
    find = getattr(model, "get_output_embeddings", None)
    layer = find() if callable(find) else None
    if not isinstance(layer, nn.Linear) or type(layer) not in (nn.Linear, FrozenLinear):
        return None
    return None if any(parameter.requires_grad for parameter in layer.parameters()) else layer


def _gives_the_logits(layer: nn.Linear, model: nn.Module) -> bool:
    """Whether the model's logits are the layer's output for every token, whatever that is."""
    made: list[Tensor] = []

    def replace_output(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Numbers from -100 to 100 in place of the output, which a soft cap or a scale would change."""
        made.append(torch.linspace(-100.0, 100.0, output.numel()).view_as(output).to(output))
        return made[-1].clone() if inputs[0].shape == (1, 2, layer.in_features) else output

    handle = layer.register_forward_hook(replace_output)
    try:
        with torch.no_grad():
            tokens = torch.zeros(1, 2, dtype=torch.int64, device=layer.weight.device)
            logits = model(input_ids=tokens, use_cache=False).logits
    except MODEL_FAILURES as error:
        raise ModelError(f"model.path: {type(model).__name__} cannot read two tokens ({error})") from error
    finally:
        handle.remove()
    return len(made) == 1 and torch.equal(made[0].float(), logits.float())


def _losses_or_logits(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """The layer's own output, or what is asked for instead; `hidden` is [rows, length, features]."""
    request, project = _REQUEST.get(), partial(type(layer).forward, layer)
    if request is None or layer.weight.requires_grad:
        return project(hidden)
    chosen = hidden.flatten(0, 1).index_select(0, request.positions)
    most = max(_FEWEST_TOKENS, min(_MOST_TOKENS[hidden.device.type], _NUMBERS // layer.out_features))
    request.losses = _TokenLosses.apply(chosen, request.targets, project, most)
    return hidden


class _TokenLosses(torch.autograd.Function):
    """-log softmax(project(hidden))[target] of each token, some tokens at a time, differentiable in `hidden`.

    The gradient of a token's loss, (softmax - one at the target) times the layer's weight, is computed on the way,
    while the logits are there; the backward pass multiplies it by the loss's own gradient.  A token's numbers depend
    on its own row of `hidden` only.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, project: Callable[[Tensor], Tensor], most_tokens: int
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        is_wanted = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if is_wanted else None
        for start in range(0, len(hidden), most_tokens):
            rows = slice(start, start + most_tokens)
            with torch.set_grad_enabled(is_wanted):
                own = hidden[rows].detach().requires_grad_(is_wanted)
                logits = project(own)
            log_probs, target = logits.detach().float().log_softmax(-1), targets[rows].unsqueeze(1)
            losses[rows] = -log_probs.gather(1, target).squeeze(1)
            if slopes is not None:
                excess = log_probs.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=torch.float32))
                slopes[rows] = torch.autograd.grad(logits, own, excess.to(logits.dtype))[0]
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradient.unsqueeze(1).to(slopes.dtype), None, None, None
