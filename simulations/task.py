"""One run's configuration turned into objects: data, model, selector, budget, engine."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel

from fedsim_userdp.data.owners import OwnerBoundedStore, count_owners
from fedsim_userdp.data.perplexity import CachedScores, PerplexityRecords
from fedsim_userdp.data.records import RandomChunks, RandomRecords, RecordSelector
from fedsim_userdp.data.split import UserSplit, split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.federation.engines import Engine
from fedsim_userdp.federation.messages import RunDescription
from fedsim_userdp.federation.worker import Worker, WorkerRecipe, fingerprint_of
from fedsim_userdp.models.adapters import LoraSettings, attach_lora
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.participation import Population
from fedsim_userdp.privacy.cache import default_cache_dir, path_of
from fedsim_userdp.privacy.noise import NoiseSource, OperatingSystemNoise, SeededNoise
from fedsim_userdp.privacy.ownership import Ownership
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.files import NOT_PRIVATE
from fedsim_userdp.selection import Choosing, ClientSelector, Sampling
from fedsim_userdp.simulations.circumstances import (
    Circumstances,
    foreign_classes,
    is_add_or_remove,
    licence_of,
    taken_as_public,
)
from fedsim_userdp.simulations.corpora import configured_corpus, configured_store
from fedsim_userdp.simulations.errors import ConfigError
from fedsim_userdp.simulations.identity import NEVER_CHANGED, identity_of, keys_of_run, plain, settings_digest
from fedsim_userdp.simulations.keys import RunKeys
from fedsim_userdp.simulations.micro_batches import local_training
from fedsim_userdp.simulations.names import made
from fedsim_userdp.simulations.searches import searched_runs
from fedsim_userdp.simulations.versions import code_versions
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.central import Pool
from fedsim_userdp.training.checkpoints import CheckpointFolder
from fedsim_userdp.training.cohort import LocalTraining
from fedsim_userdp.training.evaluation import perplexity
from fedsim_userdp.training.gradients import OneByOneGradients, StackedGradients, UnitGradients, why_not_stacked
from fedsim_userdp.training.scoring import BaseModelScorer
from fedsim_userdp.training.users import (
    RecordChoiceError,
    TrainingUsers,
    TrainingUsersRecipe,
    check_lengths,
    in_order_of_ids,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """The user-level target: epsilon (infinity for no noise), delta, and whose a record is."""

    epsilon: float
    delta: float
    ownership: Ownership = "assigned"


@dataclass(frozen=True)
class Task:
    """Everything that a mechanism needs, built from one resolved configuration.

    Attributes:
        name: label of the mechanism, also of its adapter folder.
        settings: digest of the settings that decide a release: not of names, paths, engine, threads or evaluation.
        seed: the run's seed; of the first adapter, which is public, and where noise is seeded of all that is random.
        keys: what all else that is random derives from, and what digests in the ledger are made with.
        budget: the user-level target.
        store: every user's records as token ids.
        split: training, held-out and validation users; the training users in the order of their ids.
        split_seed: of the split.
        keep_places: whether users without a usable record stay as places that add zero.
        model: the base model.
        lora: the adapter.
        window: the most tokens of a record.
        records: how a user picks records.
        selector: who takes part in a round.
        optimizer_fn: (parameters, learning rate) to a `torch.optim` optimizer.
        noise: where noise comes from.
        engine: what runs the nodes.
        local: local training and micro-batch size.
        central_engine: what record-level DP-SGD runs on, "opacus" or "stacked".
        evaluation_units: the users that perplexity is computed on, capped.
        evaluate_every: rounds between evaluations.
        folder: the run folder.
        checkpoint_every: rounds between checkpoints.
        checkpoint_keep: how many of the latest checkpoints stay.
        is_resumed: whether to go on from the latest checkpoint.
        allow_changes: whether to go on from a checkpoint of other settings, data or code.
        num_searched: runs on these users, this one included, that the settings were chosen among; for the statement.
        fingerprint: what a node's updates depend on, name to digest.
        resolved: the resolved settings as JSON, for nodes that build their worker themselves.
        circumstances: what the privacy statement says besides.
        licence: of the corpus's text.
        begin: called before anything is written to the folder, once nothing is refused any more.
        sweep: the folder of the sweep whose job the run is; None outside of one.
    """

    name: str
    settings: str
    seed: int
    keys: RunKeys
    budget: Budget
    store: TokenStore
    split: UserSplit
    split_seed: int
    keep_places: bool
    model: ModelSource
    lora: LoraSettings
    window: int
    records: RecordSelector
    selector: ClientSelector
    optimizer_fn: Callable[..., torch.optim.Optimizer]
    noise: NoiseSource
    engine: Engine
    local: LocalTraining
    central_engine: Literal["opacus", "stacked"]
    evaluation_units: list[Unit]
    evaluate_every: int
    folder: Path
    checkpoint_every: int
    checkpoint_keep: int
    is_resumed: bool
    allow_changes: bool
    num_searched: int
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    resolved: str = ""
    circumstances: Circumstances = field(default_factory=Circumstances)
    licence: str = "unknown"
    begin: Callable[[], None] = lambda: None
    sweep: Path | None = None

    @property
    def run_name(self) -> str:
        """Names this run's files in a folder that may hold several mechanisms and seeds."""
        return run_name(self.name, self.seed)

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The run's checkpoints; they hold diagnostics too, hence their place."""
        path = checkpoint_path(self.folder, self.run_name)
        origin = {**self.fingerprint, "settings": self.settings, **code_versions()}
        return CheckpointFolder(
            path, origin, self.checkpoint_keep, allow_changes=self.allow_changes, fixed=NEVER_CHANGED
        )

    @property
    def identity(self) -> str:
        """What the run's releases depend on, as text: data, split, model, settings and version."""
        return identity_of(self.settings, self.fingerprint)

    @property
    def population(self) -> Population:
        """The training users as a selector may know them."""
        return Population(np.asarray(self.store.id_hashes)[self.split.train])

    @property
    def description(self) -> RunDescription:
        """What nodes are told of the run."""
        return RunDescription(self.fingerprint, self.resolved, self.keys.run.of_nodes())

    @property
    def num_users(self) -> int:
        """Size of the training population, public."""
        return len(self.split.train)

    @property
    def num_protected(self) -> int:
        """How many people a promise covers: the training users, and whoever is declared to own their records."""
        return _num_protected(self.store, self.split)

    def training_users(self, records_per_user: int) -> TrainingUsers:
        """Returns the training users, capped at k records each."""
        key = self.keys.run.of_nodes()
        return TrainingUsers(self.store, self.split.train, self.records, records_per_user, self.window, key)

    def pool(self, records_per_user: int) -> Pool:
        """Returns the records of a centralized run, at most k of each user, and of everybody else who owns them.

        Raises:
            ConfigError: when records have several owners and are chosen by what is in them, or the choice of records
                breaks its rules.
        """
        try:
            if not self.store.declares_owners:
                return self.training_users(records_per_user).pool()
            return self._owners_pool(records_per_user)
        except RecordChoiceError as error:
            raise ConfigError(str(error)) from error

    def _owners_pool(self, records_per_user: int) -> Pool:
        """The records of which nobody owns more than k."""
        _check_chosen_without_looking(self.records)
        key = self.keys.run.of_nodes().mark("owners", "").encode()
        records = OwnerBoundedStore(self.store.path, records_per_user, key, self.split.train).pool()
        check_lengths([one.tokens for one in records], self.window, "the store of records with several owners")
        return Pool(
            units=[Unit(i, [one.tokens], place=one.place) for i, one in enumerate(records)],
            id_hashes=np.zeros(len(records), dtype=np.uint64),  # the record's public place is its address
            places=np.array([one.place for one in records], dtype=np.uint64),
        )

    def worker_recipe(self, records_per_user: int) -> WorkerRecipe:
        """Returns what another process needs to build this run's worker."""
        users = TrainingUsersRecipe(
            store_path=self.store.path,
            heldout_users=len(self.split.heldout),
            validation_users=len(self.split.validation),
            split_seed=self.split_seed,
            keep_places=self.keep_places,
            selector=self.records,
            records_per_user=records_per_user,
            window=self.window,
            key=self.keys.run.of_nodes(),
        )
        return WorkerRecipe(self.settings, self.model, self.lora, users, self.local, self.seed)

    def worker(self, records_per_user: int) -> Worker:
        """Returns this process's worker: a freshly loaded model with a fresh adapter."""
        model = attach_lora(self.model.load(), self.lora, self.seed)
        return Worker(self.gradients(model), self.training_users(records_per_user), self.local, self.fingerprint)

    def gradients(self, model: PeftModel) -> UnitGradients:
        """Returns what computes each unit's gradient on the model; says so where that is slower than it could be."""
        reason = why_not_stacked(model, self.window)
        if reason is None:
            return StackedGradients(model)
        _log.warning("%s: units are trained one by one, slower, with the same results", reason)
        return OneByOneGradients(model)

    def perplexity(self, model: torch.nn.Module) -> float:
        """Returns the perplexity of `model` on the evaluation users."""
        return perplexity(model, self.evaluation_units, 2 * self.local.max_tokens)


