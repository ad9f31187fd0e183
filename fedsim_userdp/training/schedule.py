"""The learning rate as a function of the round, so that a resumed run needs no scheduler's state."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fedsim_userdp.plugins import calling

OptimizerFn = Callable[..., torch.optim.Optimizer]


@dataclass(frozen=True)
class LearningRate:
    """A learning rate that is constant or falls linearly towards 0.

    Attributes:
        peak: the learning rate of the first round, above 0.
        rounds: number of rounds of the run, at least 1.
        decays: whether round t has peak * (1 - (t - 1) / rounds), which averages the noise of late rounds away.
    """

    peak: float
    rounds: int
    decays: bool = True

    def __call__(self, round: int) -> float:
        """Returns the learning rate of `round`, counted from 1."""
        return self.peak * (1 - (round - 1) / self.rounds) if self.decays else self.peak

    def apply(self, optimizer: torch.optim.Optimizer, round: int) -> None:
        """Sets the learning rate of `round` in the optimizer."""
        for group in optimizer.param_groups:
            group["lr"] = self(round)

    def step(self, optimizer: torch.optim.Optimizer, round: int) -> None:
        """Takes the optimizer's step of `round`, at the learning rate of that round.

        Raises:
            PluginError: when the optimizer raises.
        """
        self.apply(optimizer, round)
        take_step(optimizer, round)


def take_step(optimizer: torch.optim.Optimizer, round: int) -> None:
    """Takes the optimizer's step of `round`.

    Raises:
        PluginError: when the optimizer raises.
    """
    with calling("optimizer", optimizer, "step()", f"in round {round}, which was released"):
        optimizer.step()


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that take gradients, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
