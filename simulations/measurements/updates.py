"""Updates of a cohort against other ways to train on the same tokens."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn

from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.privacy.clipping import clip_and_sum
from fedsim_userdp.privacy.noise import NoiseSource
from fedsim_userdp.simulations.measurements.results import PartResult, speed
from fedsim_userdp.simulations.measurements.timing import affordable, take_turns
from fedsim_userdp.simulations.measurements.workbench import Workbench, check_agreement, num_tokens, shortened
from fedsim_userdp.training.batches import Unit, collate, micro_batches
from fedsim_userdp.training.cohort import CohortUpdate, clipped_update_sum
from fedsim_userdp.training.gradients import StackedGradients, UnitGradients
from fedsim_userdp.training.losses import unit_losses
from fedsim_userdp.training.opacus_step import OpacusStep
from fedsim_userdp.training.record_steps import StackedStep
from fedsim_userdp.training.schedule import LearningRate, trainable_parameters

SMALL_RECORDS, SMALL_TOKENS = 2, 32  # most records, and tokens of each, of a small user
_OPTIMIZER = (torch.optim.SGD, LearningRate(0.1, rounds=1, decays=False))


class StepSettings(TypedDict):
    """The keyword arguments of a record-level step."""

    clip_norm: float
    noise_multiplier: float
    expected_batch_size: float
    noise: NoiseSource
    max_tokens: int


def cohort_vs_plain(bench: Workbench) -> PartResult:
    """Real tokens per second: the cohort's clipped sum against a mean gradient without privacy, on the same batches.

    A third side trains without privacy on the same records packed by their own length, as a run without users would;
    it is in the notes.
    """
    gradients, max_tokens = bench.run.study.gradients(bench.fresh_model()), bench.run.study.local.max_tokens
    update = partial(cohort_update, bench, gradients)
    units = affordable(bench.users(), update, bench.seconds_each(3), bench.stopwatch)
    records = [Unit(i, [record]) for i, record in enumerate(record for unit in units for record in unit.records)]
    plain = bench.fresh_model()
    distance = check_agreement(
        "cohort_vs_plain",
        mean_update(update(units, math.inf), len(units)),
        mean_gradient(plain, units, max_tokens),
        bench.model,
    )
    seconds = take_turns(
        {
            "cohort": partial(update, units),
            "plain": partial(mean_gradient, plain, units, max_tokens),
            "plain_packed_by_record": partial(mean_gradient, plain, records, max_tokens),
        },
        bench.repeats,
        bench.stopwatch,
    )
    packed = speed("cohort_vs_plain", seconds, of="cohort", against="plain_packed_by_record").ratio
    work = {"tokens": num_tokens(units), "users": len(units)}
    notes = {"relative_distance": distance, "cohort_vs_plain_packed_by_record": packed, "micro_batch": max_tokens}
    return PartResult(speed("cohort_vs_plain", seconds, "cohort", "plain", work, notes))


def cohort_vs_one_by_one(bench: Workbench) -> PartResult:
    """Users per second: stacked adapters against a forward and backward for each user, users being small."""
    users = [shortened(unit, most_records=SMALL_RECORDS, most_tokens=SMALL_TOKENS) for unit in bench.users()]
    gradients, plain = bench.run.study.gradients(bench.fresh_model()), bench.fresh_model()
    alone, together = partial(one_by_one_sum, bench, plain), partial(cohort_update, bench, gradients)
    units = affordable(users, alone, bench.seconds_each(2), bench.stopwatch)
    distance = check_agreement("cohort_vs_one_by_one", together(units).clipped.total, alone(units), bench.model)
    seconds = take_turns(
        {"cohort": partial(together, units), "one_by_one": partial(alone, units)}, bench.repeats, bench.stopwatch
    )
    work = {"users": len(units), "tokens": num_tokens(units)}
    return PartResult(
        speed("cohort_vs_one_by_one", seconds, "cohort", "one_by_one", work, {"relative_distance": distance})
    )


def record_vs_opacus(bench: Workbench) -> PartResult:
    """Records per second of record-level DP-SGD: stacked adapters against Opacus, on the same micro-batches."""
    records = [Unit(i, [record]) for i, record in enumerate(r for unit in bench.users() for r in unit.records)]
    distance = _distance_of_record_steps(bench, records[:16])
    stacked, opacus = stacked_step(bench, bench.fresh_model(), 1.0), opacus_step(bench, bench.fresh_model(), 1.0)
    batch = affordable(records, partial(opacus, 1), bench.seconds_each(2), bench.stopwatch)
    seconds = take_turns(
        {"stacked": partial(stacked, 1, batch), "opacus": partial(opacus, 1, batch)}, bench.repeats, bench.stopwatch
    )
    work = {"records": len(batch), "tokens": num_tokens(batch)}
    return PartResult(speed("record_vs_opacus", seconds, "stacked", "opacus", work, {"relative_distance": distance}))


def cohort_update(
    bench: Workbench, gradients: UnitGradients, units: Sequence[Unit], clip_norm: float | None = None
) -> CohortUpdate:
    """Returns the sum of the units' clipped updates, at the mechanism's clip norm unless given."""
    bound = bench.mechanism.clip_norm if clip_norm is None else clip_norm
    return clipped_update_sum(gradients, trainable_state(gradients.model), units, bench.run.study.local, bound)


def mean_update(update: CohortUpdate, num_units: int) -> dict[str, Tensor]:
    """Returns the mean over the units."""
    return {name: total / num_units for name, total in update.clipped.total.items()}


def mean_gradient(model: nn.Module, units: Sequence[Unit], max_tokens: int) -> dict[str, Tensor]:
    """Returns the gradient of the mean of the units' losses: training without privacy, up to the optimizer's step."""
    parameters = trainable_parameters(model)
    for parameter in parameters:
        parameter.grad = None
    for batch in micro_batches(units, max_tokens, parameters[0].device):
        (unit_losses(model, batch).sum() / len(units)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_by_one_sum(bench: Workbench, model: nn.Module, units: Sequence[Unit]) -> dict[str, Tensor]:
    """Returns the sum of clipped gradients as a loop over the users computes it."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(named.values())).device
    total = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
    for unit in units:
        losses = unit_losses(model, collate([unit], device))
        gradients = torch.autograd.grad(losses.sum(), list(named.values()))
        own = {name: gradient.unsqueeze(0) for name, gradient in zip(named, gradients, strict=True)}
        clipped = clip_and_sum(own, bench.mechanism.clip_norm)
        total = {name: total[name] + clipped.total[name] for name in total}
    return total


