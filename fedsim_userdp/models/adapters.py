"""LoRA adapters of a causal language model as plain name-to-tensor mappings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedsim_userdp.privacy.streams import numpy_generator

ADAPTER = "default"


@dataclass(frozen=True)
class LoraSettings:
    """How the adapter is built; see `peft.LoraConfig`.

    Attributes:
        rank: inner dimension of each factor pair, at least 1.
        alpha: the product of the factors is scaled by alpha / rank (alpha / sqrt(rank) with `use_rslora`).
        target_modules: names of the layers to adapt, or "all-linear".
        use_rslora: rank-stabilised scaling.
        freeze_a: train B only (FFA-LoRA, Sun et al. 2024, arXiv 2403.12313), so that averaging is exact.
    """

    rank: int = 8
    alpha: float = 8.0
    target_modules: str | tuple[str, ...] = "all-linear"
    use_rslora: bool = False
    freeze_a: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank={self.rank} must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha={self.alpha} must be above 0")


def attach_lora(base: PreTrainedModel, settings: LoraSettings, seed: int) -> PeftModel:
    """Returns `base` with a fresh LoRA adapter, everything else frozen; A is drawn from (seed, "init"), B is 0."""
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
        use_rslora=settings.use_rslora,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config)
    initialise(model, seed)
    if settings.freeze_a:
        for layer in lora_layers(model).values():
            layer.lora_A[ADAPTER].weight.requires_grad_(False)
    return model


def initialise(model: PeftModel, seed: int) -> None:
    """Sets A as PEFT does, uniform within +-1/sqrt(in), from an addressed generator; sets B to 0."""
    for name, layer in lora_layers(model).items():
        weight = layer.lora_A[ADAPTER].weight
        bound = 1 / math.sqrt(weight.shape[1])
        drawn = numpy_generator(seed, "init", user=name).uniform(-bound, bound, size=tuple(weight.shape))
        with torch.no_grad():
            weight.copy_(torch.from_numpy(drawn))
            layer.lora_B[ADAPTER].weight.zero_()


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
