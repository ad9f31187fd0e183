"""The mechanisms that are compared (DESIGN section 4), each as one object with a `run`.

All of them start from the same adapter, see the same expected number of records in a step, take the same number
of steps with the same optimizer, and are scored on the same users.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

from peft import PeftModel
from torch import Tensor, nn

from fedsim_userdp.federation.engines import Rounds
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.models.adapters import attach_lora, load_trainable_state, trainable_state
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.training.central import (
    CentralSettings,
    OpacusStep,
    PlainStep,
    RecordStep,
    StepReport,
    train_on_records,
)
from simulations.errors import ConfigError
from simulations.task import Task
from strategies.optimizers import ServerOptimizer
from strategies.user_level_dp import UserLevelDP, UserLevelSettings


@dataclass(frozen=True)
class Outcome:
    """A finished run: its row, its rounds and the model with the trained adapter."""

    row: ResultRow
    rounds: list[RoundRecord]
    model: PeftModel


class Mechanism(Protocol):
    """What `fedsim run` and `fedsim compare` call."""

    name: str

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Returns the outcome of the mechanism on the task."""
        ...


@dataclass(frozen=True)
class TrainingSettings:
    """What every mechanism with training has.

    Attributes:
        name: label in tables and files.
        rounds: rounds or steps, at least 1.
        records_per_user: k, at least 1.
        clip_norm: bound on the norm of a unit's gradient, above 0; None where nothing is clipped.
        learning_rate: of the server's optimizer, above 0.
    """

    name: str
    rounds: int
    records_per_user: int
    clip_norm: float | None
    learning_rate: float

    def __post_init__(self) -> None:
        checks = (("rounds", self.rounds, 1), ("records_per_user", self.records_per_user, 1))
        for field, value, least in checks:
            if not isinstance(value, int) or value < least:
                raise ConfigError(f"mechanism.{field}={value} must be a whole number of at least {least}")
        for field, number in (("clip_norm", self.clip_norm), ("learning_rate", self.learning_rate)):
            if number is not None and not 0 < number < float("inf"):
                raise ConfigError(f"mechanism.{field}={number} must be above 0 and finite")


@dataclass(frozen=True)
class ZeroShot:
    """The base model as it is: the floor."""

    name: str = "zero_shot"

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Scores the base model with an adapter that does nothing yet."""
        progress.start(self.name, 0, "users")
        diary = Diary(self.name, task, progress, model := _fresh_model(task), [])
        diary.write(0, 0, evaluate=True)
        return diary.outcome(
            ResultRow(
                mechanism=self.name, unit="none", epsilon=None, delta=None, guarantee="no training data used",
                noise_multiplier=0.0, clip_norm=None, records_per_user=0, rounds=0, sampling_prob=None,
                learning_rate=None, seed=task.seed, perplexity=0.0, train_tokens=0, seconds=0.0,
            ),
            model,
        )  # fmt: skip


@dataclass(frozen=True)
class UserWise(TrainingSettings):
    """User-wise DP-SGD (ULS; DP-FedAvg with several local steps) through Flower."""

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Trains under the engine's nodes with noise calibrated to the task's budget."""
        description = _calibrated(task.selector.release(1.0, task.num_users, self.rounds), task, None)
        worker = task.worker(self.records_per_user)
        model = worker.adapters.model
        progress.start(self.name, self.rounds, "users")
        diary = Diary(self.name, task, progress, model, _spent(description, task, self.rounds, None))
        diary.write(0, 0, evaluate=True)
        state = trainable_state(model)
        strategy = self._strategy(task, description, state, partial(_after_round, diary, self.rounds))
        recipe = task.worker_recipe(self.records_per_user)
        task.engine.run(strategy, recipe, worker, state, Rounds(1, self.rounds))
        load_trainable_state(model, strategy.optimizer.state)
        return diary.outcome(self._row(task, description), model)

    def _strategy(
        self,
        task: Task,
        description: acc.Description | None,
        state: dict[str, Tensor],
        after_round: Callable[[int, RoundReplies, dict[str, Tensor]], None],
    ) -> UserLevelDP:
        """The server's strategy."""
        assert self.clip_norm is not None
        settings = UserLevelSettings(
            num_users=task.num_users,
            clip_norm=self.clip_norm,
            noise_multiplier=0.0 if description is None else description.noise_multiplier,
            seed=task.seed,
            num_nodes=task.engine.num_nodes_for(task.num_users),
        )
        optimizer = ServerOptimizer(state, partial(task.optimizer_fn, lr=self.learning_rate))
        return UserLevelDP(settings, task.selector, optimizer, task.noise, lambda round: None, after_round)

    def _row(self, task: Task, description: acc.Description | None) -> ResultRow:
        """The result, its measured figures still to be filled in."""
        relation = "no privacy: no noise" if description is None else description.adjacency.value
        return _row(self, task, "user", description, None, f"user level, neighbours {relation}")


