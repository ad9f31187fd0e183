"""The learning rate as a function of the round, so that a resumed run needs no scheduler's state."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedsim_userdp.errors import PluginError
from fedsim_userdp.plugins import calling, class_name

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


def new_optimizer(
    optimizer_fn: OptimizerFn, parameters: Iterable[nn.Parameter], learning_rate: float
) -> torch.optim.Optimizer:
    """Returns an optimizer over the parameters.

    Raises:
        PluginError: when a class of the user's own raises.
    """
    with calling("optimizer", getattr(optimizer_fn, "func", optimizer_fn), "making it"):
        return optimizer_fn(parameters, lr=learning_rate)


def take_step(optimizer: torch.optim.Optimizer, round: int) -> None:
    """Takes the optimizer's step of `round`.

    Raises:
        PluginError: when the optimizer raises, or makes a parameter another shape or dtype.
    """
    when = f"in round {round}, which was released"
    had = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before, options = [parameter.detach() for parameter in had], options_of(optimizer)
    with calling("optimizer", optimizer, "step()", when):
        optimizer.step()
    with calling("optimizer", optimizer, "what step() left in param_groups", when):
        has = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        changed = [name for name, value in options_of(optimizer).items() if options.get(name) != value]
    if len(has) != len(had) or any(one is not other for one, other in zip(has, had, strict=True)):
        changed = ["the parameters"]
    if changed:
        raise PluginError(
            f"optimizer={class_name(optimizer)}: step() changed {changed[0]} in param_groups, which no checkpoint "
            f"holds, {when}: keep it in state"
        )
    refuse_other_kind(optimizer, before, f" {when}")


def options_of(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Returns what the groups of an optimizer hold besides parameters and the learning rate, in words."""
    groups = enumerate(optimizer.param_groups)
    return {
        f"group {number}'s {key}": repr(value)
        for number, group in groups
        for key, value in group.items()
        if key not in ("params", "lr")
    }


def refuse_other_kind(optimizer: torch.optim.Optimizer, before: Sequence[Tensor], when: str = "") -> None:
    """Raises PluginError where a step gave parameters another shape or dtype than they had.

    Args:
        optimizer: the optimizer after the step.
        before: tensors like its parameters before it.
        when: when, in a sentence.
    """
    after = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for had, has in zip(before, after, strict=True):
        if (had.shape, had.dtype) != (has.shape, has.dtype):
            raise PluginError(
                f"optimizer={class_name(optimizer)}: step() made a parameter of {had.dtype} and shape "
                f"{tuple(had.shape)} one of {has.dtype} and shape {tuple(has.shape)}{when}"
            )


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters that take gradients, in the model's order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
