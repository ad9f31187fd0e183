"""The largest contribution of one record or user, measured in every engine and precision."""

from typing import Any

import pytest
import torch
from peft import PeftModel

from fedsim_userdp.models.adapters import attach_lora, factors, lora_layers, trainable_state
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients
from fedsim_userdp.training.opacus_step import OpacusStep, summed_gradients
from fedsim_userdp.training.schedule import LearningRate
from tests.conftest import ragged_units

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "autocast": {"autocast": "bfloat16"},
    "bfloat16": {"dtype": "bfloat16"},
}
CLIP_NORMS = (1e-3, 7.0)
MOST = 1 + 1e-6


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest) -> PeftModel:
    """The bundled model in each precision, its adapter far from 0 so that gradients are large."""
    model = attach_lora(
        ModelSource(device="cpu", **PRECISIONS[request.param]).load(), LoraSettings(freeze_a=False), seed=0
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            factors(layer)[1].normal_(0, 0.2, generator=generator)
    return model


def norm(tensors: dict[str, torch.Tensor]) -> float:
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    return float(torch.cat([tensor.flatten() for tensor in tensors.values()]).double().norm())


@pytest.mark.parametrize("clip_norm", CLIP_NORMS)
def test_a_record_adds_at_most_the_clip_norm_in_opacus_in_every_precision(model: PeftModel, clip_norm: float) -> None:
    settings: dict[str, Any] = {
        "clip_norm": clip_norm,
        "noise_multiplier": 0.0,
        "expected_batch_size": 1.0,
        "max_tokens": 64,
    }
    step = OpacusStep(
        model, torch.optim.SGD, LearningRate(0.1, 1), window=16, noise=SeededNoise(RunKey.seeded(0)), **settings
    )
    found = []
    for unit in ragged_units(8):
        step.optimizer.begin(1)
        step.accumulate(collate([Unit(0, unit.records[:1])]))
        found.append(norm(summed_gradients(step)))
    step.close()
    assert 0.99 * clip_norm < max(found) <= clip_norm * MOST


@pytest.mark.parametrize("local", [LocalTraining(), LocalTraining(steps=3, learning_rate=0.01)], ids=["1", "3"])
@pytest.mark.parametrize("engine", [StackedGradients, OneByOneGradients])
def test_a_user_adds_at_most_the_clip_norm_in_every_engine_and_precision(
    model: PeftModel, engine: type, local: LocalTraining
) -> None:
    gradients, state = engine(model), trainable_state(model)
    for clip_norm in CLIP_NORMS:
        found = [
            norm(clipped_update_sum(gradients, state, [unit], local, clip_norm).clipped.total)
            for unit in ragged_units(4)
        ]
        assert 0.99 * clip_norm < max(found) <= clip_norm * MOST
