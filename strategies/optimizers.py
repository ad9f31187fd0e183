"""The server's optimizer: takes the noisy mean update as the gradient of the global adapter."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

OptimizerFn = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


class ServerOptimizer:
    """A `torch.optim` optimizer over a named state.

    Guarantee: post-processing of what it is given; it sees noisy means only.

    Args:
        state: initial values, name to tensor.
        optimizer_fn: parameters to optimizer, e.g. `functools.partial(torch.optim.Adam, lr=0.01)`.
    """

    def __init__(self, state: Mapping[str, Tensor], optimizer_fn: OptimizerFn) -> None:
        self._parameters = {name: torch.nn.Parameter(tensor.detach().clone()) for name, tensor in state.items()}
        self.torch_optimizer = optimizer_fn(self._parameters.values())

    @property
    def state(self) -> dict[str, Tensor]:
        """A copy of the current values."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def step(self, mean_update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the values after one step along `mean_update` (a gradient: the step goes against it)."""
        for name, parameter in self._parameters.items():
            parameter.grad = mean_update[name].to(parameter)
        self.torch_optimizer.step()
        return self.state
