import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from fedsim_userdp.models.adapters import attach_lora, factors, lora_layers, trainable_state
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import StackedGradients, unit_gradients
from tests.conftest import ragged_units

CLIP_NORM = 0.05


def total(model: PeftModel, units: list[Unit], local: LocalTraining, clip_norm: float = CLIP_NORM) -> torch.Tensor:
    result = clipped_update_sum(StackedGradients(model), trainable_state(model), units, local, clip_norm)
    return torch.cat([tensor.flatten() for tensor in result.clipped.total.values()]).double()


@pytest.mark.parametrize("local", [LocalTraining(max_tokens=64), LocalTraining(steps=3, learning_rate=1.0)])
def test_removing_any_user_moves_the_sum_by_at_most_clip_norm(model: PeftModel, local: LocalTraining) -> None:
    units = ragged_units(6)
    everybody = total(model, units, local)
    unclipped = total(model, units, local, clip_norm=math.inf)
    moved = [float((everybody - total(model, units[:i] + units[i + 1 :], local)).norm()) for i in range(len(units))]
    raw = [
        float((unclipped - total(model, units[:i] + units[i + 1 :], local, math.inf)).norm()) for i in range(len(units))
    ]
    assert max(moved) <= CLIP_NORM * (1 + 1e-4)
    assert max(raw) > 2 * CLIP_NORM  # the bound is the clip's doing


def test_the_whole_users_update_is_clipped_not_each_record(model: PeftModel) -> None:
    record = ragged_units(1)[0].records[0]
    one, four = [Unit(0, [record])], [Unit(0, [record] * 4)]
    assert float(total(model, four, LocalTraining()).norm()) <= CLIP_NORM
    torch.testing.assert_close(total(model, one, LocalTraining()), total(model, four, LocalTraining()))


def test_a_users_records_are_averaged_not_added(model: PeftModel) -> None:
    record = ragged_units(1)[0].records[0]
    one = total(model, [Unit(0, [record])], LocalTraining(), math.inf)
    thrice = total(model, [Unit(0, [record] * 3)], LocalTraining(), math.inf)
    torch.testing.assert_close(one, thrice, rtol=1e-5, atol=1e-6)
    ragged = [Unit(0, [record]), Unit(1, [record] * 3), Unit(2, [record] * 2)]
    torch.testing.assert_close(3 * one, total(model, ragged, LocalTraining(), math.inf), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("max_tokens", [1, 40, 10_000])
def test_the_sum_does_not_depend_on_the_micro_batches(model: PeftModel, max_tokens: int) -> None:
    expected = total(model, ragged_units(7), LocalTraining(max_tokens=100))
    torch.testing.assert_close(
        total(model, ragged_units(7), LocalTraining(max_tokens=max_tokens)), expected, rtol=1e-4, atol=1e-7
    )


def test_sums_over_micro_batches_are_rounded_once_however_many_there_are(model: PeftModel) -> None:
    """In float32 the rounding of every sum before it would depend on who else is there: 3e-3 C among 8,000 users."""
    units, alone = ragged_units(24), LocalTraining(max_tokens=1)
    exact = sum((total(model, [unit], alone) for unit in units), start=torch.zeros(1, dtype=torch.float64))
    assert torch.equal(total(model, units, alone), exact.float().double())


def test_a_user_whose_loss_is_not_finite_adds_an_exact_zero(model: PeftModel) -> None:
    units = ragged_units(4)
    poisoned = [*units, Unit(9, [np.array([39, 39, 39])])]
    units = [Unit(u.index, [np.minimum(record, 38) for record in u.records]) for u in units]
    poisoned = [*units, poisoned[-1]]
    embedding = model.get_base_model().transformer.wte.weight
    clean = total(model, units, LocalTraining())
    with torch.no_grad():
        embedding[39, 0] = math.nan
    # The NaN also stands in the tied output layer: everybody's logit of token 39 would be NaN, so untie it.
    model.get_base_model().lm_head.weight = torch.nn.Parameter(embedding.nan_to_num(0.0), requires_grad=False)
    result = clipped_update_sum(StackedGradients(model), trainable_state(model), poisoned, LocalTraining(), CLIP_NORM)
    assert result.clipped.num_nonfinite == 1
    assert all(torch.isfinite(tensor).all() for tensor in result.clipped.total.values())
    alone = total(model, units, LocalTraining())
    torch.testing.assert_close(
        torch.cat([t.flatten() for t in result.clipped.total.values()]).double(), alone, rtol=1e-4, atol=1e-7
    )
    assert clean.shape == alone.shape


def test_an_empty_cohort_gives_an_exact_zero(model: PeftModel) -> None:
    assert float(total(model, [], LocalTraining()).abs().max()) == 0.0


def test_training_leaves_the_models_own_adapter_alone(model: PeftModel) -> None:
    before = trainable_state(model)
    total(model, ragged_units(3), LocalTraining(steps=2))
    assert all(torch.equal(before[name], tensor) for name, tensor in trainable_state(model).items())
    assert all(layer.lora_A["default"].weight.grad is None for layer in lora_layers(model).values())


@pytest.mark.parametrize(
    ("changes", "local"),
    [
        ({}, LocalTraining()),
        ({}, LocalTraining(steps=10, learning_rate=1000.0)),
        ({"autocast": "bfloat16"}, LocalTraining()),
        ({"dtype": "bfloat16"}, LocalTraining()),
        ({"autocast": "bfloat16"}, LocalTraining(steps=5, learning_rate=10.0)),
    ],
    ids=["float32", "diverging steps", "autocast", "bfloat16", "steps in autocast"],
)
def test_a_user_who_joins_adds_an_update_and_changes_nobody_elses(
    changes: dict[str, Any], local: LocalTraining
) -> None:
    """Eight users with as many records of one length, and one who makes the micro-batch uneven and longer."""
    generator = np.random.default_rng(0)
    model = attach_lora(ModelSource(device="cpu", **changes).load(), LoraSettings(rank=4), seed=0)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            factors(layer)[1].normal_(0, 0.05, generator=torch.Generator().manual_seed(1))
    users = [Unit(u, [generator.integers(0, 2000, 24) for _ in range(2)], f"user {u}") for u in range(8)]
    joining = Unit(8, [generator.integers(0, 2000, size) for size in (40, 9, 13)], "joining")
    gradients, state = unit_gradients(model, 16), trainable_state(model)

    def sum_of(units: list[Unit]) -> torch.Tensor:
        update = clipped_update_sum(gradients, state, units, local, CLIP_NORM)
        return torch.cat([update.clipped.total[name].flatten() for name in sorted(state)]).double()

    moved = sum_of([*users, joining]) - sum_of(users)
    assert float(sum_of([joining]).norm()) > 0.5 * CLIP_NORM
    assert float((moved - sum_of([joining])).norm()) <= 2e-5 * CLIP_NORM
