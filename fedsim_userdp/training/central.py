"""Centralized training on the pooled records: record-level DP-SGD through Opacus, and plain training.

The pool is capped at k records per user beforehand (`TrainingUsers.capped_records`), so that a record-level
guarantee converts to the user level.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedsim_userdp.privacy.noise import NoiseSource, add_noise
from fedsim_userdp.privacy.streams import numpy_generator
from fedsim_userdp.training.batches import MicroBatch, Unit, micro_batches
from fedsim_userdp.training.losses import record_losses
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn


@dataclass(frozen=True)
class CentralSettings:
    """What a centralized run does; public.

    Attributes:
        steps: number of steps, at least 1.
        sampling_prob: probability with which each record takes part in a step, in (0, 1].
        max_tokens: padded tokens of a micro-batch.
        seed: seed of the sampling.
    """

    steps: int
    sampling_prob: float
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"mechanism.rounds={self.steps} must be at least 1")
        if not 0 < self.sampling_prob <= 1:
            raise ValueError(f"selection.sampling_prob={self.sampling_prob} must lie in (0, 1]")


@dataclass(frozen=True)
class StepReport:
    """What a step did; diagnostics, not private."""

    step: int
    num_records: int
    num_tokens: int
    num_nonfinite: int
    loss_sum: float


class RecordStep(Protocol):
    """One optimizer step on a batch of records, given as units of one record each."""

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer whose state a checkpoint keeps."""
        ...

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Changes the model in place."""
        ...


def train_on_records(
    take_step: RecordStep,
    records: Sequence[np.ndarray],
    settings: CentralSettings,
    before_release: Callable[[int], None],
    first: int = 1,
) -> Iterator[StepReport]:
    """Yields a report after each step; every record takes part independently with `sampling_prob`.

    Args:
        take_step: what is done with the records of a step.
        records: the capped pool, token ids of each record.
        settings: steps and sampling.
        before_release: called with the step before its noise is drawn.
        first: the first step to take; later ones when a run is resumed.
    """
    for step in range(first, settings.steps + 1):
        generator = numpy_generator(settings.seed, "selection", round=step)
        size = generator.binomial(len(records), settings.sampling_prob)
        chosen = np.sort(generator.choice(len(records), size=size, replace=False, shuffle=False))
        before_release(step)
        yield take_step(step, [Unit(int(index), [records[index]]) for index in chosen])


class OpacusStep:
    """Record-level DP-SGD with Opacus: per-record clipping, noise, fixed denominator.

    Guarantee: adding or removing one record changes the sum by at most `clip_norm`; a record whose gradient is
    not finite adds an exact zero; an empty batch still releases noise.

    Args:
        model: a PEFT model; its trainable parameters are changed in place.
        optimizer_fn: parameters and `lr` to optimizer.
        learning_rate: of each step.
        clip_norm: bound on the norm of a record's gradient, above 0.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`.
        expected_batch_size: sampling_prob times the number of records, the denominator.
        noise: where noise comes from.
        max_tokens: padded tokens of a micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_fn: OptimizerFn,
        learning_rate: LearningRate,
        *,
        clip_norm: float,
        noise_multiplier: float,
        expected_batch_size: float,
        noise: NoiseSource,
        max_tokens: int,
    ) -> None:
        self.module = GradSampleModule(model, loss_reduction="sum")
        self.optimizer = AddressedDPOptimizer(
            optimizer_fn(_trainable(model), lr=learning_rate.peak),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_batch_size,
            names=[name for name, p in model.named_parameters() if p.requires_grad],
            noise=noise,
        )
        self.learning_rate, self.max_tokens = learning_rate, max_tokens

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that Opacus wraps."""
        return self.optimizer.original_optimizer

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Takes one step on the batch, micro-batch by micro-batch."""
        tokens, loss_sum = 0, 0.0
        self.optimizer.begin(step)
        for batch in micro_batches(records, self.max_tokens, next(self.module.parameters()).device):
            tokens += batch.num_tokens
            loss_sum += self.accumulate(batch)
        self.learning_rate.apply(self.torch_optimizer, step)
        self.optimizer.release()
        return StepReport(step, len(records), tokens, self.optimizer.num_nonfinite, loss_sum)

    def accumulate(self, batch: MicroBatch) -> float:
        """Adds the clipped gradients of the batch's records to the sum; returns the sum of their losses."""
        losses = record_losses(self.module, batch)
        losses.sum().backward()
        self.optimizer.clip_and_accumulate()
        self.optimizer.forget_samples()
        return float(losses.detach().nansum())

    def close(self) -> None:
        """Takes Opacus' hooks off the model."""
        self.module.to_standard_module()