def stacked_step(bench: Workbench, model: nn.Module, noise_multiplier: float) -> StackedStep:
    """Returns a step of record-level DP-SGD on stacked adapters."""
    return StackedStep(StackedGradients(model), *_OPTIMIZER, **_step_settings(bench, noise_multiplier))


def opacus_step(bench: Workbench, model: nn.Module, noise_multiplier: float) -> OpacusStep:
    """Returns the same step through Opacus."""
    return OpacusStep(model, *_OPTIMIZER, window=bench.run.study.window, **_step_settings(bench, noise_multiplier))


def _step_settings(bench: Workbench, noise_multiplier: float) -> StepSettings:
    """What both steps are given: the clip norm is that of the configuration's record-level mechanism."""
    return StepSettings(
        clip_norm=float(bench.config.tuned.group_privacy.clip_norm),
        noise_multiplier=noise_multiplier,
        expected_batch_size=1.0,
        noise=bench.run.noise,
        max_tokens=bench.run.study.local.max_tokens,
    )


def _distance_of_record_steps(bench: Workbench, records: Sequence[Unit]) -> float:
    """How far apart the two steps' changes of the adapter are without noise, checked."""
    models = bench.fresh_model(), bench.fresh_model()
    start = trainable_state(models[0])
    steps: tuple[StackedStep | OpacusStep, ...] = (
        stacked_step(bench, models[0], 0.0),
        opacus_step(bench, models[1], 0.0),
    )
    for step in steps:
        step(1, records)
        step.close()
    changes = [{n: tensor - start[n] for n, tensor in trainable_state(model).items()} for model in models]
    return check_agreement("record_vs_opacus", changes[0], changes[1], bench.model)
