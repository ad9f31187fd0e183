"""The mechanisms that are compared (docs/design.md), each as one object with a `run`.

All of them start from the same adapter, see the same expected number of records in a step, take the same number
of steps with the same kind of optimizer, and are scored on the same users.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from peft import PeftModel

from fedsim_userdp.federation.engines import has_node_per_user
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import Rounds
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.models.adapters import attach_lora, load_trainable_state, trainable_state
from fedsim_userdp.participation import declared_release
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.adaptive_clipping import LEAST, MOST
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.simulations.diary import Diary, Outcome
from fedsim_userdp.simulations.errors import ConfigError
from fedsim_userdp.simulations.guarantee import NO_GUARANTEE, UNNOISED, UNTRAINED, Guarantee, calibrated, level_of
from fedsim_userdp.simulations.saver import Saver, open_saver
from fedsim_userdp.simulations.task import Task
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.central import CentralSettings, Pool, RecordStep, train_on_records
from fedsim_userdp.training.record_steps import PlainStep, StackedStep
from fedsim_userdp.training.schedule import LearningRate

if TYPE_CHECKING:
    from fedsim_userdp.training.opacus_step import OpacusStep


class Mechanism(Protocol):
    """What `fedsim run` and `fedsim compare` call."""

    name: str

    def promise(self, task: Task) -> Guarantee:
        """Returns what the mechanism promises on the task; raises where it cannot be run on it."""
        ...

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Returns the outcome of the mechanism on the task."""
        ...


@dataclass(frozen=True)
class ZeroShot:
    """The base model as it is: the floor."""

    name: str = "zero_shot"

    def promise(self, task: Task) -> Guarantee:
        """Returns no promise."""
        return NO_GUARANTEE

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Scores the base model with an adapter that does nothing yet."""
        model = _fresh_model(task)
        task.begin()  # once the model is not refused
        diary = Diary(self.name, "users", 0, task, NO_GUARANTEE, model, progress)
        diary.begin()
        return diary.outcome(_row(self.name, "none", diary, UNTRAINED))


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What every mechanism with training has.

    Attributes:
        name: label in tables and files.
        rounds: rounds or steps, at least 1.
        records_per_user: k, at least 1.
        learning_rate: of the server's optimizer in the first round, above 0.
        learning_rate_decays: whether it falls linearly towards 0 over the rounds.
    """

    name: str
    rounds: int
    records_per_user: int
    learning_rate: float
    learning_rate_decays: bool = True

    def schedule(self) -> LearningRate:
        """Returns the learning rate of each round."""
        return LearningRate(self.learning_rate, self.rounds, self.learning_rate_decays)

    def __post_init__(self) -> None:
        for field, value in (("rounds", self.rounds), ("records_per_user", self.records_per_user)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"mechanism.{field}={value} must be a whole number of at least 1")
        if not re.fullmatch(r"\w[\w-]{0,99}", self.name):
            raise ConfigError(f"mechanism.name={self.name!r} must be letters, digits, '_' and '-': it names a folder")
        _check_positive("learning_rate", self.learning_rate)