def build_task(config: DictConfig, folder: Path) -> Task:
    """Returns the objects that a resolved configuration names, for a run in `folder`.

    Raises:
        ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong with it.
    """
    if config.threads is not None:
        torch.set_num_threads(_threads(config.threads))
    model: ModelSource = made("model", config.model)
    lora = LoraSettings(**plain(config.lora))
    store = configured_store(config, model)
    selector = _client_selector(config)
    if _asks_for_owners(config.data) and not store.declares_owners:
        _log.warning("the records name no owner besides their user: the promise is to these users only")
    keep_places = store.declares_owners or not is_add_or_remove(selector, store.num_users, config)
    split = _split(config, store, keep_places=keep_places)
    settings = settings_digest(config)
    population = Population(np.asarray(store.id_hashes)[split.train])
    fingerprint = fingerprint_of(store, population, model, settings)
    name, seed = str(config.mechanism.name), _seed(config.seed)
    window = int(config.tokens.window)
    keys = keys_of_run(config, identity_of(settings, fingerprint), checkpoint_path(folder, run_name(name, seed)))
    engine: Engine = made("engine", config.engine)
    records, optimizer_fn = _record_selector(config, model, store), _optimizer_fn(config)
    return Task(
        name=name,
        settings=settings,
        seed=seed,
        keys=keys,
        budget=_budget(config, _num_protected(store, split), "declared" if store.declares_owners else "assigned"),
        store=store,
        split=split,
        split_seed=config.split.seed,
        keep_places=keep_places,
        model=model,
        lora=lora,
        window=window,
        records=records,
        selector=selector,
        optimizer_fn=optimizer_fn,
        noise=SeededNoise(keys.run) if keys.run.is_seeded else OperatingSystemNoise(),
        engine=engine,
        local=local_training(config, model, lora, _path(config.cache_dir) or default_cache_dir()),
        central_engine=_central_engine(config.central.engine),
        evaluation_units=_evaluation_units(config, store, split),
        evaluate_every=_at_least_one("evaluation.every", config.evaluation.every),
        folder=folder,
        checkpoint_every=_at_least_one("checkpoint.every", config.checkpoint.every),
        checkpoint_keep=_at_least_one("checkpoint.keep", config.checkpoint.keep),
        is_resumed=config.resume is not None,
        allow_changes=bool(config.checkpoint.allow_changes),
        num_searched=searched_runs(config, configured_corpus(config).name),
        fingerprint=fingerprint,
        resolved=json.dumps(OmegaConf.to_container(config, resolve=True)),
        circumstances=Circumstances(
            foreign=foreign_classes(config, selector, records, optimizer_fn, engine, model),
            window=window,
            public=taken_as_public(config, keep_places=keep_places),
            precision=model.product_dtype,
            evaluated_on=config.evaluation.users,
        ),
        licence=licence_of(config),
    )


