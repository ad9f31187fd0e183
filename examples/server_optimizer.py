"""A server optimizer of one's own: a step along the sign of each coordinate of the noisy mean update.

Beside this file:

    fedsim run optimizer._target_=server_optimizer.SignDescent

In Python: `Study.of(records, optimizer=SignDescent)`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch


class SignDescent(torch.optim.Optimizer):
    """It is given what was released, noise included, so that nothing it does costs privacy."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Takes a step; the learning rate of the round, which the mechanism has, is in `param_groups`."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * parameter.grad.sign())
