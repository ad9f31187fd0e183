"""Running mechanisms on a study: all of them are checked before the first byte of any is written."""

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from fedsim_userdp import __version__
from fedsim_userdp.data.statistics import corpus_statistics
from fedsim_userdp.errors import CheckpointError, ConfigError, PluginError
from fedsim_userdp.mechanisms.base import Mechanism
from fedsim_userdp.mechanisms.folder import RunFolder
from fedsim_userdp.mechanisms.guarantee import UNNOISED, UNTRAINED, Guarantee
from fedsim_userdp.mechanisms.history import Outcome
from fedsim_userdp.mechanisms.keywords import overrides_of
from fedsim_userdp.mechanisms.own_folder import own_folder
from fedsim_userdp.mechanisms.persistence import check_saved
from fedsim_userdp.mechanisms.plain import ZeroShot
from fedsim_userdp.mechanisms.plugin_checks import check_plugins, try_out_clipping
from fedsim_userdp.mechanisms.record_level import RecordLevelDP
from fedsim_userdp.mechanisms.result import Result
from fedsim_userdp.mechanisms.run import Place, Run
from fedsim_userdp.mechanisms.started import (
    FORMAT,
    check_continues,
    check_same_runs,
    is_of_figures,
    read_started,
    write_started,
)
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.mechanisms.sweep import jobs_of, sweep_above
from fedsim_userdp.mechanisms.unchanged import check_unchanged
from fedsim_userdp.mechanisms.user_wise import UserWise
from fedsim_userdp.mechanisms.written import Written, as_value, default_mechanism, labels, mechanisms_started, written
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.plugins import calling, class_name, is_own, reason_of, refuse_replaced_method
from fedsim_userdp.report.data import write_data_json
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.settings import Settings
from fedsim_userdp.surroundings import quiet_libraries

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedRun:
    """A mechanism and its run."""

    mechanism: Mechanism
    run: Run


def checked(mechanism: Mechanism, run: Run) -> CheckedRun:
    """Returns a mechanism's run, after checking all that can be refused before anything is written or trained.

    Raises:
        ConfigError, CheckpointError, LedgerError, PluginError, ValueError: one sentence on what is wrong; nothing was
            written to the run's folder.
    """
    refuse_replaced_method("mechanism", mechanism)
    if mechanism.name == ZeroShot.name and type(mechanism) is not ZeroShot:
        raise ConfigError(f"mechanism.name={ZeroShot.name} is that of the untrained model: choose another name")
    if hasattr(mechanism, "guarantee"):  # one's own need not have it
        with calling("mechanism", mechanism, "guarantee()"):
            guarantee = mechanism.guarantee(run.study)
        if not isinstance(guarantee, Guarantee):
            raise PluginError(
                f"mechanism={class_name(mechanism)}: guarantee() must return a Guarantee, got "
                f"{type(guarantee).__name__}"
            )
        check_saved(run, guarantee, getattr(mechanism, "rounds", None))
        if (records_per_user := getattr(mechanism, "records_per_user", None)) is not None:
            check_plugins(run, guarantee, records_per_user)
        if isinstance(mechanism, UserWise) and (clipping := mechanism.clipping()) is not None:
            try_out_clipping(clipping, trainable_state(run.study.fresh_model()), mechanism.clip_norm)
    return CheckedRun(mechanism, run)


def check_central_engine(runs: Sequence[CheckedRun]) -> None:
    """Raises where Opacus refuses what one of the runs trains, before another run trains.

    One such run is tried, since those of a folder share model, adapter and engine; the first run tries its own.

    Raises:
        ModelError: with Opacus' reason.
    """
    for number, one in enumerate(runs):
        if isinstance(one.mechanism, RecordLevelDP) and one.run.study.central_engine == "opacus":
            if number:
                one.mechanism.try_out(one.run)
            return


def outcomes(
    runs: Sequence[CheckedRun], folder: Path, begin: Callable[[], None], progress: RunProgress
) -> Iterator[Outcome]:
    """Yields the outcome of each run.

    What the corpus looks like and what was left out of it is in the folder's `not_private/data.json` from the start.

    Args:
        runs: the runs, checked.
        folder: where they write.
        begin: writes down what the folder was started with; called before anything else is written.
        progress: where progress is shown.
    """
    for number, one in enumerate(runs):
        mechanism, run = one.mechanism, one.run
        k = getattr(mechanism, "records_per_user", None)
        statistics = corpus_statistics(run.study.store, () if k is None else (k,), run.study.seed)
        begin_once = _Once(
            *([] if number else [begin]),
            partial(write_data_json, folder, statistics, corpus=run.study.corpus_name),
        )
        with calling("mechanism", mechanism, "run()"):
            outcome = mechanism.run(replace(run, place=replace(run.place, begin=begin_once)), progress)
        if not isinstance(outcome, Outcome):
            raise PluginError(
                f"mechanism={class_name(mechanism)}: run() must return an Outcome, got {type(outcome).__name__}"
            )
        begin_once()
        yield _as_named(outcome, one)


