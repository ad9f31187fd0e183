"""Record-level DP-SGD through Opacus: the reference."""

from collections.abc import Sequence

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedsim_userdp.models.activations import is_checkpointed
from fedsim_userdp.models.dropout import dropout_layers
from fedsim_userdp.models.errors import ModelError
from fedsim_userdp.models.stacked import unsupported_layers
from fedsim_userdp.privacy.noise import NoiseSource, add_noise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import MicroBatch, StepAddress, Unit, micro_batches
from fedsim_userdp.training.central import StepReport
from fedsim_userdp.training.gradients import dropping_in
from fedsim_userdp.training.losses import record_losses
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn, trainable_parameters


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
        expected_batch_size: the denominator, sampling_prob * num_users * records_per_user; public, above 0.
        noise: where noise comes from.
        max_tokens: padded tokens of a micro-batch.
        key: what dropout masks derive from; None where nothing is dropped.

    Raises:
        ModelError: for what Opacus' hooks do not see: checkpointed activations, adapters of other than linear layers.
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
        key: RunKey | None = None,
    ) -> None:
        _refuse_unsupported(model)
        self.module = GradSampleModule(model, loss_reduction="sum")
        self.optimizer = AddressedDPOptimizer(
            optimizer_fn(trainable_parameters(model), lr=learning_rate.peak),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_batch_size,
            names=[name for name, p in model.named_parameters() if p.requires_grad],
            noise=noise,
        )
        self.learning_rate, self.max_tokens, self._key = learning_rate, max_tokens, key
        self._dropouts = dropout_layers(model)

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
        with dropping_in(self._dropouts, batch, StepAddress(self.optimizer.step_number, key=self._key)):
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
        self._names, self._noise, self.step_number, self.num_nonfinite = names, noise, 0, 0

    def begin(self, step: int) -> None:
        """Starts a step from a sum of exact zeros: what an empty batch releases, plus noise."""
        self.step_number, self.num_nonfinite = step, 0
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
        noisy = add_noise(summed, self.noise_multiplier * self.max_grad_norm, self._noise, self.step_number)
        for name, parameter in zip(self._names, self.params, strict=True):
            parameter.grad = noisy[name].view_as(parameter).to(parameter.dtype)

    def release(self) -> None:
        """Noise, fixed denominator, step of the wrapped optimizer."""
        self.add_noise()
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size
        self.original_optimizer.step()


def _refuse_unsupported(model: nn.Module) -> None:
    """Raises ModelError where Opacus would give wrong per-record gradients, or none."""
    if is_checkpointed(model):
        raise ModelError("model.activation_checkpointing does not work with Opacus: set central.engine=stacked")
    if layers := unsupported_layers(model):
        raise ModelError(f"lora.target_modules: Opacus cannot do {layers[0]}: set central.engine=stacked")


def summed_gradients(step: OpacusStep) -> dict[str, Tensor]:
    """Returns the sum of clipped gradients accumulated so far, by parameter name."""
    return dict(zip(step.optimizer._names, (p.summed_grad for p in step.optimizer.params), strict=True))
