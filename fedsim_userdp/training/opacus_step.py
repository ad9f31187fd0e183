"""Record-level DP-SGD through Opacus: the reference.

Opacus' hooks take the first axis of what a layer sees for the records.  A model that hands a layer its tokens in one
list would be clipped token by token: rows are counted in every micro-batch, and gradients compared before the first.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedsim_userdp.errors import MODEL_FAILURES, ModelError
from fedsim_userdp.models.activations import is_checkpointed
from fedsim_userdp.models.dropout import dropout_layers
from fedsim_userdp.models.precision import is_reduced, without_autocast
from fedsim_userdp.models.stacked import unsupported_layers
from fedsim_userdp.privacy.clipping import clip_and_sum, unit_norms
from fedsim_userdp.privacy.noise import NoiseSource, add_noise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import MicroBatch, StepAddress, Unit, collate, micro_batches
from fedsim_userdp.training.central import StepReport
from fedsim_userdp.training.gradients import OneByOneGradients, dropping_in
from fedsim_userdp.training.losses import record_losses
from fedsim_userdp.training.probe import (
    PROBE_STEP,
    Probe,
    first_of,
    layer_of,
    probe_for,
    why_different,
    why_rows_mix,
)
from fedsim_userdp.training.schedule import LearningRate, OptimizerFn, new_optimizer, take_step, trainable_parameters

_FIX = "set central.engine=stacked, or other lora.target_modules"
# What rounding in bfloat16 may move the other records' gradients by, of the clip norm, when one leaves the batch.
_PACKING = 0.1


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
        window: the most tokens of a record, at least 2.
        key: what dropout masks derive from; None where nothing is dropped.

    Raises:
        ModelError: for what Opacus' hooks do not see: checkpointed activations, adapters of other than linear layers,
            layers that do not get one row a record, records whose gradients depend on each other; by the layer's name.
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
        window: int,
        key: RunKey | None = None,
    ) -> None:
        _refuse_unsupported(model)
        probe = probe_for(model, window)
        expected = _gradients_alone(model, probe)  # before there are hooks
        try:
            self.module = GradSampleModule(model, loss_reduction="sum")
        except NotImplementedError as error:
            raise ModelError(f"lora.target_modules: Opacus cannot do that ({error}): {_FIX}") from error
        self.optimizer = AddressedDPOptimizer(
            new_optimizer(optimizer_fn, trainable_parameters(model), learning_rate.peak),
            noise_multiplier=noise_multiplier,
            max_grad_norm=clip_norm,
            expected_batch_size=expected_batch_size,
            names=[name for name, p in model.named_parameters() if p.requires_grad],
            noise=noise,
        )
        self.learning_rate, self.max_tokens, self._key = learning_rate, max_tokens, key
        self._dropouts = dropout_layers(model)
        try:
            _try_out(self, probe, expected)
        except ModelError:
            self.close()
            raise

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that Opacus wraps."""
        return self.optimizer.original_optimizer

    def __call__(self, step: int, records: Sequence[Unit]) -> StepReport:
        """Takes one step on the batch, micro-batch by micro-batch."""
        tokens, loss_sum = 0, 0.0
        self.optimizer.begin(step)
        device, most = next(self.module.parameters()).device, 1 if is_reduced(self.module) else None
        for batch in micro_batches(records, self.max_tokens, device, max_units=most):
            tokens += batch.num_tokens
            loss_sum += self.accumulate(batch)
        self.learning_rate.apply(self.torch_optimizer, step)
        self.optimizer.release()
        return StepReport(step, len(records), tokens, self.optimizer.num_nonfinite, loss_sum)

    def accumulate(self, batch: MicroBatch) -> float:
        """Adds the clipped gradients of the batch's records to the sum; returns the sum of their losses.

        Raises:
            ModelError: where a layer has not exactly one gradient for each record of the batch, naming it.
        """
        losses = self.find_gradients(batch, StepAddress(self.optimizer.step_number, key=self._key))
        self.optimizer.clip_and_accumulate()
        self.optimizer.forget_samples()
        return float(losses.nansum())

    def find_gradients(self, batch: MicroBatch, at: StepAddress) -> Tensor:
        """Leaves each record's gradient in `optimizer.grad_samples`; returns the records' losses, shape [records].

        Args:
            batch: the records.
            at: what dropout masks are addressed by.

        Raises:
            ModelError: see `accumulate`.
        """
        with dropping_in(self._dropouts, batch, at):
            losses = record_losses(self.module, batch)
            losses.sum().backward()
        self.optimizer.check_rows(len(batch.input_ids))
        return losses.detach()

    def close(self) -> None:
        """Takes Opacus' hooks off the model, and what they left there."""
        model = self.module.to_standard_module()
        for parameter in self.optimizer.params:
            parameter.__dict__.pop("summed_grad", None)
        for module in model.modules():
            for attribute in ("activations", "max_batch_len"):
                module.__dict__.pop(attribute, None)


