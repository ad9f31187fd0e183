"""One mechanism's run of a study, and the place where its results go."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.messages import RunDescription
from fedsim_userdp.federation.worker import Worker, WorkerRecipe
from fedsim_userdp.mechanisms.cache_folder import check_cache_folders
from fedsim_userdp.mechanisms.circumstances import named_foreign
from fedsim_userdp.mechanisms.construction import at_least_one
from fedsim_userdp.mechanisms.identity import NEVER_CHANGED, identity_of, keys_of_run, origin_of, settings_digest
from fedsim_userdp.mechanisms.keys import RunKeys
from fedsim_userdp.mechanisms.settings_tree import Tree
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.mechanisms.versions import code_versions
from fedsim_userdp.privacy.clipping import Clipping
from fedsim_userdp.privacy.noise import NoiseSource, OperatingSystemNoise, SeededNoise
from fedsim_userdp.report.files import NOT_PRIVATE
from fedsim_userdp.training.central import Pool
from fedsim_userdp.training.checkpoints import CheckpointFolder
from fedsim_userdp.training.users import TrainingUsers, TrainingUsersRecipe


@dataclass(frozen=True)
class Place:
    """Where a run's results go, and how it goes on.

    Attributes:
        folder: the run folder.
        every: rounds between checkpoints, at least 1.
        keep: how many of the latest checkpoints stay, at least 1.
        is_resumed: whether to go on from the latest checkpoint.
        allow_changes: whether to go on from a checkpoint of other settings, data or code.
        is_changed: whether settings other than metrics differ from those that the folder was started with.
        sweep: the folder of the sweep whose job the run is; None outside of one.
        begin: called before anything is written to the folder, once nothing is refused any more.
    """

    folder: Path
    every: int = 5
    keep: int = 2
    is_resumed: bool = False
    allow_changes: bool = False
    is_changed: bool = False
    sweep: Path | None = None
    begin: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        at_least_one("checkpoint.every", self.every)
        at_least_one("checkpoint.keep", self.keep)


@dataclass(frozen=True)
class Run:
    """One mechanism's run of a study.

    Attributes:
        name: label of the mechanism, also of its adapter folder.
        study: what is compared.
        place: where results go.
        settings: digest of the settings that decide a release: not of names, paths, engine, threads or evaluation.
        fingerprint: what a node's updates depend on, name to digest.
        keys: what all that is random derives from, and what digests in the ledger are made with.
        resolved: the settings as JSON, for nodes that build their worker themselves.
        origin: what a checkpoint's origin says of settings and code.
    """

    name: str
    study: Study
    place: Place
    settings: str
    fingerprint: Mapping[str, str]
    keys: RunKeys
    resolved: str
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, study: Study, mechanism: Tree, place: Place) -> "Run":
        """Returns the run of a mechanism, of which these are the settings.

        Raises:
            ConfigError, CheckpointError: one sentence on what is wrong.
        """
        name, tree = str(mechanism["name"]), {**study.tree, "mechanism": mechanism}
        check_cache_folders(tree, place.folder, *([] if place.sweep is None else [place.sweep]))
        study = replace(study, circumstances=study.circumstances.naming(named_foreign({"mechanism": mechanism})))
        settings = settings_digest(tree)
        fingerprint = study.fingerprint(settings)
        path = checkpoint_path(place.folder, run_name(name, study.seed))
        identity = identity_of(settings, {**fingerprint, **study.public_fingerprint()})
        keys = keys_of_run(study.noise_source, study.seed, identity, path, is_resumed=place.is_resumed)
        return cls(name, study, place, settings, fingerprint, keys, _as_json(tree), origin_of(tree))

    @property
    def run_name(self) -> str:
        """Names this run's files in a folder that may hold several mechanisms and seeds."""
        return run_name(self.name, self.study.seed)

    @property
    def checkpoints(self) -> CheckpointFolder:
        """The run's checkpoints; they hold diagnostics too, hence their place."""
        path = checkpoint_path(self.place.folder, self.run_name)
        origin = {
            **self.fingerprint,
            **self.study.public_fingerprint(),
            "settings": self.settings,
            **self.origin,
            **code_versions(),
        }
        return CheckpointFolder(
            path, origin, self.place.keep, allow_changes=self.place.allow_changes, fixed=NEVER_CHANGED
        )

    @property
    def identity(self) -> str:
        """What the run's releases depend on, as text: data, split, model, settings and version."""
        return identity_of(self.settings, {**self.fingerprint, **self.study.public_fingerprint()})

    @property
    def noise(self) -> NoiseSource:
        """Where noise comes from."""
        return SeededNoise(self.keys.run) if self.keys.run.is_seeded else OperatingSystemNoise()

    @property
    def description(self) -> RunDescription:
        """What nodes are told of the run."""
        return RunDescription(self.fingerprint, self.resolved, self.keys.run.of_nodes())

    def training_users(self, records_per_user: int) -> TrainingUsers:
        """Returns the training users, capped at k records each."""
        return self.study.training_users(records_per_user, self.keys.run.of_nodes())

    def pool(self, records_per_user: int) -> Pool:
        """Returns the records of a centralized run; see `Study.pool`."""
        return self.study.pool(records_per_user, self.keys.run.of_nodes())

    def worker(self, records_per_user: int, clipping: Clipping | None = None) -> Worker:
        """Returns this process's worker: a freshly loaded model with a fresh adapter.

        Args:
            records_per_user: k.
            clipping: what shrinks a user's update; None for scaling it as a whole.
        """
        study = self.study
        gradients = study.gradients(study.fresh_model())
        return Worker(gradients, self.training_users(records_per_user), study.local, self.fingerprint, clipping)

    def worker_recipe(self, records_per_user: int, clipping: Clipping | None = None) -> WorkerRecipe:
        """Returns what another process needs to build this run's worker; arguments as of `worker`."""
        study = self.study
        users = TrainingUsersRecipe(
            store_path=study.store.path,
            heldout_users=len(study.split.heldout),
            validation_users=len(study.split.validation),
            split_seed=study.split_seed,
            keep_places=study.keep_places,
            selector=study.records,
            records_per_user=records_per_user,
            window=study.window,
            key=self.keys.run.of_nodes(),
        )
        return WorkerRecipe(self.settings, study.model, study.lora, users, study.local, study.seed, clipping=clipping)


def run_name(mechanism: str, seed: int) -> str:
    """Returns the name of a run's files in a folder that may hold several mechanisms and seeds."""
    return f"{mechanism}-seed{seed}"


def checkpoint_path(folder: Path, name: str) -> Path:
    """Returns where the checkpoints of the run called `name` are; they hold diagnostics too, hence the place."""
    return folder / NOT_PRIVATE / "checkpoints" / name


def _as_json(tree: Mapping[str, Any]) -> str:
    """The settings as text."""
    try:
        return json.dumps(tree)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the settings cannot be written down: {error}") from error
