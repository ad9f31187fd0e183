"""Hydra's configuration turned into objects: a study, a mechanism, and the mechanism's run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.in_memory import InMemoryCorpus
from fedsim_userdp.data.public_columns import public_columns
from fedsim_userdp.data.public_facts import PublicFacts
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.base import Mechanism
from fedsim_userdp.mechanisms.compare import CheckedRun, check_central_engine, checked
from fedsim_userdp.mechanisms.construction import build_study, check_corpus
from fedsim_userdp.mechanisms.run import Place, Run
from fedsim_userdp.mechanisms.settings_tree import target_of
from fedsim_userdp.mechanisms.study import Parts, Study
from fedsim_userdp.plugins import calling, class_name
from fedsim_userdp.simulations.names import check_takes_name, made, without_public, without_unused_path
from fedsim_userdp.simulations.sentences import settings_named


def plain(config: DictConfig) -> dict[str, Any]:
    """Returns a configuration as a plain dict, interpolations resolved."""
    resolved = OmegaConf.to_container(config, resolve=True)
    if not isinstance(resolved, dict):
        raise ConfigError(f"expected a mapping in the configuration, got {resolved!r}")
    return {str(key): value for key, value in resolved.items()}


def configured_corpus(config: DictConfig) -> Corpus:
    """Returns the corpus that `data` names.

    Raises:
        ConfigError: when the class is no corpus.
        DataError: when one of its settings is wrong.
    """
    if config.data._target_ == target_of(InMemoryCorpus):
        raise ConfigError("the records of this run were given in Python: go on there, with the same and resume=True")
    return check_corpus(made("data", without_unused_path(config.data)), config.data._target_)


def configured_study(config: DictConfig) -> Study:
    """Returns the study that a configuration names.

    Raises:
        ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong with it.
    """
    corpus = configured_corpus(config)
    parts = Parts(
        model=made("model", config.model),
        corpus=corpus,
        selection=made("selection", without_public(config.selection)),
        engine=made("engine", config.engine),
        records=made("records", config.records),
        optimizer=made("optimizer", config.optimizer),
        metrics={str(name): made(f"metrics.{name}", node) for name, node in _metrics(config).items()},
        public=_public(config, corpus),
    )
    return build_study(plain(config), parts, int(config.mechanism.get("rounds", 1)))


def _public(config: DictConfig, corpus: Corpus) -> PublicFacts | None:
    """What is public about users, where a file or columns of the corpus say it."""
    path, columns = config.selection.get("public"), config.selection.get("public_columns")
    if columns:
        if path is not None:
            raise ConfigError("selection.public and selection.public_columns both say what is public: give one of them")
        if not isinstance(columns, ListConfig):
            raise ConfigError(f"selection.public_columns={columns} must be a list of columns: [region]")
        return public_columns(corpus, list(columns))
    if path is None:
        return None
    if path == "memory":
        raise ConfigError(
            "the public facts of this run were given in Python: go on there, with the same and resume=True"
        )
    return PublicFacts.of(str(path))


def _metrics(config: DictConfig) -> Mapping[Any, DictConfig]:
    """The settings of each metric, by name."""
    given = config.get("metrics") or {}
    if not isinstance(given, DictConfig | dict):
        raise ConfigError(f"metrics={given} must be a mapping of names to classes: +metrics.NAME._target_=CLASS")
    for name, node in given.items():
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ConfigError(f"metrics.{name!s} needs the class of a metric: +metrics.{name!s}._target_=CLASS")
    return given


def configured_mechanism(config: DictConfig) -> Mechanism:
    """Returns the mechanism that a configuration names.

    Raises:
        ConfigError: when it has no name, or another one.
        PluginError: when a class of the user's own raises.
    """
    check_takes_name(config.mechanism)
    mechanism: Mechanism = made("mechanism", config.mechanism)
    with calling("mechanism", mechanism, "name"):
        name = mechanism.name
    if name != config.mechanism.name:
        raise ConfigError(
            f"mechanism={class_name(mechanism)} calls itself {str(name)[:80]!r} and mechanism.name is "
            f"{config.mechanism.name!r}: keep the name that __init__ is given as self.name"
        )
    return mechanism


def configured_run(
    config: DictConfig,
    folder: Path,
    begin: Callable[[], None] = lambda: None,
    sweep: Path | None = None,
    *,
    is_changed: bool = False,
) -> Run:
    """Returns the run that a configuration names, in a folder.

    Args:
        config: the resolved configuration of one mechanism.
        folder: the run folder.
        begin: see `Place`.
        sweep: the folder of the sweep whose job the run is; None outside of one.
        is_changed: see `Place`.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError, ValueError: one sentence on what is wrong.
    """
    place = Place(
        folder=folder,
        every=config.checkpoint.every,
        keep=config.checkpoint.keep,
        is_resumed=config.resume is not None,
        allow_changes=bool(config.checkpoint.allow_changes),
        is_changed=is_changed,
        sweep=sweep,
        begin=begin,
    )
    return Run.of(configured_study(config), plain(config.mechanism), place)


def checked_runs(
    configs: Sequence[DictConfig], folder: Path, sweep: Path | None = None, *, is_changed: bool = False
) -> list[CheckedRun]:
    """Returns the runs that configurations name, all that can be refused checked before anything is written.

    Args:
        configs: the resolved configuration of each run.
        folder: the run folder.
        sweep: the folder of the sweep whose job it is; None outside of one.
        is_changed: see `Place`.

    Raises:
        ConfigError, DataError, ModelError, CheckpointError, LedgerError, ValueError: one sentence on what is wrong.
    """
    runs = []
    for one in configs:
        with settings_named(one, one_of_many=len(configs) > 1):
            run = configured_run(one, folder, sweep=sweep, is_changed=is_changed)
            runs.append(checked(configured_mechanism(one), run))
    check_central_engine(runs)
    return runs
