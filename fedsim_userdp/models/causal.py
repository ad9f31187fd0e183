"""Whether a model reads a text from its beginning: what it says of a token must not depend on later ones."""

import numpy as np
import torch
from torch import Tensor, nn

from fedsim_userdp.errors import MODEL_FAILURES, ModelError
from fedsim_userdp.models.precision import is_reduced, without_autocast
from fedsim_userdp.models.special_tokens import special_ids, with_special

_LENGTH = 12  # tokens
_CHANGED = (11, 6)  # places whose token is changed in turn
_MOST_SPECIAL = 4  # tokens of a role that are tried
# Part of a token's own effect on the logits that may show before it by rounding, where layers see tokens in one list.
_EFFECT = {False: 1e-4, True: 0.05}
_LEAK = 1e-6  # the same of a gradient, into which rounding puts nothing


def refuse_looking_ahead(model: nn.Module, location: str, length: int | None) -> None:
    """Raises ModelError when a model's logits depend on later tokens: a perplexity of such a model means nothing.

    It is tried, since no name tells: a later token is changed, and earlier logits must stay; on any tokens, and on some
    of which every other one has a role, such as that of padding.

    Args:
        model: a language model in eval mode; left as it was.
        location: where it is from.
        length: the most tokens that it reads; None where that is not known.
    """
    name = type(model).__name__
    num_tokens = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    tokens = np.random.default_rng(0).integers(0, num_tokens, min(_LENGTH, length or _LENGTH))
    tried = [(tokens, min(place, len(tokens) - 1)) for place in _CHANGED]
    for special in special_ids(model)[:_MOST_SPECIAL]:
        tried.append((with_special(tokens, (special,)), max(len(tokens) - 2, 0)))  # the last special one is changed
    try:
        with without_autocast():
            looks_ahead = any(_shows_before(model, text, place) for text, place in tried)
    except MODEL_FAILURES as error:
        first = str(error).partition("\n")[0]
        raise ModelError(f"model.path={location}: {name} cannot read {len(tokens)} tokens ({first})") from error
    if looks_ahead:
        raise ModelError(
            f"model.path={location}: {name} is not causal: what it says of a token changes with later ones, so that a "
            "perplexity would mean nothing; give a causal language model"
        )


def _shows_before(model: nn.Module, tokens: np.ndarray, place: int) -> bool:
    """Whether another token at a place shows in the logits before it."""
    num_tokens = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    other = tokens.copy()
    other[place] = (other[place] + 1 + num_tokens // 2) % num_tokens
    with torch.no_grad():
        change = (_logits(model, other) - _logits(model, tokens)).abs().amax(-1)
    if not bool(change.isfinite().all()):
        raise ValueError("what it says is not finite")
    if not bool(change[:place].any()):
        return False
    if float(change[:place].max()) > _EFFECT[is_reduced(model)] * float(change[place:].max()):
        return True
    return _has_gradient_after(model, tokens, place)


def _has_gradient_after(model: nn.Module, tokens: np.ndarray, place: int) -> bool:
    """Whether the logits before a place have a gradient with respect to what is embedded from there on."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1].clone()  # which the model may change in place

    handle = model.get_input_embeddings().register_forward_hook(keep)  # type: ignore[operator]
    try:
        with torch.enable_grad():
            logits = _logits(model, tokens)[:place]
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(logits.square().sum(), embedded[:1])
    return float(gradient[0, place:].float().norm()) > _LEAK * float(gradient.float().norm())


def _logits(model: nn.Module, tokens: np.ndarray) -> Tensor:
    """The logits of each token, float32, shape [tokens, vocabulary]."""
    device = next(model.parameters()).device
    logits: Tensor = model(input_ids=torch.from_numpy(tokens)[None].to(device), use_cache=False).logits
    return logits[0].float()