@dataclass(frozen=True)
class RecordLevelDP(TrainingSettings):
    """Centralized record-level DP-SGD with Opacus on a pool capped at k records per user.

    Attributes:
        accountant: "group" (black-box group conversion) or "tight" (ELS, mixture of Gaussians) reach the budget at
            the user level; "record" reaches it for a single record only, and promises users nothing.
    """

    accountant: str = "group"

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Trains with noise calibrated to the task's budget under the accountant."""
        assert self.clip_norm is not None
        probability = _sampling_prob(task, self.name)
        release = acc.RecordLevel(1.0, probability, self.rounds, self.records_per_user)
        description = _calibrated(release, task, self.accountant)
        records = task.training_users(self.records_per_user).capped_records()
        model = _fresh_model(task)
        step = OpacusStep(
            model,
            partial(task.optimizer_fn, lr=self.learning_rate),
            clip_norm=self.clip_norm,
            noise_multiplier=0.0 if description is None else description.noise_multiplier,
            expected_batch_size=probability * len(records),
            noise=task.noise,
            max_tokens=task.local.max_tokens,
        )
        spent = [] if self.accountant == "record" else _spent(description, task, self.rounds, self.accountant)
        diary = _train_centrally(self, task, progress, model, step, records, probability, spent)
        step.close()
        return diary.outcome(self._row(task, description), model)

    def _row(self, task: Task, description: acc.Description | None) -> ResultRow:
        """The result, its measured figures still to be filled in."""
        words = {
            "group": "user level by group conversion of a record-level guarantee, neighbours add or remove one user",
            "tight": "user level by the tight ELS accountant, neighbours add or remove one user",
            "record": "record level only, NO user-level guarantee",
        }
        row = _row(self, task, "record", description, self.accountant, words[self.accountant])
        if description is None:
            return row
        tight = acc.epsilon(description, task.budget.delta, method="tight")
        record = acc.epsilon(description, task.budget.delta, method="record")
        if self.accountant == "record":
            return replace(row, epsilon=None, delta=None, epsilon_tight=tight, epsilon_record=record)
        return replace(row, epsilon_tight=tight, epsilon_record=record)


@dataclass(frozen=True)
class NonPrivate(TrainingSettings):
    """Plain training on the same capped pool: the ceiling."""

    def run(self, task: Task, progress: RunProgress) -> Outcome:
        """Trains without clip and noise."""
        probability = _sampling_prob(task, self.name)
        records = task.training_users(self.records_per_user).capped_records()
        model = _fresh_model(task)
        step = PlainStep(
            model,
            partial(task.optimizer_fn, lr=self.learning_rate),
            expected_batch_size=probability * len(records),
            max_tokens=task.local.max_tokens,
        )
        diary = _train_centrally(self, task, progress, model, step, records, probability, [])
        return diary.outcome(_row(self, task, "none", None, None, "none: trained without privacy"), model)


class Diary:
    """Writes down each round of a run, evaluates when due and shows progress."""

    POINTS: ClassVar[str] = "the state before training is round 0"

    def __init__(self, name: str, task: Task, progress: RunProgress, model: nn.Module, spent: list[float]) -> None:
        self.name, self.task, self.progress, self.model = name, task, progress, model
        self.rounds: list[RoundRecord] = []
        self.train_tokens = 0
        self._spent, self._start = spent, time.perf_counter()

    def write(
        self,
        round: int,
        num_units: int,
        *,
        evaluate: bool,
        loss_sum: float = 0.0,
        tokens: int = 0,
        num_clipped: int | None = None,
        num_failed: int = 0,
        num_nonfinite: int = 0,
    ) -> None:
        """Adds a round; the model must hold the state after it."""
        self.train_tokens += tokens
        perplexity = self.task.perplexity(self.model) if evaluate else None
        epsilon = self._spent[round - 1] if self._spent and round else (0.0 if self._spent else None)
        self.rounds.append(
            RoundRecord(
                mechanism=self.name,
                seed=self.task.seed,
                round=round,
                epsilon=epsilon,
                perplexity=perplexity,
                train_loss=loss_sum / num_units if num_units else None,
                num_units=num_units,
                num_clipped=num_clipped,
                num_failed=num_failed,
                num_nonfinite=num_nonfinite,
                train_tokens=self.train_tokens,
                seconds=round_seconds(time.perf_counter() - self._start),
            )
        )
        self.progress.advance(round, num_units, epsilon, perplexity)

    def due(self, round: int, last: int) -> bool:
        """Whether the round is evaluated."""
        return round == last or round % self.task.evaluate_every == 0

    def outcome(self, row: ResultRow, model: PeftModel) -> Outcome:
        """Returns the outcome, the row's measured figures filled in."""
        final = self.rounds[-1].perplexity
        assert final is not None
        seconds = round_seconds(time.perf_counter() - self._start)
        filled = replace(row, perplexity=final, train_tokens=self.train_tokens, seconds=seconds)
        return Outcome(filled, self.rounds, model)


