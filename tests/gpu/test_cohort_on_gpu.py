"""The cohort's clipped sum on a GPU: the CPU's numbers, the same bound, and memory that does not grow."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.output_layer import stop_answering
from fedsim_userdp.models.precision import autocast_forward
from fedsim_userdp.privacy.noise import SeededNoise, add_noise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.simulations.measurements.workbench import relative_distance
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients, unit_gradients
from fedsim_userdp.training.losses import token_losses
from fedsim_userdp.training.opacus_step import OpacusStep
from fedsim_userdp.training.record_steps import StackedStep
from fedsim_userdp.training.schedule import LearningRate
from tests.conftest import ragged_units, small_gpt2, small_llama

pytestmark = pytest.mark.gpu
KEY = RunKey.seeded(3)
CLIP_NORM = 0.05
LOCAL = LocalTraining(max_tokens=64)


def total(
    model: PeftModel, units: list[Unit], local: LocalTraining = LOCAL, clip_norm: float = CLIP_NORM
) -> dict[str, torch.Tensor]:
    update = clipped_update_sum(StackedGradients(model), trainable_state(model), units, local, clip_norm)
    return update.clipped.total


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
@pytest.mark.parametrize("local", [LOCAL, LocalTraining(steps=3, learning_rate=1.0)])
def test_the_sum_is_the_cpus(make: Callable[[], PeftModel], local: LocalTraining, device: torch.device) -> None:
    expected = total(make(), ragged_units(6), local)
    found = total(make().to(device), ragged_units(6), local)
    assert relative_distance(found, expected) <= 1e-4


@pytest.mark.parametrize("make", [small_gpt2, small_llama])
def test_one_by_one_updates_equal_stacked_ones(make: Callable[[], PeftModel], device: torch.device) -> None:
    model = make().to(device)
    assert isinstance(unit_gradients(model, 16), StackedGradients)
    state, units = trainable_state(model), ragged_units(6)
    expected = clipped_update_sum(OneByOneGradients(model), state, units, LOCAL, math.inf).clipped.total
    assert relative_distance(total(model, units, clip_norm=math.inf), expected) <= 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_removing_any_user_moves_the_sum_by_at_most_clip_norm(dtype: torch.dtype, device: torch.device) -> None:
    model = small_gpt2().to(device)
    model.get_base_model().to(dtype)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    units = ragged_units(6)
    alone = LocalTraining(max_tokens=1)  # so that every user's numbers are the same in both sums
    everybody = total(model, units, alone)
    assert all(tensor.dtype == torch.float32 for tensor in everybody.values())
    for i in range(len(units)):
        without = total(model, units[:i] + units[i + 1 :], alone)
        moved = math.sqrt(sum(float((everybody[n] - without[n]).double().square().sum()) for n in everybody))
        assert moved <= CLIP_NORM * (1 + 1e-3)


def test_noise_on_a_gpus_sum_is_the_same_noise(device: torch.device) -> None:
    zero = {"w": torch.zeros(1000)}
    on_gpu = add_noise({"w": zero["w"].to(device)}, 2.0, SeededNoise(KEY), round=1)["w"]
    assert on_gpu.device.type == device.type
    assert torch.equal(on_gpu.cpu(), add_noise(zero, 2.0, SeededNoise(KEY), round=1)["w"])


def test_a_step_on_records_equals_opacus(device: torch.device) -> None:
    units = [Unit(i, [record]) for i, record in enumerate(r for unit in ragged_units(6) for r in unit.records)]
    settings: dict[str, Any] = {
        "clip_norm": CLIP_NORM,
        "noise_multiplier": 0.0,
        "expected_batch_size": 8.0,
        "noise": SeededNoise(KEY),
    }
    rate, models = LearningRate(1.0, rounds=1, decays=False), [small_gpt2().to(device) for _ in range(2)]
    start = trainable_state(models[0])
    stacked = StackedStep(StackedGradients(models[0]), torch.optim.SGD, rate, **settings, max_tokens=64)
    opacus = OpacusStep(models[1], torch.optim.SGD, rate, **settings, max_tokens=64, window=16)
    stacked(1, units)
    opacus(1, units)
    opacus.close()
    changes = [{name: state[name] - start[name] for name in start} for state in map(trainable_state, models)]
    assert relative_distance(changes[0], changes[1]) <= 1e-4


def test_mixed_precision_gives_nearly_the_same_sum_in_float32(device: torch.device) -> None:
    exact, mixed = small_gpt2().to(device), small_gpt2().to(device)
    autocast_forward(mixed.get_base_model(), torch.bfloat16)
    expected, found = (total(model, ragged_units(6), clip_norm=math.inf) for model in (exact, mixed))
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert 1e-5 < relative_distance(found, expected) < 0.1


def test_losses_from_the_output_layer_are_those_of_the_logits(device: torch.device) -> None:
    model, batch = small_gpt2().to(device), collate(ragged_units(6), device)
    found = token_losses(model, batch)
    stop_answering(model)
    torch.testing.assert_close(found, token_losses(model, batch), rtol=1e-4, atol=1e-5)


def test_memory_does_not_grow_with_the_cohort(device: torch.device) -> None:
    model, peaks = small_gpt2(LoraSettings(rank=64)).to(device), {}
    records = [np.arange(8), np.arange(8, 16)]
    local = LocalTraining(max_tokens=256)  # 18 of these users in a micro-batch

    def cohort_sum(num_users: int) -> None:
        total(model, [Unit(user, records) for user in range(num_users)], local)

    cohort_sum(36)  # pays for what the libraries keep
    for num_users in (36, 576):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        cohort_sum(num_users)
        peaks[num_users] = torch.cuda.max_memory_allocated(device) - before
    assert peaks[576] <= 1.2 * peaks[36]
