"""Losses from the output layer, some tokens at a time, are those of the logits."""

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from fedsim_userdp.models import output_layer
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.models.output_layer import answer_with_losses, is_prepared, stop_answering
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import IGNORED, MicroBatch, collate
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients, StepAddress
from fedsim_userdp.training.losses import token_losses
from tests.conftest import VOCABULARY, ragged_units, small_gpt2, small_llama


def losses_of_logits(model: nn.Module, batch: MicroBatch) -> Tensor:
    """The cross-entropy from all logits at once."""
    logits = model(input_ids=batch.input_ids).logits.float()
    flat = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    return flat.view_as(batch.targets)


def with_gradients(
    model: nn.Module, batch: MicroBatch, losses_fn: Callable[..., Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The losses, and the gradient of their sum, every token weighted differently."""
    losses = losses_fn(model, batch)
    weights = torch.linspace(0.5, 2.0, losses.numel()).view_as(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return losses.detach(), list(torch.autograd.grad((weights * losses).sum(), parameters))


@pytest.mark.parametrize("most_tokens", [1, 7, 10_000])
def test_losses_and_gradients_are_those_of_the_logits(
    any_model: PeftModel, most_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_layer, "_FEWEST_TOKENS", 1)
    monkeypatch.setattr(output_layer, "_MOST_TOKENS", {"cpu": most_tokens})
    batch = collate(ragged_units(5))
    assert is_prepared(any_model.get_base_model().get_output_embeddings())
    found, gradients = with_gradients(any_model, batch, token_losses)
    expected, expected_gradients = with_gradients(any_model, batch, losses_of_logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_padding_has_no_loss_and_is_not_projected(model: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate(ragged_units(5))
    rows: list[int] = []
    layer = model.get_base_model().lm_head
    own = type(layer).forward

    def noting(self: nn.Linear, x: Tensor) -> Tensor:
        if self is layer:
            rows.append(len(x))
        return own(self, x)

    monkeypatch.setattr(type(layer), "forward", noting)
    found = token_losses(model, batch)
    assert sum(rows) == batch.num_tokens < batch.input_ids.numel()
    assert torch.equal(found != 0, batch.targets != IGNORED)


def test_without_a_request_the_logits_are_the_models_own(any_model: PeftModel) -> None:
    batch = collate(ragged_units(3))
    prepared = any_model(input_ids=batch.input_ids).logits
    stop_answering(any_model)
    assert not any(map(is_prepared, any_model.modules()))
    assert torch.equal(prepared, any_model(input_ids=batch.input_ids).logits)


def test_stacked_and_one_by_one_gradients_ask_alike(any_model: PeftModel) -> None:
    batch = collate(ragged_units(4))

    def gradients(kind: type) -> dict[str, Tensor]:
        stacked = {n: t.expand(4, *t.shape).clone().requires_grad_() for n, t in trainable_state(any_model).items()}
        return kind(any_model)(stacked, batch, StepAddress())[0]

    prepared = [gradients(kind) for kind in (StackedGradients, OneByOneGradients)]
    stop_answering(any_model)
    for found in prepared:
        for name, expected in gradients(StackedGradients).items():
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_no_logits_are_kept_for_the_backward_pass(model: PeftModel) -> None:
    batch, sizes = collate(ragged_units(6)), []
    embedding = model.get_base_model().transformer.wte.weight
    embedding.data = torch.cat([embedding.data] * 2)  # 80 tokens, a size that nothing else has

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() != embedding.untyped_storage().data_ptr():
            sizes.append(tensor.shape[-1:])
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_losses(model, batch).sum().backward()
        assert (2 * VOCABULARY,) not in sizes
        stop_answering(model)
        token_losses(model, batch).sum().backward()
        assert (2 * VOCABULARY,) in sizes


def test_logits_that_are_more_than_the_output_layers_are_left_alone() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=16, final_logit_softcapping=30.0,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
    answer_with_losses(model)
    assert not is_prepared(model.get_output_embeddings())
    batch = collate(ragged_units(3))
    torch.testing.assert_close(token_losses(model, batch), losses_of_logits(model, batch))


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
def test_an_output_layer_with_an_adapter_gives_logits(make: Callable[..., PeftModel]) -> None:
    model = make(LoraSettings(rank=2, target_modules=("lm_head",)), tie_word_embeddings=False)
    assert not any(map(is_prepared, model.modules()))
    batch = collate(ragged_units(3))
    torch.testing.assert_close(token_losses(model, batch), losses_of_logits(model, batch))


def test_an_output_layer_that_is_trained_gives_logits(model: PeftModel) -> None:
    layer = model.get_base_model().lm_head
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    batch = collate(ragged_units(3))
    losses = token_losses(model, batch)
    torch.testing.assert_close(losses, losses_of_logits(model, batch))
    assert torch.autograd.grad(losses.sum(), layer.weight)[0].abs().sum() > 0


def test_evaluation_needs_no_gradient_and_gets_the_same_losses(model: PeftModel) -> None:
    batch = collate(ragged_units(4))
    expected = token_losses(model, batch).detach()
    with torch.inference_mode():
        torch.testing.assert_close(token_losses(model, batch), expected)


def test_a_loaded_model_is_prepared_and_bfloat16_losses_are_those_of_the_logits() -> None:
    model = ModelSource(device="cpu", dtype="bfloat16").load()
    assert is_prepared(model.get_output_embeddings())
    batch = collate(ragged_units(4))
    expected = losses_of_logits(model, batch)
    torch.testing.assert_close(token_losses(model, batch), expected, rtol=1e-6, atol=1e-6)


def test_rows_that_are_not_finite_leave_the_others_alone(model: PeftModel) -> None:
    units = ragged_units(4)
    clean = token_losses(model, collate(units))
    model.get_base_model().lm_head.weight = nn.Parameter(
        model.get_base_model().lm_head.weight.detach().clone(), requires_grad=False
    )
    batch = collate(units)
    with torch.no_grad():
        model.get_base_model().transformer.wte.weight[int(batch.input_ids[0, 0])] = torch.nan
    found = token_losses(model, batch)
    is_hit = found.isnan().any(1)
    assert is_hit[0]
    assert not is_hit.all()
    torch.testing.assert_close(found[~is_hit], clean[~is_hit])
