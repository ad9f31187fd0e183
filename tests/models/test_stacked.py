import pytest
import torch
from peft import PeftModel

from fedsim_userdp.models.adapters import load_trainable_state, trainable_state
from fedsim_userdp.models.stacked import RowsOfUnits, StackedAdapters, stack
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.cohort import LocalTraining, local_updates
from fedsim_userdp.training.gradients import StackedGradients
from fedsim_userdp.training.losses import unit_losses
from tests.conftest import ragged_units, small_gpt2


def one_by_one(model: PeftModel, unit: Unit, local: LocalTraining) -> dict[str, torch.Tensor]:
    """The unit's update by plain autograd through PEFT's own layers."""
    start = trainable_state(model)
    total = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    for _ in range(local.steps):
        model.zero_grad()
        unit_losses(model, collate([unit])).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        total = {name: total[name] + gradients[name] for name in total}
        load_trainable_state(model, {n: start[n] - local.learning_rate * total[n] for n in start})
    load_trainable_state(model, start)
    return total


def assert_equal_updates(model: PeftModel, units: list[Unit], local: LocalTraining) -> None:
    state = trainable_state(model)
    stacked, _ = local_updates(StackedGradients(model), state, collate(units), local)
    for position, unit in enumerate(units):
        expected = one_by_one(model, unit, local)
        error = sum(float((stacked[n][position] - e).double().square().sum()) for n, e in expected.items()) ** 0.5
        norm = sum(float(e.double().square().sum()) for e in expected.values()) ** 0.5
        assert error <= 1e-5 * norm


def test_stacked_gradients_equal_one_by_one_autograd(any_model: PeftModel) -> None:
    assert_equal_updates(any_model, ragged_units(5), LocalTraining())


def test_stacked_gradients_of_rectangular_cohorts_equal_one_by_one_autograd(any_model: PeftModel) -> None:
    units = [Unit(u.index, [u.records[0]] * 3) for u in ragged_units(4)]
    assert_equal_updates(any_model, units, LocalTraining())


def test_several_local_steps_equal_one_by_one_training(any_model: PeftModel) -> None:
    assert_equal_updates(any_model, ragged_units(3), LocalTraining(steps=3, learning_rate=0.1))


def test_frozen_a_is_not_updated() -> None:
    model = small_gpt2(LoraSettings(rank=2, freeze_a=True))
    assert all("lora_B" in name for name in trainable_state(model))
    assert_equal_updates(model, ragged_units(3), LocalTraining())


@pytest.mark.parametrize("use_rslora", [False, True])
def test_stacked_copies_of_one_adapter_give_the_models_own_logits(use_rslora: bool) -> None:
    model = small_gpt2(LoraSettings(rank=2, use_rslora=use_rslora, freeze_a=False))
    batch = collate(ragged_units(3))
    adapters = StackedAdapters(model)
    stacked = stack(trainable_state(model), 3, "cpu")
    with torch.no_grad(), adapters.using(stacked, batch.rows):
        stacked_logits = model(input_ids=batch.input_ids).logits
    with torch.no_grad():
        own_logits = model(input_ids=batch.input_ids).logits
    torch.testing.assert_close(stacked_logits, own_logits, rtol=1e-5, atol=1e-5)


def test_a_users_gradient_does_not_depend_on_who_else_is_in_the_batch(model: PeftModel) -> None:
    units = ragged_units(4)
    state, gradients = trainable_state(model), StackedGradients(model)
    alone, _ = local_updates(gradients, state, collate(units[:1]), LocalTraining())
    together, _ = local_updates(gradients, state, collate(units), LocalTraining())
    for name in state:
        torch.testing.assert_close(together[name][0], alone[name][0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_the_model_is_as_before_after_the_block(freeze_a: bool) -> None:
    model = small_gpt2(LoraSettings(rank=2, freeze_a=freeze_a))
    adapters = StackedAdapters(model)
    stacked = stack(trainable_state(model), 1, "cpu")

    def whole() -> list[object]:
        modules = [(type(module), set(module.__dict__)) for module in model.modules()]
        return [*modules, list(model.state_dict())]

    before = whole()
    with adapters.using(stacked, RowsOfUnits.from_counts([1])):
        assert whole() != before
        assert whole()[-1] == before[-1]
    assert whole() == before
    with pytest.raises(KeyError), adapters.using({}, RowsOfUnits.from_counts([1])):
        pass
    assert whole() == before