@dataclass(frozen=True, kw_only=True)
class UserWise(_Training):
    """User-wise DP-SGD (ULS; DP-FedAvg with several local steps) through Flower.

    Attributes:
        clip_norm: bound on the norm of a user's update, above 0.
    """

    clip_norm: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("clip_norm", self.clip_norm)

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Trains on the engine's nodes with noise calibrated to the task's budget."""
        guarantee = self.promise(task)
        worker = task.worker(self.records_per_user)
        diary = Diary(self.name, "users", self.rounds, task, guarantee, worker.gradients.model, progress)
        with open_saver(diary) as saver:
            state = trainable_state(diary.model)
            optimizer = ServerOptimizer(state, task.optimizer_fn, self.schedule())
            saver.restore(optimizer.torch_optimizer)
            settings = self._settings(task, guarantee, saver, worker)
            after_round = partial(_note_round, saver, optimizer)
            strategy = UserLevelDP(settings, task.selector, optimizer, task.noise, saver.record, after_round)
            saver.follow(strategy.cohorts)
            rounds = Rounds(saver.first, diary.num_rounds)
            if rounds.first <= rounds.last:
                task.engine.run(strategy, task.worker_recipe(self.records_per_user), worker, state, rounds)
        load_trainable_state(diary.model, optimizer.state)
        diary.score_last()
        return diary.outcome(_row(self.name, "user", diary, guarantee.in_words(), self, self.clip_norm))

    def promise(self, task: Task) -> Guarantee:
        """Returns the promise, its noise calibrated to the task's budget."""
        declared = declared_release(task.selector, 1.0, task.num_users, self.rounds)
        return calibrated(declared, task.budget, None, "user")

    def _settings(self, task: Task, guarantee: Guarantee, saver: Saver, worker: Worker) -> UserLevelSettings:
        """The numbers of the server's strategy, for the rounds that are left."""
        return UserLevelSettings(
            population=task.population,
            clip_norm=self.clip_norm,
            noise_multiplier=guarantee.noise_multiplier,
            key=task.keys.run,
            num_nodes=task.engine.num_nodes_for(task.num_users),
            sizes_fn=worker.sizes if task.engine.deals_by_size(task.num_users) else None,
            has_node_per_user=has_node_per_user(task.engine, task.num_users),
            declared=guarantee.declared,
            run=task.description,
        )


@dataclass(frozen=True, kw_only=True)
class RecordLevelDP(_Training):
    """Centralized record-level DP-SGD with Opacus on a pool capped at k records per user.

    Attributes:
        clip_norm: bound on the norm of a record's gradient, above 0.
        accountant: "group" (black-box group conversion) or "tight" (ELS, mixture of Gaussians) reach the budget at
            the user level; "record" reaches it for a single record only, and promises users nothing.
    """

    clip_norm: float
    accountant: Literal["group", "tight", "record"] = "group"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive("clip_norm", self.clip_norm)

    def promise(self, task: Task) -> Guarantee:
        """Returns the promise, its noise calibrated to the task's budget under the accountant."""
        release = acc.RecordLevel(1.0, _sampling_prob(task, self.name), self.rounds, self.records_per_user)
        return calibrated(release, task.budget, self.accountant, level_of(self.accountant))

    def try_out(self, task: Task) -> None:
        """Raises ModelError where the configured engine cannot train this model."""
        model = _fresh_model(task)
        self._step(task, model, self.promise(task)).close()

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Trains with that noise."""
        guarantee = self.promise(task)
        pool = task.pool(self.records_per_user)
        model = _fresh_model(task)
        step = self._step(task, model, guarantee)
        diary = Diary(self.name, "records", self.rounds, task, guarantee, model, progress)
        _train_centrally(diary, step, pool)
        step.close()
        return diary.outcome(_row(self.name, "record", diary, guarantee.in_words(), self, self.clip_norm))

    def _step(self, task: Task, model: PeftModel, guarantee: Guarantee) -> "OpacusStep | StackedStep":
        """The step of the configured engine."""
        from fedsim_userdp.training.opacus_step import OpacusStep  # here: the other mechanisms need not wait for Opacus

        step_fn = (
            partial(OpacusStep, model, window=task.window)
            if task.central_engine == "opacus"
            else partial(StackedStep, task.gradients(model))
        )
        return step_fn(
            task.optimizer_fn,
            self.schedule(),
            clip_norm=self.clip_norm,
            noise_multiplier=guarantee.noise_multiplier,
            expected_batch_size=_expected_batch_size(task, self),
            noise=task.noise,
            max_tokens=task.local.max_tokens,
            key=task.keys.run.of_nodes(),
        )


@dataclass(frozen=True, kw_only=True)
class NonPrivate(_Training):
    """Plain training on the same capped pool: the ceiling."""

    def promise(self, task: Task) -> Guarantee:
        """Returns no promise."""
        _sampling_prob(task, self.name)
        return NO_GUARANTEE

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Trains without clip and noise."""
        pool = task.pool(self.records_per_user)
        model = _fresh_model(task)
        step = PlainStep(
            model,
            task.optimizer_fn,
            self.schedule(),
            expected_batch_size=_expected_batch_size(task, self),
            max_tokens=task.local.max_tokens,
            key=task.keys.run.of_nodes(),
        )
        diary = Diary(self.name, "records", self.rounds, task, NO_GUARANTEE, model, progress)
        _train_centrally(diary, step, pool)
        return diary.outcome(_row(self.name, "none", diary, UNNOISED, self))