def run_name(mechanism: str, seed: int) -> str:
    """Returns the name of a run's files in a folder that may hold several mechanisms and seeds."""
    return f"{mechanism}-seed{seed}"


def checkpoint_path(folder: Path, name: str) -> Path:
    """Returns where the checkpoints of the run called `name` are; they hold diagnostics too, hence the place."""
    return folder / NOT_PRIVATE / "checkpoints" / name


def _split(config: DictConfig, store: TokenStore, *, keep_places: bool) -> UserSplit:
    """The split, the training users in the order of their ids."""
    found = split_users(
        store,
        heldout_users=config.split.heldout_users,
        validation_users=config.split.validation_users,
        seed=config.split.seed,
        keep_places=keep_places,
    )
    return replace(found, train=in_order_of_ids(store, found.train))


def _path(value: str | None) -> Path | None:
    """A path, a tilde at its beginning expanded, or None."""
    return None if value is None else path_of(value, "cache_dir")


def _threads(value: int) -> int:
    """The CPU threads, within what a machine can start."""
    if not isinstance(value, int) or not 1 <= value <= 1024:
        raise ConfigError(f"threads={value} must be a whole number from 1 to 1024, or null")
    return value


def _optimizer_fn(config: DictConfig) -> Callable[..., torch.optim.Optimizer]:
    """The server's optimizer, still without parameters."""
    optimizer_fn: Callable[..., torch.optim.Optimizer] = made("optimizer", config.optimizer)
    if not callable(optimizer_fn):
        raise ConfigError(f"optimizer={config.optimizer} is no optimizer: it needs a _target_, and _partial_=true")
    return optimizer_fn


def _seed(value: int) -> int:
    """The seed, at least 0."""
    if value < 0:
        raise ConfigError(f"seed={value} must be at least 0")
    return value