def round_seconds(seconds: float) -> float:
    """Returns seconds to the millisecond, as files show them."""
    return float(f"{seconds:.3f}")


def _fresh_model(task: Task) -> PeftModel:
    """The base model with the adapter that every mechanism starts from."""
    return attach_lora(task.model.load(), task.lora, task.seed)


def _calibrated(release: acc.Description, task: Task, method: str | None) -> acc.Description | None:
    """The release with the least noise that keeps the budget; None where the budget asks for no noise."""
    if task.budget.epsilon == float("inf"):
        return None
    options = {} if method is None else {"method": method}
    return acc.calibrate(release, epsilon=task.budget.epsilon, delta=task.budget.delta, **options)


def _spent(description: acc.Description | None, task: Task, rounds: int, method: str | None) -> list[float]:
    """User-level epsilon after each round; empty where there is none."""
    if description is None:
        return []
    options = {} if method is None else {"method": method}
    return acc.epsilon_per_round(description, task.budget.delta, rounds, **options)


def _sampling_prob(task: Task, name: str) -> float:
    """The probability of the Poisson selection: a centralized run samples records as user-wise samples users."""
    if not isinstance(task.selector, PoissonSelector):
        raise ConfigError(f"mechanism={name} samples records by Poisson sampling: use selection=poisson")
    return task.selector.sampling_prob


def _train_centrally(
    mechanism: TrainingSettings,
    task: Task,
    progress: RunProgress,
    model: PeftModel,
    step: RecordStep,
    records: list,
    probability: float,
    spent: list[float],
) -> Diary:
    """Runs the steps of a centralized mechanism and writes them down."""
    progress.start(mechanism.name, mechanism.rounds, "records")
    diary = Diary(mechanism.name, task, progress, model, spent)
    diary.write(0, 0, evaluate=True)
    settings = CentralSettings(mechanism.rounds, probability, task.local.max_tokens, task.seed)
    reports: Iterator[StepReport] = train_on_records(step, records, settings, lambda step: None)
    for report in reports:
        diary.write(
            report.step,
            report.num_records,
            evaluate=diary.due(report.step, mechanism.rounds),
            loss_sum=report.loss_sum,
            tokens=report.num_tokens,
            num_nonfinite=report.num_nonfinite,
        )
    return diary


def _after_round(diary: Diary, last: int, round: int, replies: RoundReplies, state: dict[str, Tensor]) -> None:
    """Writes a user-wise round down."""
    if evaluate := diary.due(round, last):
        load_trainable_state(diary.model, state)
    clipped = replies.update.clipped
    diary.write(
        round,
        clipped.num_units,
        evaluate=evaluate,
        loss_sum=replies.update.loss_sum,
        tokens=replies.update.num_tokens,
        num_clipped=clipped.num_clipped,
        num_failed=replies.num_failed,
        num_nonfinite=clipped.num_nonfinite,
    )


def _row(
    mechanism: TrainingSettings,
    task: Task,
    unit: str,
    description: acc.Description | None,
    method: str | None,
    guarantee: str,
) -> ResultRow:
    """The part of a result that is known before it is measured; epsilon is recomputed, not copied from the target."""
    epsilon = None
    if description is not None and method != "record":
        options = {} if method is None else {"method": method}
        epsilon = acc.epsilon(description, task.budget.delta, **options)
    return ResultRow(
        mechanism=mechanism.name,
        unit=unit,
        epsilon=epsilon,
        delta=None if epsilon is None else task.budget.delta,
        guarantee=guarantee,
        noise_multiplier=0.0 if description is None else description.noise_multiplier,
        clip_norm=mechanism.clip_norm,
        records_per_user=mechanism.records_per_user,
        rounds=mechanism.rounds,
        sampling_prob=getattr(task.selector, "sampling_prob", None),
        learning_rate=mechanism.learning_rate,
        seed=task.seed,
        perplexity=0.0,
        train_tokens=0,
        seconds=0.0,
    )
