"""One audit: canaries planted among the run's users, one run for each claim, its verdict and user inference."""

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor

from fedsim_userdp.audit.canaries import Canaries, canary_kinds, draw_canaries, kinds_of
from fedsim_userdp.audit.directions import Directions
from fedsim_userdp.audit.inference import UserInference, infer_users, mean_log_likelihoods
from fedsim_userdp.audit.observer import Observed
from fedsim_userdp.audit.one_shot import Estimate
from fedsim_userdp.audit.training import GradientsWithCanaries, UsersWithCanaries
from fedsim_userdp.audit.verdict import Claim, Findings, check_delta, judge, significance_of_each
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.engines import InProcessEngine
from fedsim_userdp.federation.replies import RoundReplies
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.mechanisms.guarantee import Guarantee, calibrated
from fedsim_userdp.mechanisms.keys import RunKeys
from fedsim_userdp.mechanisms.persistence import one_release
from fedsim_userdp.mechanisms.plugin_checks import check_plugins
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.user_wise import UserWise
from fedsim_userdp.models.adapters import load_trainable_state, trainable_state
from fedsim_userdp.participation import declared_release
from fedsim_userdp.plain_files import make_folder
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.ledger import Ledger
from fedsim_userdp.privacy.noise import SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.audit import AuditedClaim, AuditRow, verdict_on
from fedsim_userdp.report.audit_progress import StepProgress
from fedsim_userdp.simulations.audited_run import AuditedRun
from fedsim_userdp.simulations.observation import Observer, Watch, published_keys
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.users import TrainingUsers


@dataclass(frozen=True)
class AuditSettings:
    """What is planted and asked.

    Attributes:
        epsilons: the claims, each above 0; infinity for a run that claims nothing.
        confidence: of all bounds together, in (0, 1).
        num_candidates: directions that each canary chooses from, a power of two.
        num_real_users: training users among whom the canaries are planted, at least 1; None for all.
        canaries: number of canaries of each kind.
        window: the most tokens of a record.
        records_per_user: the most records of a user that user inference tries.
    """

    epsilons: tuple[float, ...]
    confidence: float
    num_candidates: int
    num_real_users: int | None
    canaries: Mapping[str, int]
    window: int
    records_per_user: int

    def __post_init__(self) -> None:
        if not self.epsilons or any(not epsilon > 0 for epsilon in self.epsilons):
            raise ConfigError(f"audit.epsilons={list(self.epsilons)} must name at least one epsilon, each above 0")
        names = [f"{epsilon:g}" for epsilon in self.epsilons]  # in the identity of a run, and of its ledger
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ConfigError(
                f"audit.epsilons={list(self.epsilons)} names epsilon {twice[0]} twice (six digits count): "
                "leave out one of each two that are the same"
            )

    @property
    def significance(self) -> float:
        """Of each test."""
        return significance_of_each(self.confidence, len(self.epsilons))


