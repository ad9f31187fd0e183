"""Frozen layers through oneDNN compute what they computed before, and are left alone where that is not possible."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsim_userdp.models import frozen_layers
from fedsim_userdp.models.frozen_layers import (
    FrozenConv1D,
    FrozenLinear,
    has_product,
    pays_off,
    restore_layers,
    speed_up_frozen_layers,
)
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.losses import unit_losses
from tests.conftest import ragged_units

FAST = (FrozenLinear, FrozenConv1D)
needs_product = pytest.mark.skipif(not has_product(), reason="this torch has no such product")


@pytest.fixture
def as_if_it_paid_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every CPU alike."""
    monkeypatch.setattr(frozen_layers, "pays_off", lambda: True)


def frozen(layer: nn.Module) -> nn.Module:
    """The layer with random weights, all of them frozen."""
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer.requires_grad_(False)


LAYERS = [nn.Linear(7, 5), nn.Linear(7, 5, bias=False), Conv1D(5, 7)]


@needs_product
@pytest.mark.parametrize("layer", LAYERS, ids=["linear", "without bias", "conv1d"])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 1, 3, 7), (4, 0, 7)])
@pytest.mark.parametrize("is_strided", [False, True])
@pytest.mark.usefixtures("as_if_it_paid_off")
def test_outputs_and_gradients_are_those_of_the_plain_layer(
    layer: nn.Module, shape: tuple[int, ...], is_strided: bool
) -> None:
    plain = frozen(copy.deepcopy(layer))
    fast = copy.deepcopy(plain)
    speed_up_frozen_layers(fast)
    assert isinstance(fast, FAST)

    def outcome(of: nn.Module) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        whole = torch.randn(*shape, 2, generator=generator) if is_strided else torch.randn(shape, generator=generator)
        x = (whole[..., 0] if is_strided else whole).requires_grad_()
        output = of(x)
        upstream = torch.randn(output.shape[-1], generator=generator).expand(output.shape)
        return output.detach(), torch.autograd.grad(output, x, upstream)[0]

    for found, expected in zip(outcome(fast), outcome(plain), strict=True):
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_product
@pytest.mark.usefixtures("as_if_it_paid_off")
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 64, 95, 511, 512, 513, 1000])
@pytest.mark.parametrize(("width_in", "width_out"), [(3, 9), (9, 3)])
def test_every_number_of_rows_gives_the_plain_layers_outputs_and_gradients(
    num_rows: int, width_in: int, width_out: int
) -> None:
    plain = frozen(nn.Linear(width_in, width_out))
    fast = copy.deepcopy(plain)
    speed_up_frozen_layers(fast)
    x = torch.randn(num_rows, width_in, generator=torch.Generator().manual_seed(num_rows)).requires_grad_()
    upstream = torch.randn(num_rows, width_out, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(layer(x), x, upstream)[0] for layer in (fast, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@needs_product
def test_the_numbers_of_rows_that_onednn_sees_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[int]()

    def noted(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.add(len(rows))
        return rows @ weight.t()

    monkeypatch.setattr(frozen_layers, "_multiply", noted)
    for weight in (torch.randn(3, 9), torch.randn(9, 3)):
        for num_rows in range(1, 5000):
            frozen_layers._onednn_product(torch.zeros(num_rows, weight.shape[1]), weight, None)
    assert len(seen) < 150
    assert max(seen) <= 5120


@needs_product
@pytest.mark.usefixtures("as_if_it_paid_off")
def test_losses_and_gradients_of_a_model_are_those_of_the_plain_one(any_model: PeftModel) -> None:
    speed_up_frozen_layers(any_model)
    plain = copy.deepcopy(any_model)
    restore_layers(plain)
    assert sum(isinstance(module, FAST) for module in any_model.modules()) >= 8
    assert not any(isinstance(module, FAST) for module in plain.modules())
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    for model, kept in ((any_model, found), (plain, expected)):
        losses = unit_losses(model, collate(ragged_units(4)))
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kept += [losses.detach(), *torch.autograd.grad(losses.sum(), trainable)]
    assert len(found) == len(expected) > 4
    for fast, slow in zip(found, expected, strict=True):
        assert float((fast - slow).norm()) <= 1e-5 * float(slow.norm())


@needs_product
@pytest.mark.usefixtures("as_if_it_paid_off")
def test_names_weights_and_files_stay_as_they_were(any_model: PeftModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    restore_layers(any_model)
    speed_up_frozen_layers(any_model)
    after = any_model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    any_model.save_pretrained(tmp_path)
    plain = copy.deepcopy(any_model.get_base_model())
    merged = copy.deepcopy(any_model).merge_and_unload()
    tokens = torch.arange(10).unsqueeze(0)
    torch.testing.assert_close(merged(tokens).logits, any_model(tokens).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(merged(tokens).logits, plain(tokens).logits * 0)


@needs_product
@pytest.mark.usefixtures("as_if_it_paid_off")
def test_what_does_not_fit_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = frozen(nn.Linear(7, 5))
    speed_up_frozen_layers(layer)
    monkeypatch.setattr(frozen_layers, "_onednn_product", lambda *arguments: pytest.fail("was used"))
    layer.bfloat16()(torch.ones(2, 7, dtype=torch.bfloat16))
    layer.double()(torch.ones(2, 7, dtype=torch.float64))
    layer.float()(torch.ones(0, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.ones(2, 7))
    layer.requires_grad_(True)(torch.ones(2, 7)).sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.usefixtures("as_if_it_paid_off")
def test_trainable_layers_are_left_alone() -> None:
    layer = nn.Linear(7, 5)
    speed_up_frozen_layers(layer)
    assert type(layer) is nn.Linear


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_it_depends_on_the_cpu_alone(
    vendor: str, capability: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(frozen_layers, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(frozen_layers, "has_product", lambda: True)
    assert pays_off.__wrapped__() is expected
    monkeypatch.setattr(frozen_layers, "_CPU_INFO", tmp_path / "nothing")
    assert pays_off.__wrapped__() is False


def test_where_it_does_not_pay_off_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_layers, "pays_off", lambda: False)
    assert not any(isinstance(module, FAST) for module in ModelSource().load().modules())


@needs_product
@pytest.mark.usefixtures("as_if_it_paid_off")
def test_a_loaded_model_gives_the_same_losses_either_way() -> None:
    model = ModelSource().load()
    assert sum(isinstance(module, FAST) for module in model.modules()) > 8
    units = [Unit(0, [torch.arange(5, 60).numpy()])]
    with torch.no_grad():
        fast = unit_losses(model, collate(units))
        restore_layers(model)
        slow = unit_losses(model, collate(units))
    assert float(fast) == pytest.approx(float(slow), rel=1e-6)