def _check_positive(field: str, value: float) -> None:
    """Raises ConfigError unless the setting, a learning rate or a clip norm, is above 0 and float32 holds it well."""
    if not isinstance(value, int | float) or not LEAST <= value <= MOST:
        raise ConfigError(f"mechanism.{field}={value} must be a number from {LEAST:g} to {MOST:g}")


def _fresh_model(task: Task) -> PeftModel:
    """The base model with the adapter that every mechanism starts from."""
    return attach_lora(task.model.load(), task.lora, task.seed)


def _sampling_prob(task: Task, name: str) -> float:
    """The probability of the Poisson selection: a centralized run samples records as user-wise samples users."""
    if type(task.selector) is not PoissonSelector:
        raise ConfigError(f"mechanism={name} samples records by Poisson sampling: use selection=poisson")
    return task.selector.sampling_prob


def _expected_batch_size(task: Task, training: _Training) -> float:
    """The denominator of a centralized step: q N k.  All of it is public, which the number of records is not."""
    return _sampling_prob(task, training.name) * task.num_users * training.records_per_user


def _note_round(
    saver: Saver, optimizer: ServerOptimizer, round: int, replies: RoundReplies, state: ServerState
) -> None:
    """Writes a round of the federation down, the model brought up to date if it is to be evaluated."""
    if saver.diary.is_due(round):
        load_trainable_state(saver.diary.model, state.adapter)
    saver.diary.write_replies(round, replies)
    saver.save_if_due(round, state.adapter, optimizer.torch_optimizer, state.clip_norm)


def _train_centrally(diary: Diary, step: RecordStep, pool: Pool) -> None:
    """Takes the steps of a centralized run and writes them down."""
    task = diary.task
    with open_saver(diary) as saver:
        saver.restore(step.torch_optimizer)
        settings = CentralSettings(diary.num_rounds, _sampling_prob(task, diary.name), task.keys.run)
        for report in train_on_records(step, pool, settings, saver.record, saver.first):
            diary.write_step(report)
            saver.save_if_due(report.step, trainable_state(diary.model), step.torch_optimizer)
    diary.score_last()


def _row(
    name: str,
    unit: str,
    diary: Diary,
    guarantee: str,
    training: _Training | None = None,
    clip_norm: float | None = None,
) -> ResultRow:
    """The result of a finished run."""
    promise, task = diary.guarantee, diary.task
    is_capped_pool = isinstance(promise.release, acc.RecordLevel)
    return ResultRow(
        mechanism=name,
        unit=unit,
        epsilon=promise.epsilon,
        delta=None if promise.epsilon is None else promise.delta,
        guarantee=guarantee,
        noise_multiplier=promise.noise_multiplier,
        clip_norm=clip_norm,
        records_per_user=0 if training is None else training.records_per_user,
        rounds=diary.num_rounds,
        sampling_prob=None if training is None else getattr(task.selector, "sampling_prob", None),
        learning_rate=None if training is None else training.learning_rate,
        seed=task.seed,
        perplexity=diary.final_perplexity,
        train_tokens=diary.train_tokens,
        seconds=diary.seconds,
        epsilon_tight=promise.epsilon_by("tight") if is_capped_pool else None,
        epsilon_record=promise.epsilon_by("record") if is_capped_pool else None,
        num_failed=sum(record.num_failed for record in diary.rounds),
        num_retried=sum(record.num_retried for record in diary.rounds),
        target_epsilon=None if promise.epsilon is None else task.budget.epsilon,
        evaluated_on=task.circumstances.evaluated_on,
        untrained_perplexity=diary.untrained_perplexity,
    )
