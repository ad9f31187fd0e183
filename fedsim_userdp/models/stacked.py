"""Stacked adapters: one forward and backward in which every unit has its own copy of the adapter.

A unit (a user, or a record) owns a slice u of every LoRA factor, `A[u, r, in]` and `B[u, out, r]`.  The backward
of the sum of the units' losses therefore leaves each unit's own gradient in `.grad[u]`: nothing is shared
between slices, so no per-example hooks are needed and several local steps are the same code.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from fedsim_userdp.models.adapters import ADAPTER, lora_layers
from fedsim_userdp.models.devices import to_device


@dataclass(frozen=True)
class RowsOfUnits:
    """Which unit each row of a batch belongs to.

    Attributes:
        unit_of_row: index of the unit, shape [rows], int64, not decreasing.
        rows_of_unit: how many rows each unit has, at least 1, shape [units], int64.
        is_even: whether all units have the same number of rows.
    """

    unit_of_row: Tensor
    rows_of_unit: Tensor
    is_even: bool

    @property
    def num_units(self) -> int:
        """Number of units in the batch."""
        return len(self.rows_of_unit)

    @classmethod
    def from_counts(cls, rows_per_unit: list[int], device: torch.device | str = "cpu") -> "RowsOfUnits":
        """Returns the layout of consecutive blocks of `rows_per_unit` rows."""
        counts = np.array(rows_per_unit, dtype=np.int64)
        unit_of_row = np.repeat(np.arange(len(counts)), counts)
        is_even = len(set(rows_per_unit)) == 1
        return cls(to_device(unit_of_row, device), to_device(counts, device), is_even)


def stack(state: Mapping[str, Tensor], num_units: int, device: torch.device | str) -> dict[str, Tensor]:
    """Returns `num_units` copies of every tensor of `state`: leaves of shape [units, ...] that take gradients.

    Args:
        state: one adapter, name to detached floating-point tensor.
        num_units: number of copies, at least 1.
        device: where they go.
    """
    return {
        name: tensor.to(device).unsqueeze(0).repeat(num_units, *[1] * tensor.ndim).requires_grad_()
        for name, tensor in state.items()
    }


class StackedAdapters:
    """Runs a PEFT model with one adapter per unit; the model itself stays as PEFT made it.

    Assumes: every adapted layer is a linear one (`unsupported_layers` names the others) that sees its input as
    [rows, ..., features] with the rows of the batch in front, and no layer mixes rows.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._layers = lora_layers(model)
        self._trainable = {name for name, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def using(self, stacked: Mapping[str, Tensor], rows: RowsOfUnits) -> Iterator[nn.Module]:
        """Within the block, the model's adapted layers use `stacked`, row by row the slice of the row's unit."""
        own = {name: type(layer) for name, layer in self._layers.items()}
        try:
            for name, layer in self._layers.items():
                a = self._factor(stacked, f"{name}.lora_A.{ADAPTER}.weight", layer.lora_A[ADAPTER].weight)
                b = self._factor(stacked, f"{name}.lora_B.{ADAPTER}.weight", layer.lora_B[ADAPTER].weight)
                # Past `__setattr__`, which would make the layer's own frozen factor one more parameter.
                layer.__dict__ |= {"stacked_a": a, "stacked_b": b, "stacked_rows": rows, "stacked_name": name}
                layer.__class__ = StackedLinear
            yield self.model
        finally:
            for name, layer in self._layers.items():
                layer.__class__ = own[name]
                for attribute in ("stacked_a", "stacked_b", "stacked_rows", "stacked_name"):
                    layer.__dict__.pop(attribute, None)

    def _factor(self, stacked: Mapping[str, Tensor], name: str, own: Tensor) -> Tensor:
        """The stacked factor, or the layer's own frozen one (FFA-LoRA freezes A)."""
        return stacked[name] if name in self._trainable else own


def unsupported_layers(model: nn.Module) -> list[str]:
    """Returns the adapted layers that the stacked form does not know: all but plain LoRA on Linear and Conv1D."""
    return [
        f"{name.rsplit('.', 1)[-1]} ({type(layer.base_layer).__name__})"
        for name, layer in lora_layers(model).items()
        if not isinstance(layer, Linear) or layer.lora_variant
    ]


class StackedLinear(Linear):
    """PEFT's LoRA layer while every unit has factors of its own."""

    stacked_a: Tensor
    stacked_b: Tensor
    stacked_rows: RowsOfUnits
    stacked_name: str

    def forward(self, x: Tensor, *args: object) -> Tensor:
        """Returns base(x) + (scaling * x A_u^T) B_u^T with u the unit of each row; x is [rows, ..., in]."""
        a, b, rows = self.stacked_a, self.stacked_b, self.stacked_rows
        if len(x) != len(rows.unit_of_row):
            name = self.stacked_name.removeprefix("base_model.model.")
            raise ValueError(f"{name} sees {len(x)} rows of the batch's {len(rows.unit_of_row)}")
        base: Tensor = self.base_layer(x, *args)
        dropped = self.lora_dropout[ADAPTER](x.to(b.dtype))
        low_rank = _per_unit_product(dropped, a, rows) * self.scaling[ADAPTER]  # here it is narrowest
        if b.ndim == 2 or not rows.is_even or base.dtype != low_rank.dtype:
            return base + _per_unit_product(low_rank, b, rows).to(base.dtype)
        sums = torch.baddbmm(_by_unit(base, rows), _by_unit(low_rank, rows), b.transpose(1, 2))
        return sums.view_as(base)


def _per_unit_product(x: Tensor, weight: Tensor, rows: RowsOfUnits) -> Tensor:
    """Returns x[row] @ weight[unit of row]^T; x is [rows, ..., in], weight [units, out, in] or shared [out, in]."""
    if weight.ndim == 2:
        return nn.functional.linear(x, weight.to(x.dtype))
    if rows.is_even:
        return torch.bmm(_by_unit(x, rows), weight.transpose(1, 2)).reshape(*x.shape[:-1], weight.shape[1])
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    gathered = weight.index_select(0, rows.unit_of_row)
    return torch.bmm(flat, gathered.transpose(1, 2)).reshape(*x.shape[:-1], weight.shape[1])


def _by_unit(x: Tensor, rows: RowsOfUnits) -> Tensor:
    """The rows of each unit together, [units, rows of a unit * ..., features], where all have the same number."""
    return x.reshape(rows.num_units, -1, x.shape[-1])
