"""Mixed precision: products in bfloat16, everything that is summed or released in float32."""

import math
from typing import Any

import pytest
import torch
from peft import PeftModel

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.adapters import attach_lora, trainable_state
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.models.precision import without_autocast
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.evaluation import perplexity
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients, UnitGradients, why_not_stacked
from fedsim_userdp.training.losses import token_losses
from tests.conftest import ragged_units

CLIP_NORM = 0.05
MIXED = ModelSource(device="cpu", autocast="bfloat16")


@pytest.fixture(scope="module")
def mixed() -> PeftModel:
    """The bundled model in mixed precision."""
    return attach_lora(MIXED.load(), LoraSettings(rank=2), seed=0)


@pytest.fixture(scope="module")
def exact() -> PeftModel:
    """The same in float32."""
    return attach_lora(ModelSource(device="cpu").load(), LoraSettings(rank=2), seed=0)


def flat_sum(gradients: UnitGradients, units: list[Unit], clip_norm: float = math.inf) -> torch.Tensor:
    state = trainable_state(gradients.model)
    total = clipped_update_sum(gradients, state, units, LocalTraining(), clip_norm).clipped.total
    assert all(tensor.dtype == torch.float32 for tensor in total.values())
    return torch.cat([tensor.flatten() for tensor in total.values()]).double()


def test_weights_and_updates_are_float32_and_products_are_not(mixed: PeftModel, exact: PeftModel) -> None:
    assert {p.dtype for p in mixed.parameters()} == {torch.float32}
    found, expected = (flat_sum(StackedGradients(model), ragged_units(5)) for model in (mixed, exact))
    distance = float((found - expected).norm() / expected.norm())
    assert 1e-4 < distance < 0.05  # rounded, and the same gradient


def test_units_are_stacked_as_well_and_one_by_one_agrees_within_rounding(mixed: PeftModel) -> None:
    assert why_not_stacked(mixed, 16) is None
    together, alone = (flat_sum(kind(mixed), ragged_units(5)) for kind in (StackedGradients, OneByOneGradients))
    assert float((together - alone).norm() / alone.norm()) < 0.05


def test_the_clip_holds_in_mixed_precision(mixed: PeftModel) -> None:
    for unit in ragged_units(4):
        assert float(flat_sum(StackedGradients(mixed), [unit], CLIP_NORM).norm()) <= CLIP_NORM
        assert float(flat_sum(StackedGradients(mixed), [unit]).norm()) > CLIP_NORM


def test_losses_are_float32_and_nearly_those_of_float32(mixed: PeftModel, exact: PeftModel) -> None:
    batch = collate(ragged_units(4))
    found = token_losses(mixed, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, token_losses(exact, batch), rtol=0.02, atol=0.02)
    units = ragged_units(4)
    assert perplexity(mixed, units) == pytest.approx(perplexity(exact, units), rel=0.02)


def test_it_can_be_suspended(mixed: PeftModel, exact: PeftModel) -> None:
    batch = collate(ragged_units(4))
    with without_autocast():
        assert torch.equal(token_losses(mixed, batch), token_losses(exact, batch))
    assert not torch.equal(token_losses(mixed, batch), token_losses(exact, batch))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"autocast": "float16"}, "^autocast=float16 is unknown; expected bfloat16 or null"),
        ({"autocast": "bfloat16", "dtype": "bfloat16"}, "is for a float32 model, not for dtype=bfloat16"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        ModelSource(**settings)


def test_the_model_still_writes_text() -> None:
    tokens = torch.tensor([[5, 6, 7]])
    assert MIXED.load().generate(tokens, max_new_tokens=2, do_sample=False).shape == (1, 5)
