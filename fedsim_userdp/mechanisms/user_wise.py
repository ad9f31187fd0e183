"""User-wise DP-SGD: each user of a cohort adds a clipped update, and the server adds noise to their sum."""

from dataclasses import dataclass, replace
from functools import partial

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.engines import has_node_per_user
from fedsim_userdp.federation.engines.deployment import DeploymentEngine
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.rounds import Rounds
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.mechanisms.base import Training, check_positive, result_row
from fedsim_userdp.mechanisms.guarantee import Guarantee, calibrated
from fedsim_userdp.mechanisms.history import History, Outcome
from fedsim_userdp.mechanisms.persistence import RunState, open_run_state
from fedsim_userdp.mechanisms.plugin_checks import try_out_clipping
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.models.adapters import load_trainable_state, trainable_state
from fedsim_userdp.naming import settings_of
from fedsim_userdp.participation import declared_release
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.clipping import Clipping
from fedsim_userdp.privacy.noise import MOST
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.selection import ClientSelector, CyclicSelector, FixedSizeSelector
from fedsim_userdp.selectors import GrowingSelector
from fedsim_userdp.signals import PaidSignal, check_told_of_groups, signal_of
from fedsim_userdp.strategies.optimizers import ServerOptimizer
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings


@dataclass(frozen=True, kw_only=True)
class UserWise(Training):
    """User-wise DP-SGD (ULS; DP-FedAvg with several local steps) through Flower.

    Attributes:
        clip_norm: bound on the norm of a user's update, above 0.
    """

    name: str = "user_wise"
    clip_norm: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("clip_norm", self.clip_norm)

    def clipping(self) -> Clipping | None:
        """Returns what shrinks one user's update, for a mechanism of one's own; None for scaling it as a whole.

        It takes name to tensor and the clip norm, and returns tensors of the same names and shapes whose L2 norm, over
        all of them, is at most that: a run stops where it is above. It is a function at the top of a module, or a
        method, so that nodes in other processes find it.
        """
        return None

    def run(self, run: Run, progress: RunProgress) -> Outcome:
        """Trains on the engine's nodes with noise calibrated to the study's budget."""
        guarantee, clipping = self.guarantee(run.study), self.clipping()
        worker = run.worker(self.records_per_user, clipping)
        if clipping is not None:
            try_out_clipping(clipping, trainable_state(worker.gradients.model), self.clip_norm)
        history = History(self.name, "users", self.rounds, run, guarantee, worker.gradients.model, progress)
        with open_run_state(history) as state:
            adapter = trainable_state(history.model)
            optimizer = ServerOptimizer(adapter, run.study.optimizer_fn, self.schedule())
            state.restore(optimizer.torch_optimizer)
            settings = self._settings(run, guarantee, state, worker)
            after_round = partial(_note_round, state, optimizer)
            strategy = UserLevelDP(settings, run.study.selector, optimizer, run.noise, state.record, after_round)
            state.follow(strategy.cohorts)
            history.groups = strategy.cohorts.groups
            rounds = Rounds(state.first, history.num_rounds)
            if rounds.first <= rounds.last:
                recipe = run.worker_recipe(self.records_per_user, clipping)
                run.study.engine.run(strategy, recipe, worker, adapter, rounds)
        load_trainable_state(history.model, optimizer.state)
        history.score_last()
        outcome = history.outcome(result_row(self.name, "user", history, guarantee.in_words(), self, self.clip_norm))
        return replace(outcome, participation=strategy.cohorts.participation(history.num_rounds))

    def guarantee(self, study: Study) -> Guarantee:
        """Returns the promise, its noise calibrated to the study's budget."""
        check_rounds_of_growth(study.selector, self.rounds)
        with settings_of("selection", study.selector):
            if isinstance(study.selector, CyclicSelector | FixedSizeSelector):
                study.selector.expected_cohort_size(study.num_users)  # which refuses more users than there are
            declared = declared_release(study.selector, 1.0, study.population, self.rounds)
        if not isinstance(study.engine, DeploymentEngine):  # which counts its nodes when they are there
            study.engine.num_nodes_for(study.num_users)  # which refuses more nodes than users
        if not study.keep_places and declared.adjacency is not acc.Adjacency.ADD_OR_REMOVE_USER:
            raise ConfigError(
                f"selection={type(study.selector).__name__} declares another claim for {self.rounds} rounds than for "
                "one: users without records have no place, which its claim needs"
            )
        if isinstance(declared, acc.PoissonGroups):
            _check_weights(declared, self.clip_norm, type(study.selector).__name__)
        signal = signal_of(study.selector)
        if signal is None:
            return calibrated(declared, study.target, None, "user")
        promise = calibrated(acc.PaidSignals(declared, signal.share), study.target, None, "user")
        signal.group_of(study.population)  # which refuses a column that is not there
        check_told_of_groups(signal, promise.signal_noise_multiplier, type(study.selector).__name__)
        return promise

    def _settings(self, run: Run, guarantee: Guarantee, state: RunState, worker: Worker) -> UserLevelSettings:
        """The numbers of the server's strategy, for the rounds that are left."""
        return UserLevelSettings(
            population=run.study.population,
            clip_norm=self.clip_norm,
            noise_multiplier=guarantee.noise_multiplier,
            key=run.keys.run,
            num_nodes=run.study.engine.num_nodes_for(run.study.num_users),
            sizes_fn=worker.sizes if run.study.engine.deals_by_size(run.study.num_users) else None,
            has_node_per_user=has_node_per_user(run.study.engine, run.study.num_users),
            declared=guarantee.declared,
            signal=_paid(run.study, guarantee),
            run=run.description,
        )


def check_rounds_of_growth(selector: ClientSelector, rounds: int) -> None:
    """Raises ConfigError where probabilities grow over another number of rounds than the run has."""
    if isinstance(selector, GrowingSelector) and selector.rounds != rounds:
        raise ConfigError(
            f"selection.rounds={selector.rounds} must be the run's number of rounds, {rounds}: tuned.rounds sets both"
        )


def _check_weights(declared: acc.PoissonGroups, clip_norm: float, name: str) -> None:
    """Raises ConfigError where a weighted update may be more than float32 sums: one user's could end the run."""
    most = max(weight for group in declared.groups for _, weight, _ in group)
    if most * clip_norm > MOST:
        raise ConfigError(
            f"selection={name} states a weight of {most:g}, which times mechanism.clip_norm={clip_norm:g} must be at "
            f"most {MOST:g}: float32 must hold the sum"
        )


def _paid(study: Study, guarantee: Guarantee) -> PaidSignal | None:
    """The signal that users send besides; None without one."""
    signal = signal_of(study.selector)
    if signal is None:
        return None
    return PaidSignal(signal, signal.group_of(study.population), guarantee.signal_noise_multiplier)


def _note_round(
    run_state: RunState, optimizer: ServerOptimizer, round: int, replies: RoundReplies, state: ServerState
) -> None:
    """Writes a round of the federation down, the model brought up to date if it is to be evaluated."""
    if run_state.history.is_due(round):
        load_trainable_state(run_state.history.model, state.adapter)
    run_state.history.write_replies(round, replies)
    run_state.save_if_due(round, state.adapter, optimizer.torch_optimizer, state.clip_norm)
