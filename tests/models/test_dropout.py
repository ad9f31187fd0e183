import math

import pytest
import torch
from peft import PeftModel

from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.dropout import AddressedDropout, dropout_layers, dropping
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import StepAddress, collate
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum, local_updates
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients
from tests.conftest import ragged_units, small_gpt2

KEY = RunKey.seeded(0)
DROPPING = LoraSettings(rank=2, freeze_a=False, dropout=0.4)


@pytest.fixture
def dropping_model() -> PeftModel:
    return small_gpt2(DROPPING)


def update_of(model: PeftModel, max_tokens: int = 100, round: int = 1, which: type = StackedGradients) -> torch.Tensor:
    local = LocalTraining(max_tokens=max_tokens)
    result = clipped_update_sum(
        which(model), trainable_state(model), ragged_units(5), local, math.inf, round=round, key=KEY
    )
    return torch.cat([tensor.flatten() for tensor in result.clipped.total.values()])


def test_dropout_changes_the_update_and_differs_between_rounds(dropping_model: PeftModel) -> None:
    without = update_of(small_gpt2(LoraSettings(rank=2, freeze_a=False)))
    first, second = update_of(dropping_model, round=1), update_of(dropping_model, round=2)
    assert float((first - without).norm()) > 0.05 * float(without.norm())
    assert float((first - second).norm()) > 0.05 * float(without.norm())


def test_masks_do_not_depend_on_who_else_is_in_the_batch(dropping_model: PeftModel) -> None:
    torch.testing.assert_close(update_of(dropping_model, 1), update_of(dropping_model, 10_000), rtol=1e-4, atol=1e-6)


def test_stacked_and_one_by_one_updates_draw_the_same_masks(dropping_model: PeftModel) -> None:
    one_by_one = update_of(dropping_model, which=OneByOneGradients)
    torch.testing.assert_close(update_of(dropping_model), one_by_one, rtol=1e-4, atol=1e-6)


def test_each_local_step_has_masks_of_its_own(dropping_model: PeftModel) -> None:
    # With a learning rate of almost 0, three steps without new masks would be three times the first.
    state, batch = trainable_state(dropping_model), collate(ragged_units(3))
    gradients = StackedGradients(dropping_model)
    once, _ = local_updates(gradients, state, batch, LocalTraining(), StepAddress(key=KEY))
    thrice, _ = local_updates(gradients, state, batch, LocalTraining(steps=3, learning_rate=1e-9), StepAddress(key=KEY))
    name = next(iter(once))
    assert float((thrice[name] - 3 * once[name]).norm()) > 0.05 * float(once[name].norm())


def test_nothing_is_dropped_outside_training(dropping_model: PeftModel) -> None:
    update_of(dropping_model)
    tokens = collate(ragged_units(2)).input_ids
    plain = small_gpt2(LoraSettings(rank=2, freeze_a=False))
    with torch.no_grad():
        torch.testing.assert_close(dropping_model(input_ids=tokens).logits, plain(input_ids=tokens).logits)


def test_a_feature_is_dropped_with_the_stated_probability_and_the_rest_is_scaled() -> None:
    layer, batch = AddressedDropout(0.25, layer="x"), collate(ragged_units(40))
    ones = torch.ones(*batch.input_ids.shape, 50)
    with dropping([layer], batch.dropout_rows(StepAddress(1, key=KEY))):
        masked = layer(ones)
    real = torch.cat(
        [row[:length] for row, length in zip(masked, batch.dropout_rows(StepAddress(1, key=KEY)).lengths, strict=True)]
    )
    dropped = float((real == 0).double().mean())
    # More than 30,000 numbers: 5 standard deviations are below 0.0125; 0.5 instead of 0.25 would be 0.25 off.
    assert real.numel() > 30_000
    assert abs(dropped - 0.25) < 0.0125
    assert sorted(real.unique().tolist()) == [0.0, pytest.approx(1 / 0.75)]


def test_a_model_without_dropout_has_no_dropout_layers(model: PeftModel) -> None:
    assert dropout_layers(model) == []


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_dropout_outside_its_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^dropout=.* must lie in \[0, 1\)"):
        LoraSettings(dropout=value)