class AddressedDPOptimizer(DPOptimizer):
    """Opacus' optimizer with noise from an addressed stream and an exact zero for gradients that are not finite."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, names: list[str], noise: NoiseSource, **settings: float
    ) -> None:
        super().__init__(optimizer, loss_reduction="mean", **settings)
        self._names, self._noise, self._step, self.num_nonfinite = names, noise, 0, 0

    def begin(self, step: int) -> None:
        """Starts a step from a sum of exact zeros: what an empty batch releases, plus noise."""
        self._step, self.num_nonfinite = step, 0
        for parameter in self.params:
            parameter.grad_sample = None
            parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float32)

    def forget_samples(self) -> None:
        """Drops the per-record gradients of a micro-batch that has been added."""
        for parameter in self.params:
            parameter.grad_sample = None
            parameter.grad = None

    def clip_and_accumulate(self) -> None:
        """Opacus' clipping, after replacing records whose gradient is not finite by zero."""
        flat = [sample.reshape(len(sample), -1) for sample in self.grad_samples]
        finite = torch.stack([torch.isfinite(sample).all(1) for sample in flat]).all(0)
        self.num_nonfinite += int((~finite).sum())
        if not bool(finite.all()):
            for sample in self.grad_samples:
                sample[~finite] = 0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Noise of standard deviation noise_multiplier * max_grad_norm from the step's own address."""
        summed = dict(zip(self._names, (p.summed_grad for p in self.params), strict=True))
        noisy = add_noise(summed, self.noise_multiplier * self.max_grad_norm, self._noise, self._step)
        for name, parameter in zip(self._names, self.params, strict=True):
            parameter.grad = noisy[name].view_as(parameter).to(parameter.dtype)

    def release(self) -> None:
        """Noise, fixed denominator, step of the wrapped optimizer."""
        self.add_noise()
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size
        self.original_optimizer.step()


class PlainStep:
    """A step without privacy on the same batches: the mean gradient, no clip, no noise."""

    def __init__(
        self,
        model: nn.Module,
        optimizer_fn: OptimizerFn,
        learning_rate: LearningRate,
        *,
        expected_batch_size: float,
        max_tokens: int,
    ) -> None:
        self.model, self.learning_rate = model, learning_rate
        self.torch_optimizer = optimizer_fn(_trainable(model), lr=learning_rate.peak)
        self.expected_batch_size, self.max_tokens = expected_batch_size, max_tokens

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Takes one step on the batch, micro-batch by micro-batch."""
        tokens, loss_sum = 0, 0.0
        self.torch_optimizer.zero_grad()
        for batch in micro_batches(records, self.max_tokens, next(self.model.parameters()).device):
            losses = record_losses(self.model, batch)
            (losses.sum() / self.expected_batch_size).backward()
            tokens += batch.num_tokens
            loss_sum += float(losses.detach().sum())
        self.learning_rate.apply(self.torch_optimizer, step)
        self.torch_optimizer.step()
        return StepReport(step, len(records), tokens, 0, loss_sum)


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that take gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def summed_gradients(step: OpacusStep) -> dict[str, Tensor]:
    """Returns the sum of clipped gradients accumulated so far, by parameter name."""
    return dict(zip(step.optimizer._names, (p.summed_grad for p in step.optimizer.params), strict=True))