def _as_named(outcome: Outcome, one: CheckedRun) -> Outcome:
    """An outcome whose statement names all foreign classes of its run; untrained is the untrained model alone.

    Raises:
        PluginError: it is of another name or seed than its run.
    """
    statement, row, study = outcome.statement, outcome.row, one.run.study
    if (row.mechanism, statement.mechanism, row.seed) != (one.run.name, one.run.name, study.seed):
        raise PluginError(
            f"mechanism={class_name(one.mechanism)}: run() returned an outcome of {statement.mechanism}, "
            f"seed {row.seed}, for {one.run.name}, seed {study.seed}"
        )
    foreign = tuple(dict.fromkeys((*statement.foreign, *study.circumstances.foreign)))
    if row.guarantee == UNTRAINED and type(one.mechanism) is not ZeroShot:
        row = replace(row, guarantee=UNNOISED)
    return replace(outcome, row=row, statement=replace(statement, foreign=foreign))


def compare(
    study: Study, mechanisms: Sequence[Mechanism], folder: str | Path | None = None, *, resume: bool = False
) -> Result:
    """Returns what each mechanism makes of a study; the folder is as `fedsim compare` writes it.

    It holds the ledger, which is written before every release, statement, results, rounds, plot, adapters, and what
    the run was started with. A run that was stopped goes on with `resume=True`, where its text is a file's also with
    `fedsim compare resume=FOLDER`.

    Args:
        study: what is compared.
        mechanisms: at least one, each of another name.
        folder: the run folder; None for a new one in the folder for temporary files.
        resume: whether to go on with the run that the folder holds.

    Raises:
        ConfigError, CheckpointError, LedgerError, ValueError: one sentence on what is wrong; nothing was written.
    """
    return _run_all(study, mechanisms, folder, "compare", resume=resume)


def run(study: Study, mechanism: Mechanism, folder: str | Path | None = None, *, resume: bool = False) -> Result:
    """Returns what one mechanism makes of a study; the folder is as `fedsim run` writes it. See `compare`."""
    return _run_all(study, [mechanism], folder, "run", resume=resume)


def _run_all(
    study: Study, mechanisms: Sequence[Mechanism], folder: str | Path | None, command: str, *, resume: bool
) -> Result:
    """See `compare`."""
    if folder is None and resume:
        raise ConfigError("resume=True needs the folder of the run to go on with: folder=PATH")
    _check_given(study, mechanisms)
    if not isinstance(resume, bool):
        raise ConfigError(f"resume={resume!r} must be True or False; the folder is folder=PATH")
    path = Path(tempfile.mkdtemp(prefix="fedsim-")) if folder is None else _made(folder)
    if folder is None:
        _log.warning("the run folder is %s: name one by folder=PATH to keep it", path)
    going_on = "resume=True" if folder is not None else f"folder={str(path)!r}, resume=True"
    allowing = "and checkpoint={'allow_changes': True} in the study"
    with own_folder(path, is_resumed=resume, going_on=going_on, allowing=allowing), quiet_libraries():
        objects = [written("mechanism", one) for one in mechanisms]
        content: Mapping[str, Any] = _content(study, command, objects, path)
        sweep = sweep_above(path)
        if sweep is not None:
            jobs_of(sweep)  # a statement that cannot be read is said before anything is released
        place = replace(_place(study, path, is_resumed=resume), sweep=sweep)
        if resume:
            content, is_changed = _started_with(content, objects, study, place)
            place = replace(place, is_changed=is_changed)
        try:
            runs = [
                checked(one, Run.of(_own_copy(study), {"name": one.name, **each.tree}, place))
                for one, each in zip(mechanisms, objects, strict=True)
            ]
        except CheckpointError as error:  # which knows digests only
            raise CheckpointError(f"{error}{_mechanisms_changed(path, objects)}") from error
        check_central_engine(runs)
        planned = [f"{one.name}, seed {study.seed}" for one in mechanisms] if command == "compare" else []
        results, found = (
            RunFolder(path, Console(emoji=False), labels(content["choices"], study.tree), sweep, planned),
            [],
        )
        with results.progress() as progress:
            for outcome in outcomes(runs, path, partial(write_started, path, content), progress):
                results.add(outcome)
                found.append(outcome)
        results.draw()
    return Result(path, tuple(found))


def _place(study: Study, folder: Path, *, is_resumed: bool) -> Place:
    """Where the runs write."""
    chosen = Settings.of(study.tree).checkpoint
    return Place(folder, chosen.every, chosen.keep, is_resumed=is_resumed, allow_changes=chosen.allow_changes)