class AddressedDPOptimizer(DPOptimizer):
    """Opacus' optimizer with noise from an addressed stream and an exact zero for gradients that are not finite."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, names: list[str], noise: NoiseSource, **settings: float
    ) -> None:
        super().__init__(optimizer, loss_reduction="mean", **settings)
        self.names, self._noise, self.step_number, self.num_nonfinite = names, noise, 0, 0

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

    def named_samples(self) -> dict[str, Tensor]:
        """Returns the records' gradients, name to tensor of shape [records, ...]."""
        return dict(zip(self.names, self.grad_samples, strict=True))

    def check_rows(self, num_records: int) -> None:
        """Raises ModelError unless every trainable parameter has exactly one gradient for each record."""
        for name, parameter in zip(self.names, self.params, strict=True):
            sample = parameter.grad_sample
            found = len(sample) if isinstance(sample, Tensor) else 0
            if found != num_records:
                self.forget_samples()
                raise ModelError(
                    f"lora.target_modules: {layer_of(name)} has {found} gradients for {num_records} records in Opacus, "
                    f"which would not clip them record by record: {_FIX}"
                )

    def clip_and_accumulate(self) -> None:
        """Adds the records' clipped gradients to the sum.

        Norms, factors and sums are float64 or float32, whatever the gradients are; a record whose gradient is not
        finite adds an exact zero.
        """
        clipped = clip_and_sum(self.named_samples(), self.max_grad_norm)
        self.num_nonfinite += clipped.num_nonfinite
        for name, parameter in zip(self.names, self.params, strict=True):
            parameter.summed_grad += clipped.total[name]

    def add_noise(self) -> None:
        """Noise of standard deviation noise_multiplier * max_grad_norm from the step's own address."""
        summed = dict(zip(self.names, (p.summed_grad for p in self.params), strict=True))
        noisy = add_noise(summed, self.noise_multiplier * self.max_grad_norm, self._noise, self.step_number)
        for name, parameter in zip(self.names, self.params, strict=True):
            parameter.grad = noisy[name].view_as(parameter).to(parameter.dtype)

    def release(self) -> None:
        """Noise, fixed denominator, step of the wrapped optimizer."""
        self.add_noise()
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size
        take_step(self.original_optimizer, self.step_number)


def _refuse_unsupported(model: nn.Module) -> None:
    """Raises ModelError where Opacus would give wrong per-record gradients, or none."""
    if is_checkpointed(model):
        raise ModelError("model.activation_checkpointing does not work with Opacus: set central.engine=stacked")
    if layers := unsupported_layers(model):
        raise ModelError(f"lora.target_modules: Opacus cannot do {layers[0]}: set central.engine=stacked")


