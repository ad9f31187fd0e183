"""Centralized steps on stacked adapters (record-level DP-SGD) and without privacy (plain training)."""

from collections.abc import Sequence

from torch import nn

from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.dropout import dropout_layers
from fedsim_userdp.privacy.noise import NoiseSource, add_noise, noise_stddev
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import StepAddress, Unit, micro_batches
from fedsim_userdp.training.central import StepReport
from fedsim_userdp.training.cohort import LocalTraining, clipped_update_sum
from fedsim_userdp.training.gradients import UnitGradients, dropping_in
from fedsim_userdp.training.losses import record_losses
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn, new_optimizer, trainable_parameters


class StackedStep:
    """Record-level DP-SGD on stacked adapters: the code of user-wise training with a record as the unit.

    Guarantee: adding or removing one record changes the sum by at most `clip_norm`; a record whose gradient is
    not finite adds an exact zero; an empty batch still releases noise.

    Args:
        gradients: computes each record's gradient; its model's trainable parameters are changed in place.
        optimizer_fn: parameters and `lr` to optimizer.
        learning_rate: of each step.
        clip_norm: bound on the norm of a record's gradient, above 0.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`.
        expected_batch_size: the denominator, sampling_prob * num_users * records_per_user; public, above 0.
        noise: where noise comes from.
        max_tokens: padded tokens of a micro-batch.
        key: what dropout masks derive from; None where nothing is dropped.
    """

    def __init__(
        self,
        gradients: UnitGradients,
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
        self._gradients, self._noise, self.learning_rate, self._key = gradients, noise, learning_rate, key
        self.torch_optimizer = new_optimizer(optimizer_fn, trainable_parameters(gradients.model), learning_rate.peak)
        self.clip_norm, self.stddev = clip_norm, noise_stddev(noise_multiplier, clip_norm)
        self.expected_batch_size, self.local = expected_batch_size, LocalTraining(max_tokens=max_tokens)

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Takes one step on the batch, micro-batch by micro-batch."""
        model = self._gradients.model
        update = clipped_update_sum(
            self._gradients, trainable_state(model), records, self.local, self.clip_norm, round=step, key=self._key
        )
        noisy = add_noise(update.clipped.total, self.stddev, self._noise, step)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = (noisy[name] / self.expected_batch_size).to(parameter)
        self.learning_rate.step(self.torch_optimizer, step)
        return StepReport(step, len(records), update.num_tokens, update.clipped.num_nonfinite, update.loss_sum)

    def close(self) -> None:
        """Leaves the model as it is: nothing was attached to it."""


class PlainStep:
    """A step without privacy on the same batches: the mean gradient, no clip, no noise.

    Args:
        model: a PEFT model; its trainable parameters are changed in place.
        optimizer_fn: parameters and `lr` to optimizer.
        learning_rate: of each step.
        expected_batch_size: the denominator, sampling_prob * num_users * records_per_user; public, above 0.
        max_tokens: padded tokens of a micro-batch, at least 1.
        key: what dropout masks derive from; None where nothing is dropped.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_fn: OptimizerFn,
        learning_rate: LearningRate,
        *,
        expected_batch_size: float,
        max_tokens: int,
        key: RunKey | None = None,
    ) -> None:
        self.model, self.learning_rate, self._key = model, learning_rate, key
        self.torch_optimizer = new_optimizer(optimizer_fn, trainable_parameters(model), learning_rate.peak)
        self.expected_batch_size, self.max_tokens = expected_batch_size, max_tokens
        self._dropouts = dropout_layers(model)

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Takes one step on the batch, micro-batch by micro-batch."""
        tokens, loss_sum = 0, 0.0
        self.torch_optimizer.zero_grad()
        for batch in micro_batches(records, self.max_tokens, next(self.model.parameters()).device):
            with dropping_in(self._dropouts, batch, StepAddress(step, key=self._key)):
                losses = record_losses(self.model, batch)
                (losses.sum() / self.expected_batch_size).backward()
            tokens += batch.num_tokens
            loss_sum += float(losses.detach().sum())
        self.learning_rate.step(self.torch_optimizer, step)
        return StepReport(step, len(records), tokens, 0, loss_sum)
