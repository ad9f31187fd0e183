"""The server's optimizer: takes the noisy mean update as the gradient of the global adapter."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fedsim_userdp.training.schedule import LearningRate, OptimizerFn, new_optimizer


class ServerOptimizer:
    """A `torch.optim` optimizer over a named state.

    Guarantee: post-processing of what it is given; it sees noisy means only.

    Args:
        state: initial values, name to tensor.
        optimizer_fn: parameters and `lr` to optimizer, e.g. `torch.optim.Adam`.
        learning_rate: of each round.
    """

    def __init__(self, state: Mapping[str, Tensor], optimizer_fn: OptimizerFn, learning_rate: LearningRate) -> None:
        self._parameters = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in state.items()}
        self.torch_optimizer = new_optimizer(optimizer_fn, self._parameters.values(), learning_rate.peak)
        self._learning_rate = learning_rate

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the current values."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def step(self, mean_update: Mapping[str, Tensor], round: int) -> dict[str, Tensor]:
        """Returns the values after the step of `round` against `mean_update`, which is taken as a gradient."""
        for name, parameter in self._parameters.items():
            parameter.grad = mean_update[name].to(parameter)
        self._learning_rate.step(self.torch_optimizer, round)
        return self.state
