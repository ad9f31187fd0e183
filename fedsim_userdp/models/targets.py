"""Which layers of a model adapters go to, and which they must not."""

import re
from collections.abc import Mapping, Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsim_userdp.errors import MODEL_FAILURES, ModelError

EVERY_LAYER = "all-linear"
_ADAPTED = (nn.Linear, Conv1D, nn.Embedding)
_NAMED = 12  # names that a sentence has
_TOKENS = 12


def check_targets(base: nn.Module, targets: str | Sequence[str]) -> None:
    """Raises ModelError where a name stands for no layer of the model: PEFT leaves it out as long as another fits.

    Args:
        base: the model without adapters.
        targets: as `LoraSettings.target_modules` has them.
    """
    if targets == EVERY_LAYER:
        return
    names = [targets] if isinstance(targets, str) else list(targets)
    layers = [layer for layer, _ in base.named_modules() if layer]
    if absent := [name for name in names if not any(_fits(layer, name, targets) for layer in layers)]:
        raise ModelError(
            f"lora.target_modules={told(targets)}: no layer of {type(base).__name__} is called {', '.join(absent)}; "
            f"{_possible(base)}"
        )


def why_not_adapted(base: nn.Module, targets: str | Sequence[str], error: Exception) -> str:
    """Returns why PEFT puts no adapters where `targets` says, in a sentence."""
    names = [targets] if isinstance(targets, str) else list(targets)
    for layer, module in base.named_modules():
        if not isinstance(module, _ADAPTED) and any(_fits(layer, name, targets) for name in names):
            return f"{layer} is a {type(module).__name__}, to which no adapters go; {_possible(base)}"
    return str(error).partition("\n")[0]


def refuse_inexact(model: nn.Module, layers: Mapping[str, LoraLayer]) -> None:
    """Raises ModelError for a layer whose adapter would make another model when it is merged into the weights.

    Either its weight is another layer's too, or the model reads the weight past the layer and its adapter.

    Args:
        model: a PEFT model; left as it was.
        layers: its adapted layers by name.
    """
    shared = _shared_layers(model)
    for name in layers:
        if other := shared.get(f"{name}.base_layer"):
            raise ModelError(
                f"lora.target_modules: {_plain(name)} shares its weight with {_plain(other)}, which merging the "
                f"adapter would change too: {_without(name)}"
            )
    if name := _first_bypassed(model, layers):
        raise ModelError(
            f"lora.target_modules: the model reads the weight of {_plain(name)} past its adapter, which would show "
            f"only when it is merged: {_without(name)}"
        )


def told(targets: str | Sequence[str]) -> str:
    """Returns the setting as it is given."""
    return targets if isinstance(targets, str) else f"[{','.join(targets)}]"


def _possible(base: nn.Module) -> str:
    """Which layers adapters can go to, in words."""
    shared = _shared_layers(base)
    layers = (name for name, module in base.named_modules() if isinstance(module, _ADAPTED) and name not in shared)
    names = sorted({name.rpartition(".")[2] for name in layers})
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"adapters can go to [{','.join(names[:_NAMED])}]{more}, or all-linear"


def _shared_layers(model: nn.Module) -> dict[str, str]:
    """The layers that share memory of a parameter with another one, and the other's name."""
    owners: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer = name.rpartition(".")[0]
        other = owners.setdefault(parameter.untyped_storage().data_ptr(), layer) if parameter.numel() else layer
        if other != layer:
            shared |= {layer: other, other: shared.get(other, layer)}
    return shared


@torch.no_grad()
def _first_bypassed(model: nn.Module, layers: Mapping[str, LoraLayer]) -> str:
    """The first layer that is not called when the model reads a text and whose weight shows all the same; or empty."""
    called: set[nn.Module] = set()
    handles = [layer.register_forward_hook(lambda module, _, __: called.add(module)) for layer in layers.values()]
    try:
        expected = _logits(model)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer in layers.items():
        if layer in called:
            continue
        weight = layer.base_layer.weight
        data = weight.data
        try:
            weight.data = torch.full_like(data, torch.nan)
            if not torch.equal(_logits(model), expected):
                return name
        except MODEL_FAILURES:  # what reads it cannot do with NaN
            return name
        finally:
            weight.data = data
    return ""


def _logits(model: nn.Module) -> Tensor:
    """What the model says of a few tokens."""
    device = next(model.parameters()).device
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    logits: Tensor = model(input_ids=torch.arange(_TOKENS, device=device)[None] % known, use_cache=False).logits
    return logits


def _without(name: str) -> str:
    """What to do about a layer."""
    return f"name the layers to adapt, without {name.rpartition('.')[2]}"


def _plain(name: str) -> str:
    """The name that the model itself gives to a layer."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def _fits(layer: str, name: str, targets: str | Sequence[str]) -> bool:
    """Whether PEFT takes a layer for what a name means: the end of it, or a pattern for all of it."""
    if not isinstance(targets, str):
        return layer == name or layer.endswith(f".{name}")
    try:
        return re.fullmatch(name, layer) is not None
    except re.error as error:
        raise ModelError(
            f"lora.target_modules={name} is no regular expression ({error}): give a list of names"
        ) from error
