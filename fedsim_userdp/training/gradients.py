"""Each unit's own gradient of a micro-batch: from stacked adapters, or one unit after the other."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from fedsim_userdp.errors import MODEL_FAILURES
from fedsim_userdp.models.adapters import with_adapter
from fedsim_userdp.models.dropout import AddressedDropout, dropout_layers, dropping
from fedsim_userdp.models.precision import without_autocast
from fedsim_userdp.models.stacked import StackedAdapters, unsupported_layers
from fedsim_userdp.training.batches import MicroBatch, StepAddress, collate
from fedsim_userdp.training.losses import unit_losses
from fedsim_userdp.training.probe import (
    PROBE_STEP,
    Probe,
    first_of,
    layer_of,
    probe_for,
    why_different,
    why_rows_mix,
)


class UnitGradients(Protocol):
    """Computes the gradients of units that each have an adapter of their own."""

    @property
    def model(self) -> nn.Module:
        """The PEFT model; its own adapter is neither used nor changed."""
        ...

    def __call__(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns each unit's gradient of its own mean loss, and the losses.

        Args:
            stacked: the units' adapters, name to tensor of shape [units, ...] that takes gradients.
            batch: the units' records.
            at: round and local step.

        Returns:
            Gradients of the shapes of `stacked`, and the units' losses in nats, shape [units].
        """
        ...


class StackedGradients:
    """One forward and backward for all units: their slices share nothing, so the sum of losses separates them."""

    def __init__(self, model: nn.Module) -> None:
        self._adapters, self._dropouts = StackedAdapters(model), dropout_layers(model)

    @property
    def model(self) -> nn.Module:
        """The PEFT model."""
        return self._adapters.model

    def __call__(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradients and losses, see `UnitGradients`."""
        with self._adapters.using(stacked, batch.rows) as model, dropping_in(self._dropouts, batch, at):
            losses = unit_losses(model, batch)
            gradients = torch.autograd.grad(losses.sum(), list(stacked.values()))
        return dict(zip(stacked, gradients, strict=True)), losses.detach()


class OneByOneGradients:
    """A forward and backward for each unit: slower, for adapted layers of any kind."""

    def __init__(self, model: nn.Module) -> None:
        self._model, self._dropouts = model, dropout_layers(model)

    @property
    def model(self) -> nn.Module:
        """The PEFT model."""
        return self._model

    def __call__(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradients and losses, see `UnitGradients`."""
        pairs = [self._of_unit(stacked, batch, position, at) for position in range(batch.rows.num_units)]
        gradients = {name: torch.stack([gradient[name] for gradient, _ in pairs]) for name in stacked}
        return gradients, torch.cat([losses for _, losses in pairs])

    def _of_unit(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, position: int, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """One unit's gradient and loss, its adapter in place of the model's."""
        own = {name: tensor[position].detach().requires_grad_() for name, tensor in stacked.items()}
        alone = batch.of_unit(position)

        def gradients_of(model: nn.Module) -> tuple[tuple[Tensor, ...], Tensor]:
            losses = unit_losses(model, alone)
            # A layer that a unit's tokens do not reach, an expert for instance, has gradient 0.
            found = torch.autograd.grad(losses.sum(), list(own.values()), allow_unused=True, materialize_grads=True)
            return found, losses.detach()

        with dropping_in(self._dropouts, alone, at):
            gradients, losses = with_adapter(self._model, own, gradients_of)
        return dict(zip(own, gradients, strict=True)), losses


def dropping_in(layers: Sequence[AddressedDropout], batch: MicroBatch, at: StepAddress) -> AbstractContextManager[None]:
    """Returns a block within which the layers use the batch's masks; without layers, one that does nothing."""
    return dropping(layers, batch.dropout_rows(at)) if layers else nullcontext()


def unit_gradients(model: nn.Module, window: int) -> UnitGradients:
    """Returns the stacked form where it is right for the model, else the one-by-one form; see `why_not_stacked`."""
    return OneByOneGradients(model) if why_not_stacked(model, window) else StackedGradients(model)


def why_not_stacked(model: nn.Module, window: int) -> str | None:
    """Returns why a PEFT model's units cannot be stacked, or None where they can.

    Structure first; then both ways are tried on a few records of random tokens and adapters of which no factor is 0,
    which shows whatever mixes rows, such as experts that see the batch's tokens in one list, or depends on the batch's
    length.  Mixed precision is left out of that.  The model stays as it was.  It costs what a few short records cost,
    and one forward and backward pass of three records of `window` tokens and one more of half of one.

    Args:
        model: a PEFT model.
        window: the most tokens of a record, at least 2.

    Raises:
        ModelError: where the units' gradients are not their own even one by one, naming the layer where it can.
    """
    probe = probe_for(model, window)
    with without_autocast():
        alone = OneByOneGradients(model)
        reason = why_rows_mix(model, alone, probe)
        if layers := unsupported_layers(model):
            return f"lora.target_modules has layers that cannot be stacked: {', '.join(layers[:3])}"
        return reason or _why_stacked_differs(model, alone, probe)


def _why_stacked_differs(model: nn.Module, alone: UnitGradients, probe: Probe) -> str | None:
    """Which layer's gradients are others when units are stacked, each with an adapter of its own."""
    for units in (probe.units, probe.records, probe.beside_longest):  # ragged, even, and long
        # Beside the longest record the others alone are compared, which costs little.
        compared = units[:-1] if units is probe.beside_longest else units
        batch, adapters = collate(units, probe.device), probe.adapters(len(units))
        expected, _ = alone(probe.adapters(len(compared)), collate(compared, probe.device), PROBE_STEP)
        if unused := [name for name, gradient in expected.items() if not gradient.any()]:
            return f"{layer_of(unused[0])} takes no part in reading short records"
        try:
            found, _ = StackedGradients(model)(adapters, batch, PROBE_STEP)
        except MODEL_FAILURES as error:
            return f"the model's layers do not keep the rows of a batch apart ({error})"
        if reason := why_different(model, first_of(found, len(compared)), expected):
            return reason
    return None
