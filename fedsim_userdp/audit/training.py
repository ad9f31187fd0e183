"""Canaries inside the real training code: they have records like any user, and only their gradient is replaced.

Choice of records, micro-batches, local steps, clipping, the sum and the whole server are the code of a real run.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsim_userdp.audit.canaries import Canaries
from fedsim_userdp.audit.directions import Floats
from fedsim_userdp.population import Population
from fedsim_userdp.training.batches import MicroBatch, StepAddress
from fedsim_userdp.training.gradients import UnitGradients
from fedsim_userdp.training.users import TrainingUsers


@dataclass(frozen=True)
class UsersWithCanaries(TrainingUsers):
    """The training users with canaries among them.

    Attributes:
        canaries: the canaries; the real users fill the other numbers of the population, in their order.
    """

    canaries: Canaries

    def __len__(self) -> int:
        return self.canaries.num_users

    @property
    def population(self) -> Population:
        """Real users and canaries, with their numbers as ids."""
        return Population.numbered(self.canaries.num_users)

    def owner(self, user: int) -> str:
        """Returns what dropout masks of a user of the population are addressed by."""
        return f"user {user} of the audit"

    def chosen_records(self, user: int, round: int) -> list[np.ndarray]:
        """Returns a real user's records as ever, and a canary's: none when its coin said no."""
        canary = self.canaries.of_number.get(user)
        if canary is None:
            return super().chosen_records(int(self.canaries.real_users[user]), round)
        kind = self.canaries.kinds[canary]
        return [np.zeros(kind.record_tokens, dtype=np.int64)] * (
            kind.num_records * bool(self.canaries.included[canary])
        )


class GradientsWithCanaries:
    """Real units' gradients as ever, and for a canary its update in the first local step, nothing in later ones.

    Every record of a canary has the same gradient, so that it is the mean over as many of them as are asked for.

    Args:
        gradients: computes the real ones.
        canaries: the canaries; units are known by their number in the population.
        clip_norm: what the canaries' norms are in units of.
    """

    def __init__(self, gradients: UnitGradients, canaries: Canaries, clip_norm: float) -> None:
        self._gradients, self._canaries, self._clip_norm = gradients, canaries, clip_norm

    @property
    def model(self) -> nn.Module:
        """The PEFT model."""
        return self._gradients.model

    def __call__(
        self, stacked: Mapping[str, Tensor], batch: MicroBatch, at: StepAddress
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the gradients and losses, see `UnitGradients`."""
        canaries = {position: self._canaries.of_number.get(unit) for position, unit in enumerate(batch.units)}
        if None in canaries.values():
            gradients, losses = self._gradients(stacked, batch, at)
        else:  # nobody real: no forward pass
            gradients = {name: torch.zeros_like(tensor) for name, tensor in stacked.items()}
            losses = torch.zeros(len(batch.units), device=batch.input_ids.device)
        for position, canary in canaries.items():
            if canary is not None:
                self._replace(gradients, position, canary, at)
        return gradients, losses

    def _replace(self, gradients: Mapping[str, Tensor], position: int, canary: int, at: StepAddress) -> None:
        """Puts a canary's gradient in its place."""
        flat = self._canaries.update(canary, self._clip_norm) * (at.local_step == 0)
        for name, part in _split(flat, gradients).items():
            gradients[name][position] = part.to(gradients[name])


def flatten(state: Mapping[str, Tensor]) -> Floats:
    """Returns all tensors as one vector, in the order of their names, float32, shape [size]."""
    return torch.cat([state[name].detach().cpu().float().flatten() for name in sorted(state)]).numpy()


def _split(flat: Floats, stacked: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vector as tensors of one unit of `stacked`; `flatten` undoes it."""
    names = sorted(stacked)
    parts = torch.from_numpy(flat).split([stacked[name][0].numel() for name in names])
    return {name: part.view(stacked[name].shape[1:]) for name, part in zip(names, parts, strict=True)}