def _asks_for_owners(data: DictConfig) -> bool:
    """Whether records are to belong to everybody whom they name."""
    return data.get("owners_column") is not None or data.get("owners", "sender") != "sender"


def _num_protected(store: TokenStore, split: UserSplit) -> int:
    """The training users and the declared owners of their records."""
    return count_owners(store, split.train) if store.declares_owners else len(split.train)


def _check_chosen_without_looking(records: RecordSelector) -> None:
    """Raises ConfigError unless records are chosen at random.

    With several owners a record, choosing by content would let one person's text decide which of another's are used.
    """
    if not isinstance(records, RandomRecords):
        raise ConfigError(
            f"records={type(records).__name__} chooses by what is in a user's records, which other owners of theirs "
            "must not feel: with declared owners only records=random keeps everybody within k records"
        )


def _budget(config: DictConfig, num_users: int, ownership: Ownership) -> Budget:
    """The target, delta = N^-1.1 unless given; a delta above 1/N would let one user's data be published."""
    epsilon = float(config.privacy.epsilon)
    if not epsilon > 0:
        raise ConfigError(f"privacy.epsilon={epsilon:g} must be above 0 (inf for no noise)")
    if num_users < 2:
        raise ConfigError(f"{num_users} user is left to train on: a promise to users needs at least 2")
    delta = num_users**-1.1 if config.privacy.delta is None else float(config.privacy.delta)
    if not 0 < delta < 1:
        raise ConfigError(f"privacy.delta={delta:g} must lie in (0, 1)")
    if delta > 1 / num_users:
        raise ConfigError(
            f"privacy.delta={delta:g} is above 1/N = {1 / num_users:.3g} for {num_users} training users"
            f"{' and others who own their records' if ownership == 'declared' else ''}, "
            "which would allow publishing somebody's data; leave it null for N^-1.1"
        )
    return Budget(epsilon, delta, ownership)


def _client_selector(config: DictConfig) -> ClientSelector:
    """The client selector."""
    selector = made("selection", config.selection)
    if not isinstance(selector, Choosing | Sampling):
        raise ConfigError(
            f"selection={config.selection._target_} has no `select` (or `probability`), `expected_cohort_size` and "
            "`release`: see fedsim_userdp.selection"
        )
    return selector


def _record_selector(config: DictConfig, model: ModelSource, store: TokenStore) -> RecordSelector:
    """The record selector; one that ranks by perplexity is given the base model's scores, kept on disk."""
    selector = made("records", config.records)
    if isinstance(selector, PerplexityRecords):
        scorer = BaseModelScorer(model)
        folder = _path(config.cache_dir) or default_cache_dir()
        scores = CachedScores(scorer, folder, corpus=store.fingerprint, model=scorer.fingerprint())
        return selector.bind(scores)
    if isinstance(selector, RandomChunks) and selector.window > config.tokens.window:
        raise ConfigError(
            f"records.window={selector.window} is more than tokens.window={config.tokens.window}: a chunk is a record, "
            "and none is longer than that; leave records.window out"
        )
    if not isinstance(selector, RecordSelector):
        raise ConfigError(f"records={config.records._target_} has no `fresh` and `select`: see RecordSelector")
    return selector


def _evaluation_units(config: DictConfig, store: TokenStore, split: UserSplit) -> list[Unit]:
    """The users to evaluate on; `validation` is for tuning, so that held-out users are never tuned on."""
    groups = {"heldout": split.heldout, "validation": split.validation}
    settings = config.evaluation
    if settings.users not in groups:
        raise ConfigError(f"evaluation.users={settings.users} is unknown; expected heldout or validation")
    users = groups[settings.users]
    if not len(users):
        raise ConfigError(
            f"split.{settings.users}_users=0 leaves nobody to evaluate on (evaluation.users={settings.users})"
        )
    key = RunKey.seeded(config.split.seed, "evaluation")  # public: the same records for every mechanism
    window = int(config.tokens.window)
    chosen = TrainingUsers(store, users, RandomRecords(fresh=False), settings.records_per_user, window, key)
    if not (units := chosen.units(range(len(users)), round=0)):
        raise ConfigError(f"none of the {len(users)} {settings.users} users has a usable record: set aside more")
    return units


def _central_engine(name: str) -> Literal["opacus", "stacked"]:
    """What record-level DP-SGD runs on."""
    if name == "opacus":
        return "opacus"
    if name == "stacked":
        return "stacked"
    raise ConfigError(f"central.engine={name} is unknown; expected opacus or stacked")


def _at_least_one(key: str, value: int) -> int:
    """The setting, a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key}={value} must be a whole number of at least 1")
    return value
