import math

import pytest
import torch
from peft import PeftModel
from torch import nn

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.activations import checkpoint_activations
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.loading import refuse_batch_statistics
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import StepAddress, collate
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import (
    OneByOneGradients,
    StackedGradients,
    UnitGradients,
    unit_gradients,
    why_not_stacked,
)
from fedsim_userdp.training.losses import unit_losses
from fedsim_userdp.training.memory import activation_bytes_per_token, micro_batch_tokens
from tests.conftest import ragged_units, small_gpt2, small_llama

WITH_EMBEDDING = LoraSettings(rank=2, freeze_a=False, target_modules=("wte", "c_attn", "c_fc"))


def update_of(gradients: UnitGradients, model: PeftModel, local: LocalTraining | None = None) -> torch.Tensor:
    local = local or LocalTraining(max_tokens=60)
    result = clipped_update_sum(gradients, trainable_state(model), ragged_units(5), local, math.inf)
    return torch.cat([tensor.flatten() for tensor in result.clipped.total.values()])


@pytest.mark.parametrize("local", [LocalTraining(max_tokens=60), LocalTraining(steps=3, learning_rate=0.5)])
def test_one_by_one_updates_equal_stacked_ones(any_model: PeftModel, local: LocalTraining) -> None:
    stacked = update_of(StackedGradients(any_model), any_model, local)
    one_by_one = update_of(OneByOneGradients(any_model), any_model, local)
    assert float((stacked - one_by_one).norm()) <= 1e-5 * float(stacked.norm())


def test_models_of_linear_layers_are_stacked(any_model: PeftModel) -> None:
    assert isinstance(unit_gradients(any_model, 16), StackedGradients)


def test_targets_that_cannot_be_stacked_fall_back_to_one_by_one_and_say_which() -> None:
    model = small_gpt2(WITH_EMBEDDING, tie_word_embeddings=False)
    assert "wte (Embedding)" in str(why_not_stacked(model, 16))
    assert isinstance(unit_gradients(model, 16), OneByOneGradients)
    assert any("embedding" in name for name in trainable_state(model))
    assert float(update_of(unit_gradients(model, 16), model).norm()) > 0


def test_fallback_updates_equal_plain_autograd() -> None:
    model = small_gpt2(WITH_EMBEDDING, tie_word_embeddings=False)
    found = update_of(unit_gradients(model, 16), model)
    expected = {name: torch.zeros_like(tensor) for name, tensor in trainable_state(model).items()}
    for unit in ragged_units(5):
        model.zero_grad()
        unit_losses(model, collate([unit])).sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                expected[name] += parameter.grad
    flat = torch.cat([tensor.flatten() for tensor in expected.values()])
    assert float((found - flat).norm()) <= 1e-5 * float(flat.norm())


class _Mixing(nn.Module):
    """Adds the mean over the rows: what a layer must not do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + x.mean(0, keepdim=True)


def test_a_model_that_mixes_rows_is_noticed() -> None:
    model = small_gpt2()
    block = model.get_base_model().transformer.h[0]
    block.mlp = _Mixing(block.mlp)
    assert "mix the rows" in str(why_not_stacked(model, 16))


class _Flattening(nn.Module):
    """Hands rows and tokens to its layer in one list, as mixtures of experts do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.flatten(0, 1)).view(*x.shape)


def test_a_model_that_flattens_rows_is_noticed_and_trained_one_by_one() -> None:
    model = small_gpt2()
    block = model.get_base_model().transformer.h[0]
    expected = update_of(OneByOneGradients(model), model)
    block.mlp = _Flattening(block.mlp)
    assert "rows" in str(why_not_stacked(model, 16))
    names = [name.replace("mlp.inner", "mlp") for name in trainable_state(model)]
    assert sorted(names) == sorted(trainable_state(small_gpt2()))
    found = update_of(unit_gradients(model, 16), model)
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=1e-5)


def test_checkpointed_activations_give_the_same_update_and_are_fewer() -> None:
    for build in (small_gpt2, small_llama):
        plain, checkpointed = build(), build()
        checkpoint_activations(checkpointed)
        expected = update_of(StackedGradients(plain), plain)
        found = update_of(StackedGradients(checkpointed), checkpointed)
        assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())
        saved = [activation_bytes_per_token(StackedGradients(m), 12) for m in (checkpointed, plain)]
        assert saved[0] < 0.6 * saved[1]


def test_checkpointed_activations_are_computed_again_with_the_units_own_adapter() -> None:
    for build in (small_gpt2, small_llama):
        plain, checkpointed = build(), build()
        checkpoint_activations(checkpointed)
        assert why_not_stacked(checkpointed, 16) is None
        stacked = {name: 0.1 + tensor.expand(5, *tensor.shape) for name, tensor in trainable_state(plain).items()}
        batch = collate(ragged_units(5))
        (found, _), (expected, _) = (OneByOneGradients(m)(stacked, batch, StepAddress()) for m in (checkpointed, plain))
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_with_batch_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ModelError, match="1 normalises over the batch"):
        refuse_batch_statistics(model, "here")
    refuse_batch_statistics(nn.Sequential(nn.LayerNorm(2)), "here")


@pytest.mark.parametrize("which", [StackedGradients, OneByOneGradients])
def test_a_bfloat16_model_has_float32_updates_close_to_the_float32_ones(which: type) -> None:
    exact, rough = small_gpt2(), small_gpt2()
    rough.get_base_model().to(torch.bfloat16)
    for name, parameter in rough.named_parameters():
        if "lora_" in name:
            parameter.data = dict(exact.named_parameters())[name].data.clone()
    found = update_of(which(rough), rough)
    expected = update_of(which(exact), exact)
    assert found.dtype == torch.float32
    assert float((found - expected).norm()) <= 0.1 * float(expected.norm())


def test_micro_batches_are_a_power_of_two_within_memory_and_hold_the_longest_record() -> None:
    cpu = torch.device("cpu")
    assert micro_batch_tokens(1.0, cpu, 64) == 4096
    assert micro_batch_tokens(1e18, cpu, 64) == 64
    half = micro_batch_tokens(2e6, cpu, 1)
    assert micro_batch_tokens(4e6, cpu, 1) in (half, half // 2)
    assert half & (half - 1) == 0
