"""Trying out, before anything is written or trained, the classes of the user's own that a run names."""

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedsim_userdp.errors import CheckpointError, ClippingError, ConfigError, PluginError, RecordChoiceError
from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.participation import Cohorts, UserLevel, draw_cohort, rounds_to_differ
from fedsim_userdp.plugins import calling, class_name, is_own
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.clipping import Clipping, clipped_by
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.selection import Choosing, ClientSelector, Scheduling, expected_cohort_size, foreign_name
from fedsim_userdp.training.checkpoints import check_comes_back
from fedsim_userdp.training.schedule import new_optimizer, refuse_other_kind

# Optimizers of torch that a noisy mean is no gradient for.
_OF_OTHER_GRADIENTS: dict[object, str] = {
    torch.optim.LBFGS: "asks for the loss again within a step, which would be a release each time",
    torch.optim.SparseAdam: "takes sparse gradients, and a mean with noise is none",
}
_USERS = 4  # whose choice of records is tried out


def check_plugins(run: Run, guarantee: Guarantee, records_per_user: int, population: Population | None = None) -> None:
    """Raises where a class of the user's own fails at the first thing that a run will ask of it.

    Copies are asked, so that what a class remembers is not changed; a selection of users or an optimizer that cannot be
    copied is asked by the run only.

    Args:
        run: the run, with its study's selection of users, choice of records and optimizer.
        guarantee: what the run promises.
        records_per_user: k.
        population: whom the selection is asked about; None for the study's training users.

    Raises:
        PluginError, ConfigError: names the class and says what it did; nothing was written.
    """
    _check_selection(run, guarantee, population or run.study.population)
    _check_records(run, records_per_user)
    _check_optimizer(run.study.optimizer_fn)
    if not all(map(is_own, run.study.metrics.values())):
        run.study.metrics_of(run.study.fresh_model(), most=_USERS)


def try_out_clipping(clipping: Clipping, adapter: Mapping[str, Tensor], clip_norm: float) -> None:
    """Raises where a clipping of the user's own fails at updates within its bound and far above it.

    Args:
        clipping: what a mechanism shrinks a user's update by.
        adapter: names and shapes of an update.
        clip_norm: the bound.

    Raises:
        PluginError, ConfigError: names it and says what it did.
    """
    size = sum(tensor.numel() for tensor in adapter.values())
    for norm in (clip_norm / 2, 100 * clip_norm):
        update = {name: torch.full_like(tensor, norm / size**0.5) for name, tensor in adapter.items()}
        try:
            clipped_by(clipping, update, clip_norm)
        except ClippingError as error:
            raise ConfigError(f"mechanism: {error}") from error


def _check_selection(run: Run, guarantee: Guarantee, population: Population) -> None:
    """Tries out the denominator and the first cohort."""
    if isinstance(run.study.selector, Choosing | Scheduling):
        expected_cohort_size(run.study.selector, population)
    if foreign_name(run.study.selector) is None:
        return
    try:
        selector = copy.deepcopy(run.study.selector)
    except Exception:  # noqa: BLE001 - anybody's class can refuse to be copied
        return
    twins = [copy.deepcopy(selector) for _ in range(2)]
    Cohorts(selector, population, run.keys.run, guarantee.declared).draw(1)
    check_follows_key(twins, population, guarantee.declared)


def check_follows_key(twins: Sequence[ClientSelector], population: Population, declared: UserLevel | None) -> None:
    """Raises where a class that claims amplification draws the same under two unrelated keys, so that anybody can.

    Args:
        twins: two copies of the selector, asked for nothing so far.
        population: the training users.
        declared: what it declared; nothing is looked at where equal cohorts would prove nothing.

    Raises:
        ConfigError: every cohort was the same; such as draw by their key do so with a probability below 1e-9.
    """
    rounds = rounds_to_differ(declared, len(population))
    if rounds is None or not all(isinstance(twin, Choosing | Scheduling) for twin in twins):
        return
    keys = [RunKey.drawn() for _ in twins]
    for round in range(1, rounds + 1):
        one, other = (draw_cohort(twin, population, round, key) for twin, key in zip(twins, keys, strict=True))
        if not np.array_equal(one, other):
            return
    raise ConfigError(
        f"selection={class_name(type(twins[0]))} claims amplification and chose the same users under two unrelated "
        f"keys in round{'s 1 to' * (rounds > 1)} {rounds}: whoever runs its code knows the cohorts, so draw them from "
        "the generator that it is given, or declare acc.Unamplified"
    )


def _check_records(run: Run, records_per_user: int) -> None:
    """Tries out the choice of records of a few users, each before and after the others."""
    if is_own(run.study.records):
        return
    users, answers, problems = run.training_users(records_per_user), [], []
    tried = range(min(_USERS, run.study.num_users))
    try:
        for user in tried:
            try:
                answers.append((user, users.chosen_records(user, round=1)))
            except PluginError as error:
                problems.append(error)
        users.refuse_memory(reversed(answers), round=1)
    except RecordChoiceError as error:
        raise ConfigError(str(error)) from error
    if problems and len(problems) == len(tried):  # one user's failure is that user's
        raise problems[0]


def _check_optimizer(optimizer_fn: Callable[..., torch.optim.Optimizer]) -> None:
    """Tries out a step, and whether a checkpoint gives back what the optimizer keeps."""
    kind = getattr(optimizer_fn, "func", optimizer_fn)
    if kind in _OF_OTHER_GRADIENTS:
        raise ConfigError(f"optimizer={class_name(kind)} {_OF_OTHER_GRADIENTS[kind]}: choose another")
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    optimizer = new_optimizer(optimizer_fn, {"adapter": parameter}.values(), 1e-3)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise PluginError(f"optimizer={class_name(kind)} is no torch.optim.Optimizer, but {class_name(optimizer)}")
    with calling("optimizer", kind, "step()"):
        optimizer.step()
    refuse_other_kind(optimizer, [torch.ones(2, 2)])
    if not bool(parameter.isfinite().all()):
        raise PluginError(f"optimizer={class_name(kind)}: step() wrote numbers that are not finite")
    try:
        check_comes_back(optimizer, optimizer_fn)
    except CheckpointError as error:
        raise PluginError(f"optimizer={class_name(kind)}: {error}") from error