def _gradients_alone(model: nn.Module, probe: Probe) -> list[dict[str, Tensor]]:
    """The gradients of the probe's records, before and after the change, and of those beside the longest one.

    Each is from a forward pass of its own.

    Raises:
        ModelError: where the model mixes records whatever is done.
    """
    alone, adapters = OneByOneGradients(model), probe.equal_adapters(len(probe.records))
    with without_autocast():
        if reason := why_rows_mix(model, alone, probe):
            raise ModelError(f"central.engine=opacus: {reason}: {_FIX}")
        tried = (probe.records, probe.changed, probe.beside_longest[:-1])
        return [alone(adapters, collate(records, probe.device), PROBE_STEP)[0] for records in tried]


def _try_out(step: OpacusStep, probe: Probe, expected: Sequence[dict[str, Tensor]]) -> None:
    """Raises ModelError unless each record's gradient is its own and adds at most the clip norm; see `probe`."""
    try:
        with _trying(step, probe):
            reason = _why_wrong(step, probe, expected)
    except ModelError:
        raise
    except MODEL_FAILURES as error:
        raise ModelError(f"lora.target_modules: Opacus fails on a layer of this model ({error}): {_FIX}") from error
    if reason:
        raise ModelError(f"central.engine=opacus: {reason}: {_FIX}")


def _why_wrong(step: OpacusStep, probe: Probe, expected: Sequence[dict[str, Tensor]]) -> str | None:
    """Why the step's per-record gradients or clipped sums are wrong, or None where they are right."""
    for records, gradients in zip((probe.records, probe.changed, probe.beside_longest), expected, strict=True):
        with without_autocast():
            step.find_gradients(collate(records, probe.device), PROBE_STEP)
        compared = len(next(iter(gradients.values())))  # all but the longest
        found = first_of(step.optimizer.named_samples(), compared)
        step.optimizer.forget_samples()
        if reason := why_different(step.module, found, gradients):
            return reason
    norms = unit_norms(expected[0])
    if not bool((norms > 0).any()):
        return "no record has a gradient"
    step.optimizer.max_grad_norm = float(norms[norms > 0].min()) / 2  # all that have a gradient are clipped
    everybody = _sum_of(step, probe.records)
    for place, record in enumerate(probe.records):
        own = _sum_of(step, [record])
        rest = _sum_of(step, [*probe.records[:place], *probe.records[place + 1 :]])
        is_bounded = float(own.norm()) <= step.optimizer.max_grad_norm * (1 + 1e-6)
        if not is_bounded or not float((everybody - rest).norm()) <= step.optimizer.max_grad_norm * (1 + _PACKING):
            return "a record adds more than the clip norm"
    return None


def _sum_of(step: OpacusStep, records: Sequence[Unit]) -> Tensor:
    """The sum of some records' clipped gradients, as one vector in float64."""
    step.optimizer.begin(0)
    step.accumulate(collate(records, next(step.module.parameters()).device))
    return torch.cat([tensor.flatten() for tensor in summed_gradients(step).values()]).cpu().double()


@contextmanager
def _trying(step: OpacusStep, probe: Probe) -> Iterator[None]:
    """Within the block the model holds the probe's adapter; then model and optimizer are as they were."""
    optimizer, adapter = step.optimizer, probe.one_adapter()
    before = [(parameter, parameter.data, parameter.grad) for parameter in optimizer.params]
    clip_norm = optimizer.max_grad_norm
    try:
        for name, parameter in zip(optimizer.names, optimizer.params, strict=True):
            parameter.data = adapter[name].to(parameter)
        yield
    finally:
        optimizer.forget_samples()
        for parameter, data, grad in before:
            parameter.data, parameter.grad, parameter.summed_grad = data, grad, None
        optimizer.max_grad_norm, optimizer.num_nonfinite = clip_norm, 0


def summed_gradients(step: OpacusStep) -> dict[str, Tensor]:
    """Returns the sum of clipped gradients accumulated so far, by parameter name."""
    return dict(zip(step.optimizer.names, (p.summed_grad for p in step.optimizer.params), strict=True))