class Auditor:
    """Trains and audits the runs of one audit; they share canaries, data and the base model's scores.

    Args:
        run: data, model, selector, noise and engine.
        mechanism: the run's settings.
        settings: the audit's settings.
        progress: where progress is shown.

    Raises:
        ConfigError, ValueError: when the settings do not allow an audit, or a class of the user's own fails at once.
    """

    def __init__(self, run: Run, mechanism: UserWise, settings: AuditSettings, progress: StepProgress) -> None:
        self._run, self._mechanism, self._settings, self._progress = run, mechanism, settings, progress
        _check_auditable(run)
        kinds = kinds_of(settings.canaries, canary_kinds(mechanism.records_per_user, settings.window))
        check_delta(run.study.target.delta, len(kinds), settings.significance)
        self._users = _real_users(run, settings.num_real_users)
        self._worker = run.worker(mechanism.records_per_user, mechanism.clipping())
        self._state = trainable_state(self._model)
        size = sum(tensor.numel() for tensor in self._state.values())
        directions = Directions(size, settings.num_candidates, run.study.seed)
        self.canaries = draw_canaries(kinds, len(self._users), directions, run.study.seed)
        self._members = _units_of(run, self._users, settings.records_per_user)
        self._population = _with_facts(Population.numbered(self.canaries.num_users), run.study.population)
        check_plugins(run, self._guarantee(settings.epsilons[0]), mechanism.records_per_user, self._population)
        self._observer = Observer(run.study.selector, run.noise.is_seeded)
        self._base: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def audit(self, epsilon: float) -> AuditedClaim:
        """Returns what the audit of the run that claims `epsilon` found; infinity trains without noise."""
        start = time.perf_counter()
        guarantee, keys = self._guarantee(epsilon), self._keys(epsilon)
        watch = Watch()
        audited = self._audited_run(guarantee, keys, watch)
        with _open_ledger(self._run, guarantee, epsilon) as ledger:
            self._progress.start(f"epsilon {epsilon:g}: training", audited.rounds, "rounds")
            trace, state = audited.train(partial(_record, ledger, guarantee), self._note_round)
            spent = math.inf if ledger is None else ledger.epsilon()
        claim = Claim(spent, self._run.study.target.delta, audited.expected_cohort / self.canaries.num_users)
        self._progress.start(f"epsilon {epsilon:g}: weighing", len(self.canaries), "canaries")
        findings = judge(trace, self.canaries, claim, self._settings.significance, self._progress.advance)
        published = published_keys(self._run.study.seed, (self._identity(epsilon), self._run.identity))
        observed = self._observer.observe(audited, watch, trace.releases, published)
        return self._report(epsilon, guarantee, findings, self._infer(state), observed, time.perf_counter() - start)

    @property
    def _model(self) -> PeftModel:
        """The model that the worker trains with."""
        model = self._worker.gradients.model
        if not isinstance(model, PeftModel):
            raise TypeError(f"expected a PEFT model, got {type(model).__name__}")
        return model

    def _guarantee(self, epsilon: float) -> Guarantee:
        """What the run over everybody, canaries included, promises."""
        release = declared_release(self._run.study.selector, 1.0, self._population, self._mechanism.rounds)
        return calibrated(release, replace(self._run.study.target, epsilon=epsilon), None, "user")

    def _identity(self, epsilon: float) -> str:
        """What the releases of an audited run depend on, as text."""
        return f"{self._run.identity} audited at epsilon {epsilon:g}"

    def _keys(self, epsilon: float) -> RunKeys:
        """The keys of an audited run: no two of them share noise or cohorts."""
        if not self._run.noise.is_seeded:
            return RunKeys.of(RunKey.drawn())
        return RunKeys.of(RunKey.seeded(self._run.study.seed, self._identity(epsilon)))

    def _audited_run(self, guarantee: Guarantee, keys: RunKeys, watch: Watch) -> AuditedRun:
        """The run with the canaries among the run's users."""
        run, mechanism, canaries = self._run, self._mechanism, self.canaries
        users = self._worker.users
        audited_users = UsersWithCanaries(
            users.store,
            self._users,
            users.selector,
            users.records_per_user,
            users.window,
            keys.run.of_nodes(),
            canaries,
        )
        gradients = GradientsWithCanaries(self._worker.gradients, canaries, mechanism.clip_norm)
        audited = Worker(gradients, audited_users, run.study.local, clipping=mechanism.clipping())
        noise = replace(run.noise, key=keys.run) if isinstance(run.noise, SeededNoise) else run.noise
        settings = UserLevelSettings(
            population=self._population,
            clip_norm=mechanism.clip_norm,
            noise_multiplier=guarantee.noise_multiplier,
            key=keys.run,
            num_nodes=run.study.engine.num_nodes_for(canaries.num_users),
            declared=guarantee.declared,
        )
        return AuditedRun(
            settings=settings,
            selector=copy.deepcopy(run.study.selector),  # what it remembers of another run must not tell in this one
            noise=watch.listening(noise),
            train_fn=watch.watching(audited.train),
            state=self._state,
            optimizer_fn=run.study.optimizer_fn,
            learning_rate=mechanism.schedule(),
            rounds=mechanism.rounds,
        )

    def _infer(self, state: Mapping[str, Tensor]) -> UserInference:
        """User inference against the run's final adapter."""
        if self._base is None:
            load_trainable_state(self._model, self._state)  # a fresh adapter changes nothing
            self._base = self._likelihoods()
        load_trainable_state(self._model, state)
        tuned = self._likelihoods()
        members, others = (tuned[side] - self._base[side] for side in (0, 1))
        return infer_users(members, others, RunKey.seeded(self._run.study.seed).generator("audit", user="bootstrap"))

    def _likelihoods(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The model's mean log-likelihoods of the training and of the held-out users."""
        tokens = 2 * self._run.study.local.max_tokens
        groups = (self._members, self._run.study.evaluation_units)
        members, others = (mean_log_likelihoods(self._model, units, tokens) for units in groups)
        return members, others

    def _note_round(self, round: int, replies: RoundReplies, state: ServerState) -> None:
        """Shows that a round is done."""
        if replies.num_failed:
            self._progress.warn(f"round {round}: {replies.num_failed} of {replies.num_sampled} users failed")
        self._progress.advance(round)

    def _report(
        self,
        epsilon: float,
        guarantee: Guarantee,
        findings: Findings,
        inference: UserInference,
        observed: Observed,
        seconds: float,
    ) -> AuditedClaim:
        """Everything about one audited run, as plain values."""
        mechanism, claim = self._mechanism, findings.claim
        return AuditedClaim(
            claimed_epsilon=_finite(claim.epsilon),
            target_epsilon=_finite(epsilon),
            delta=claim.delta,
            noise_multiplier=guarantee.noise_multiplier,
            clip_norm=mechanism.clip_norm,
            rounds=mechanism.rounds,
            sampling_prob=claim.sampling_prob,
            num_users=self.canaries.num_users,
            canaries=_counts(self.canaries, findings),
            estimate=_finite(None if findings.estimate is None else findings.estimate.epsilon),
            estimate_spread=_finite_spread(findings.estimate),
            auc=inference.auc,
            auc_interval=inference.auc_interval,
            false_positive_rate=inference.false_positive_rate,
            true_positive_rate=inference.true_positive_rate,
            true_positive_interval=inference.true_positive_interval,
            curve=inference.curve,
            num_members=inference.num_members,
            num_others=inference.num_others,
            observer=observed.in_words(),
            is_secret_found=observed.refutes_claim,
            is_secret_shared=observed.refutes_independence,
            observed=observed.numbers(),
            seconds=round(seconds, 3),
            tests=self._rows(findings),
        )

    def _rows(self, findings: Findings) -> tuple[AuditRow, ...]:
        """The tests of one run."""
        claimed = _finite(findings.claim.epsilon)
        return tuple(
            AuditRow(
                claimed_epsilon=claimed,
                delta=findings.claim.delta,
                test=game.game,
                num_canaries=len(self.canaries),
                num_candidates=self.canaries.directions.num_candidates if game.game == "which_direction" else 1,
                num_guesses=game.num_guesses,
                num_correct=game.num_correct,
                lower_bound=game.lower_bound,
                ceiling=game.ceiling,
                confidence=self._settings.confidence,
                significance=self._settings.significance,
                verdict=verdict_on(claimed, game.lower_bound),
            )
            for game in findings.games
        )


def _with_facts(population: Population, real: Population) -> Population:
    """The audited users, each with the public facts of a real one, in turn: canaries have none of their own."""
    rows = np.arange(len(population)) % len(real)
    return Population(population.id_hashes, {name: values[rows] for name, values in real.columns.items()})


def _check_auditable(run: Run) -> None:
    """Raises ConfigError for what an audit cannot do."""
    if run.place.is_resumed:
        raise ConfigError("resume: an audit cannot be resumed; start it anew")
    if not isinstance(run.study.engine, InProcessEngine):
        raise ConfigError("engine: an audit runs its nodes in this process; use engine=in_process")
    if not run.study.evaluation_units:
        raise ConfigError("split.heldout_users=0: user inference compares training users with held-out ones")


def _real_users(run: Run, wanted: int | None) -> NDArray[np.int64]:
    """The store's numbers of the training users that are kept, ascending.

    Raises ConfigError when so many cannot be had.
    """
    everybody = run.study.split.train
    if wanted is None:
        return everybody
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= len(everybody):
        raise ConfigError(f"audit.real_users={wanted} must lie between 1 and the {len(everybody)} training users")
    generator = RunKey.seeded(run.study.seed).generator("audit", user="real users")
    return np.sort(generator.choice(everybody, size=wanted, replace=False))


def _units_of(run: Run, users: NDArray[np.int64], records_per_user: int) -> list[Unit]:
    """The users with records chosen once, as the held-out ones are."""
    key = RunKey.seeded(run.study.split_seed, "evaluation")
    chosen = TrainingUsers(run.study.store, users, RandomRecords(fresh=False), records_per_user, run.study.window, key)
    return chosen.units(range(len(users)), round=0)


@contextmanager
def _open_ledger(run: Run, guarantee: Guarantee, epsilon: float) -> Iterator[Ledger | None]:
    """The ledger of one audited run for the duration of the block; none where there is no noise."""
    if guarantee.release is None:
        yield None
        return
    path = run.place.folder / "ledger" / f"audit-epsilon{epsilon:g}-seed{run.study.seed}.jsonl"
    make_folder(path.parent)
    with Ledger.open(
        path,
        delta=guarantee.delta,
        budget_epsilon=epsilon,
        run=run.keys.marks.mark("run", run.identity),
        noise_source="seeded" if run.noise.is_seeded else "os",
        method=guarantee.method,
    ) as ledger:
        yield ledger


def _record(ledger: Ledger | None, guarantee: Guarantee, round: int, answers: str) -> None:
    """Writes the release of `round` to the ledger, before it is made."""
    if ledger is not None:
        ledger.record(round, one_release(guarantee, round))


def _counts(canaries: Canaries, findings: Findings) -> dict[str, dict[str, int]]:
    """By kind: canaries planted, taking part, guessed by *which direction*, and rightly so."""
    names = np.array([kind.name for kind in canaries.kinds])
    guessed = next(game.guesses_of for game in findings.games if game.game == "which_direction")
    return {
        str(name): {
            "planted": int((names == name).sum()),
            "included": int(canaries.included[names == name].sum()),
            "guessed": guessed.get(str(name), (0, 0))[0],
            "right": guessed.get(str(name), (0, 0))[1],
        }
        for name in dict.fromkeys(names)
    }


def _finite_spread(estimate: Estimate | None) -> tuple[float | None, float | None] | None:
    """The estimate's spread, ends that are infinite as None."""
    return None if estimate is None else (_finite(estimate.spread[0]), _finite(estimate.spread[1]))


def _finite(value: float | None) -> float | None:
    """The value, None where it is infinite: JSON has no infinity."""
    return None if value is None or math.isinf(value) else value
