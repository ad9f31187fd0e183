"""Frozen linear layers through oneDNN on CPUs where torch's own library leaves half of the arithmetic unused.

torch multiplies float32 matrices with MKL, which does not use AVX-512 on AMD's CPUs; oneDNN, which torch brings too,
does: 2.3 times as fast on 2 cores of a Zen 5 (docs/decisions/0009-frozen-layers-by-onednn.md).
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

_CPU_INFO = Path("/proc/cpuinfo")


def speed_up_frozen_layers(model: nn.Module) -> None:
    """Lets the model's frozen linear layers use oneDNN where that pays off; what they compute stays what it was.

    The choice depends on the CPU alone, never on a measurement, so that a resumed run repeats itself bit for bit.
    Layers on other devices, of other dtypes or with something to train go on as before, whenever that changes.
    """
    if not pays_off() or any(parameter.device.type != "cpu" for parameter in model.parameters()):
        return
    for module in model.modules():
        if type(module) in _FAST and not any(parameter.requires_grad for parameter in module.parameters()):
            module.__class__ = _FAST[type(module)]  # the layer keeps its weights, hooks and name


def restore_layers(model: nn.Module) -> None:
    """Undoes `speed_up_frozen_layers`."""
    originals = {fast: plain for plain, fast in _FAST.items()}
    for module in model.modules():
        if type(module) in originals:
            module.__class__ = originals[type(module)]


@functools.cache
def pays_off() -> bool:
    """Returns whether this is an AMD CPU with AVX-512, and torch has the product."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not has_product():
        return False
    try:
        return "AuthenticAMD" in _CPU_INFO.read_text()
    except OSError:
        return False


def has_product() -> bool:
    """Returns whether this torch has oneDNN's product of float32 matrices."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class FrozenLinear(nn.Linear):
    """`nn.Linear` whose float32 weights on the CPU take no gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """Returns input @ weight^T + bias; input is [..., in]."""
        if not _is_fit(input, self.weight, self.bias):
            return super().forward(input)
        return _product(input, self.weight, self.bias)


class FrozenConv1D(Conv1D):
    """The linear layer of GPT-2, its weight [in, out], whose float32 weights on the CPU take no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x @ weight + bias; x is [..., in]."""
        if not _is_fit(x, self.weight, self.bias):
            return super().forward(x)
        return _product(x, self.weight.t(), self.bias)


_FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: FrozenLinear, Conv1D: FrozenConv1D}


def _is_fit(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's product is right for these tensors."""
    tensors = (input, weight) if bias is None else (input, weight, bias)
    return (
        all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors)
        and not any(tensor.requires_grad for tensor in tensors[1:])
        and input.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def _product(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """input @ weight^T + bias; input is [..., in], weight [out, in]."""
    rows = input.reshape(-1, input.shape[-1])
    product: Tensor = _FrozenProduct.apply(rows, weight, bias)
    return product.reshape(*input.shape[:-1], weight.shape[0])


class _FrozenProduct(torch.autograd.Function):
    """x @ weight^T + bias, differentiable in x; weights may be strided views."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn_product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn_product(gradient, weight.t(), None), None, None


def _onednn_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows @ weight^T + bias by oneDNN, at least one row; weight may be a strided view.

    oneDNN generates code for every new number of rows and keeps it, so rows go in by one of at most 32 numbers between
    a power of two and the next; 64 records of 63 tokens, a full micro-batch of the default windows, is one. They
    are filled up with zeros, or, where the product is the narrower side, the last ones go apart.
    """
    num_rows, (width_out, width_in) = len(rows), weight.shape
    step = max(32, 1 << num_rows.bit_length() >> 6)
    whole = num_rows - num_rows % step
    if whole == num_rows:
        return _multiply(rows.contiguous(), weight, bias)
    if width_in <= width_out or not whole:
        return _multiply(_filled(rows, whole + step), weight, bias)[:num_rows]
    last = _multiply(_filled(rows[whole:], step), weight, bias)
    return torch.cat([_multiply(rows[:whole].contiguous(), weight, bias), last[: num_rows - whole]])


def _filled(rows: Tensor, num_rows: int) -> Tensor:
    """The rows and zeros after them, so that there are `num_rows`."""
    return nn.functional.pad(rows, (0, 0, 0, num_rows - len(rows)))


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product of contiguous rows."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product