def _started_with(
    content: Mapping[str, Any], mechanisms: Sequence[Written], study: Study, place: Place
) -> tuple[Mapping[str, Any], bool]:
    """What a folder was started with, or what is given now where that may differ; whether more than metrics do.

    The command writes mechanisms down in several ways: what of them counts is in the checkpoints. Where these may be of
    other settings, what is written down is compared as it stands. One that has no checkpoint yet may begin with others.
    """
    before = read_started(place.folder)
    names = [str(one.tree["name"]) for one in mechanisms]
    check_same_runs(names, study.seed, before, place.folder)
    of_mechanisms = frozenset() if place.allow_changes else frozenset({"compare", "mechanism", "tuned"})
    changed = check_continues(content["config"], place.folder, place.allow_changes, of_mechanisms)
    is_same = mechanisms_started(before) == [dict(one.tree) for one in mechanisms]
    is_changed = not all(is_of_figures(key) for key in changed)
    return before if is_same and not changed else content, is_changed


def _mechanisms_changed(folder: Path, mechanisms: Sequence[Written]) -> str:
    """Which settings of mechanisms differ from those that a folder was started with, to be added to a refusal."""
    said = [
        f"{one.tree['name']}: {key} was {before.get(key)} and is {value}"
        for before, one in zip(mechanisms_started(read_started(folder)), mechanisms, strict=False)
        for key, value in one.tree.items()
        if before.get(key) != value
    ]
    return f" ({'; '.join(said)})" if said else ""


def _content(study: Study, command: str, mechanisms: Sequence[Written], folder: Path) -> dict[str, Any]:
    """What `run.json` holds of a study made in Python: the settings and command line that lead to it."""
    overrides = [*overrides_of(Settings.of(study.tree), study.written), f"output_dir={as_value(str(folder))}"]
    for name, metric in study.tree["metrics"].items():
        overrides += [f"+metrics.{name}.{key}={as_value(value)}" for key, value in metric.items()]
    choices = {one.group: one.choice for one in study.written}
    base = {"output_dir": str(folder), "resume": None, **study.tree}
    if command == "run":
        (only,) = mechanisms
        overrides += [f"mechanism={only.choice}", *only.overrides]
        config = {**base, "mechanism": dict(only.tree)}
        choices["mechanism"] = only.choice
    else:
        entries = [_entry(one) for one in mechanisms]
        overrides.append(f"compare.mechanisms={as_value(entries)}")
        config = {
            **base,
            "mechanism": default_mechanism(),
            "compare": {"mechanisms": entries, "selections": None, "seeds": None},
        }
        choices["mechanism"] = "user_wise"
    choices["experiment"] = "quickstart"
    return {
        "format": FORMAT,
        "command": command,
        "version": __version__,
        "overrides": overrides,
        "choices": choices,
        "config": config,
    }


def _entry(one: Written) -> str | dict[str, Any]:
    """A mechanism as `compare.mechanisms` names it: by its file alone, or with the settings that differ from that."""
    changed = {key: value for key, value in one.tree.items() if one.differs(key)}
    return {"mechanism": one.choice, **changed} if changed else one.choice


def _made(folder: str | Path) -> Path:
    """The folder of a run, made if need be; links in its path are kept, since a sweep counts its jobs by them."""
    if not isinstance(folder, str | os.PathLike) or not str(folder).strip():
        raise ConfigError(f"folder={folder!r} names no folder: name one, or leave it out for a temporary one")
    try:
        path = Path(os.path.abspath(Path(folder).expanduser()))
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"folder={str(folder)!r} cannot be made ({reason_of(error)}): name another one") from error
    return path


def _check_given(study: object, mechanisms: object) -> None:
    """Raises ConfigError unless there is a study, as it was made, and mechanisms of different names."""
    check_unchanged(study)
    if not isinstance(mechanisms, list | tuple):
        raise ConfigError(f"mechanisms={type(mechanisms).__name__} must be a list, such as [UserWise()]")
    for one in mechanisms:
        if isinstance(one, type) or not isinstance(getattr(one, "name", None), str) or not hasattr(one, "run"):
            said = f"the class {one.__name__}" if isinstance(one, type) else repr(one)
            raise ConfigError(f"mechanisms holds {said}, which is no mechanism: give objects, such as UserWise()")
    names = [one.name for one in mechanisms]
    if not names:
        raise ConfigError("mechanisms is empty: give at least one")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"two mechanisms are called {twice[0]}: give one of them another name=")


def _own_copy(study: Study) -> Study:
    """The study for one run: what a selector remembers of one must not tell in another.

    Raises:
        ConfigError: its selector cannot be copied.
    """
    if is_own(study.selector):
        return study
    try:
        return replace(study, selector=copy.deepcopy(study.selector))
    except Exception as error:  # anybody's class can refuse to be copied
        raise ConfigError(
            f"selection={class_name(study.selector)} cannot be copied ({reason_of(error)}), and each run needs one "
            "of its own: give it what copy.deepcopy can copy"
        ) from error


class _Once:
    """Calls several functions, one after the other, when it is called first."""

    def __init__(self, *functions: Callable[[], None]) -> None:
        self._left = list(functions)

    def __call__(self) -> None:
        """Calls what is left to be called."""
        while self._left:
            self._left.pop(0)()
