"""Each unit's own gradient of a micro-batch: from stacked adapters, or one unit after the other."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.dropout import AddressedDropout, dropout_layers, dropping
from fedsim_userdp.models.precision import without_autocast
from fedsim_userdp.models.stacked import StackedAdapters, stack, unsupported_layers
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import MicroBatch, StepAddress, Unit, collate
from fedsim_userdp.training.losses import unit_losses

# Largest relative difference between both ways that rounding explains, by the dtype of the base model.
_ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 0.1}


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
        with dropping_in(self._dropouts, alone, at):
            losses = unit_losses(lambda **inputs: functional_call(self._model, own, kwargs=inputs), alone)
            gradients = torch.autograd.grad(losses.sum(), list(own.values()))
        return dict(zip(own, gradients, strict=True)), losses.detach()


def dropping_in(layers: Sequence[AddressedDropout], batch: MicroBatch, at: StepAddress) -> AbstractContextManager[None]:
    """Returns a block within which the layers use the batch's masks; without layers, one that does nothing."""
    return dropping(layers, batch.dropout_rows(at)) if layers else nullcontext()


def unit_gradients(model: nn.Module) -> UnitGradients:
    """Returns the stacked form where it is right for the model, else the one-by-one form."""
    return OneByOneGradients(model) if why_not_stacked(model) else StackedGradients(model)


def why_not_stacked(model: nn.Module) -> str | None:
    """Returns why a PEFT model's units cannot be stacked, or None where they can.

    Structure first; then both ways are tried on two units of a few tokens, which shows whatever else mixes rows, such
    as experts that see the batch's tokens in one list.  Mixed precision is left out of that.
    """
    if layers := unsupported_layers(model):
        return f"lora.target_modules has layers that cannot be stacked: {', '.join(layers[:3])}"
    parameters = next(iter(model.parameters()))
    batch = collate(_probe_units(model), parameters.device)
    stacked = stack(trainable_state(model), batch.rows.num_units, parameters.device)
    with without_autocast():
        try:
            found, _ = StackedGradients(model)(stacked, batch, StepAddress(key=RunKey.seeded(0)))
        except (ValueError, RuntimeError) as error:
            return f"the model's layers do not keep the rows of a batch apart ({error})"
        expected, _ = OneByOneGradients(model)(stacked, batch, StepAddress(key=RunKey.seeded(0)))
    allowed = _ROUNDING.get(parameters.dtype, _ROUNDING[torch.bfloat16])
    if _distance(found, expected) > allowed:
        return "the model's layers mix the rows of a batch"
    return None


def vocabulary_size(model: nn.Module) -> int:
    """Returns the number of tokens that the model knows."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]


def _probe_units(model: nn.Module) -> list[Unit]:
    """Two units of three short records in all, of tokens that every vocabulary has."""
    tokens = np.random.default_rng(0).integers(0, vocabulary_size(model), size=(3, 5))
    return [Unit(0, [tokens[0]]), Unit(1, [tokens[1], tokens[2, :3]])]


def _distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The L2 distance of two sets of tensors, relative to the norm of `b`."""
    squares = [(float((a[n] - b[n]).double().square().sum()), float(b[n].double().square().sum())) for n in b]
    difference, norm = (sum(column) ** 0.5 for column in zip(*squares, strict=True))
    return difference / norm if norm else difference
