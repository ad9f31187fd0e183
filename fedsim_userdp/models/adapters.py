"""LoRA adapters of a causal language model as plain name-to-tensor mappings."""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.dropout import AddressedDropout
from fedsim_userdp.models.frozen_layers import speed_up_frozen_layers
from fedsim_userdp.models.output_layer import answer_with_losses, stop_answering
from fedsim_userdp.models.targets import check_targets, refuse_inexact, told, why_not_adapted
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import LoraSettings

ADAPTER = "default"
Result = TypeVar("Result")


def attach_lora(base: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """Returns `base` with a fresh LoRA adapter, everything else frozen.

    The first factor is drawn from the seed, the second is 0, so that the adapter does nothing yet.  The first adapter
    is public, as the released ones are: it has no part in what is kept secret, and all mechanisms start from it.

    Raises:
        ModelError: when no layer of the model is called as one of `target_modules`, or an adapter would make another
            model once it is merged.
    """
    targets = settings.target_modules
    check_targets(base, targets)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        lora_dropout=settings.dropout,
        use_rslora=settings.use_rslora,
        task_type="CAUSAL_LM",
    )
    speed_up_frozen_layers(base)
    stop_answering(base)  # until it is clear that the output layer has no adapter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is seen to here, such as layers with shared weights
            model = get_peft_model(base, config)
    except ValueError as error:
        reason = why_not_adapted(base, targets, error)
        raise ModelError(f"lora.target_modules={told(targets)}: {reason}") from error
    try:
        answer_with_losses(base)
    except ModelError as error:  # it could before: a router, for instance, whose output is not one tensor
        raise ModelError(f"lora.target_modules={told(targets)}: with adapters there, {error}") from error
    refuse_inexact(model, lora_layers(model))
    for name, layer in lora_layers(model).items():
        drawn, zero = factors(layer)
        _initialise(drawn, zero, seed, name)
        drawn.requires_grad_(not settings.freeze_a)
        if settings.dropout:
            layer.lora_dropout[ADAPTER] = AddressedDropout(settings.dropout, name)
    return model


def factors(layer: LoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    """Returns the factor that starts from random numbers and the one that starts from 0, as PEFT has it.

    They are A and B; of an embedding, B and A.
    """
    if ADAPTER in layer.lora_embedding_A:
        return layer.lora_embedding_B[ADAPTER], layer.lora_embedding_A[ADAPTER]
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def _initialise(drawn: nn.Parameter, zero: nn.Parameter, seed: int, name: str) -> None:
    """Sets one factor uniform within +-1/sqrt(inputs) from an addressed generator, the other to 0."""
    bound = 1 / math.sqrt(math.prod(drawn.shape[1:]))
    numbers = RunKey.seeded(seed).generator("init", user=name).uniform(-bound, bound, size=tuple(drawn.shape))
    with torch.no_grad():
        drawn.copy_(torch.from_numpy(numbers))
        zero.zero_()


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Returns the adapted layers by the module name that PEFT uses in its files."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """Returns a float32 CPU copy of every trainable tensor, by parameter name, in the order of the names."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: named[name].detach().float().cpu().clone() for name in sorted(named)}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copies `state` into the trainable parameters; names and shapes must fit exactly.

    Raises:
        ValueError: naming the tensors that are missing, unexpected or of another shape.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrong = sorted(set(named) ^ set(state)) or [n for n in named if named[n].shape != state[n].shape]
    if wrong:
        raise ValueError(f"adapter does not fit the model at {', '.join(wrong[:3])}")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(state[name])


def with_adapter(model: nn.Module, adapter: Mapping[str, Tensor], work_fn: Callable[[nn.Module], Result]) -> Result:
    """Returns what `work_fn` makes of the model while `adapter` is in place of the model's own.

    A backward pass belongs into it: activations that are computed again there must meet the same adapter.

    Args:
        model: a PEFT model; left as it was.
        adapter: name of a parameter to tensor of its shape.
        work_fn: is given the model.
    """
    result: Result = functional_call(_Working(model), {f"model.{n}": t for n, t in adapter.items()}, (work_fn,))
    return result


class _Working(nn.Module):
    """A model as what is called, so that more than its forward pass runs on other parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work_fn: Callable[[nn.Module], object]) -> object:
        """What the work makes of the model."""
        return work_fn(self.model)
