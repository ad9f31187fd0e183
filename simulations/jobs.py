"""A job of `fedsim run` or `fedsim compare`: alone, or one of a sweep (`--multirun`)."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.own_folder import MARKS, busy_around, check_plain, mark_of_a_run, run_above
from fedsim_userdp.mechanisms.run_files import plain_content
from fedsim_userdp.mechanisms.settings_tree import leaves
from fedsim_userdp.mechanisms.started import OF_FIGURES, RUN_FILE, read_started, settings_changed
from fedsim_userdp.printable import printable
from fedsim_userdp.simulations import hydras_own
from fedsim_userdp.simulations.arguments import beginning, check_subdir, check_types, override_key
from fedsim_userdp.simulations.free_settings import FreeSettings
from fedsim_userdp.simulations.job_folder import folder_of_job
from fedsim_userdp.simulations.own_files import FOLDERS
from fedsim_userdp.simulations.process import without_garbage_collection
from fedsim_userdp.simulations.sentences import MENDABLE, sentence

DIVERGED: list[str] = []  # runs of this process whose training diverged
FAILED: list[str] = []  # jobs of this process's sweep that were refused or stopped, each said when it was
_SWEEP_FILE = "multirun.yaml"  # Hydra's mark of a sweep's folder
_RESULTS, _STATED = "results.json", "privacy.json"


def run_job(
    config: DictConfig,
    command: str,
    configs_fn: Callable[[], Sequence[DictConfig]],
    planned_fn: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Runs what a configuration names and writes the run folder.

    In a sweep a job whose folder holds the same run goes on with it, or is left alone where that has ended; a job that
    is refused is named, and the others go on.

    Args:
        config: the job's configuration.
        command: `run` or `compare`.
        configs_fn: the configuration of each run.
        planned_fn: names of the runs, where there are several.
    """
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        _run(config, command, configs_fn, planned_fn)
        return
    name = f"job {settings.job.num} of {Path(str(settings.sweep.dir))}, in {settings.sweep.subdir}"
    try:
        folder = Path(settings.runtime.output_dir)
        if config.resume is None and (folder / RUN_FILE).is_file():
            config.resume = str(folder)
        if config.resume is not None and has_ended(folder):
            beginning(config, command)
            from fedsim_userdp.mechanisms.sweep import update_sweep

            if (sweep := sweep_of_this_job()) is not None:
                update_sweep(sweep)  # it may have been killed between its statement and the sweep's
            DIVERGED.extend(_diverged_in(folder))
            print(printable(f"{name}: it has run before, and is left as it is: {folder}"), flush=True)
            return
        _run(config, command, configs_fn, planned_fn)
    except MENDABLE as error:
        FAILED.append(name)
        print(printable(f"fedsim: {name}: {sentence(error)}"), file=sys.stderr, flush=True)
        raise


def run_cell(config: DictConfig) -> None:
    """Runs a cell of a study in the running job's folder; no table is printed of it alone."""
    _run(config, "run", lambda: [config], tuple, is_shown=False)


def check_cell(config: DictConfig, folder: Path) -> None:
    """Checks a cell of a study before anything is written.

    Args:
        config: the resolved configuration of its run.
        folder: where it would run.

    Raises:
        ConfigError, DataError, ModelError, ValueError: one sentence on what is wrong.
    """
    from fedsim_userdp.simulations.configured import checked_runs

    check_types(config, "run")
    checked_runs([config], folder)


def noise_of_cell(config: DictConfig, folder: Path) -> float:
    """Returns the noise multiplier of a cell of a study; 0 without noise. See `check_cell`."""
    from fedsim_userdp.simulations.configured import checked_runs

    (one,) = checked_runs([config], folder)
    guarantee_fn = getattr(one.mechanism, "guarantee", None)
    return 0.0 if guarantee_fn is None else float(guarantee_fn(one.run.study).noise_multiplier)


def _diverged_in(folder: Path) -> Iterator[str]:
    """The runs of a folder whose training diverged, by its results; none where these cannot be read."""
    try:
        rows = json.loads(plain_content(folder / _RESULTS))
    except (OSError, ValueError, RecursionError):
        return
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and row.get("perplexity", 0.0) is None:
            yield f"{row.get('mechanism')}, seed {row.get('seed')}"


def _run(
    config: DictConfig,
    command: str,
    configs_fn: Callable[[], Sequence[DictConfig]],
    planned_fn: Callable[[], Sequence[str]],
    *,
    is_shown: bool = True,
) -> None:
    """See `run_job`; where it is not shown, its files tell what came out."""
    with folder_of_job(is_resumed=config.resume is not None, holds_a_run=True) as path:
        check_types(config, command)
        hydras_own.check_composed(HydraConfig.get())
        begin = beginning(config, command)
        with without_garbage_collection():
            from rich.console import Console

            from fedsim_userdp.mechanisms.cohort_sizes import expected_cohorts, unequal_cohorts  # here:
            from fedsim_userdp.mechanisms.compare import outcomes  # --help need not load torch
            from fedsim_userdp.mechanisms.folder import RunFolder
            from fedsim_userdp.mechanisms.sweep import jobs_of
            from fedsim_userdp.mechanisms.written import labels
            from fedsim_userdp.report.table import result_console
            from fedsim_userdp.simulations.configured import checked_runs, plain

        sweep = sweep_of_this_job()
        if sweep is not None:
            jobs_of(sweep)  # a statement that cannot be read is said before anything is released
        configs = list(configs_fn())
        for one in configs:
            one.resume = config.resume
        runs = checked_runs(configs, path, sweep, is_changed=_is_changed(config, path))
        console = result_console() if is_shown else Console(file=io.StringIO())
        if len(runs) > 1 and (said := unequal_cohorts(expected_cohorts(runs))) is not None:
            console.print(printable(said), highlight=False, markup=False, soft_wrap=True)
        folder = RunFolder(path, console, labels(HydraConfig.get().runtime.choices, plain(config)), sweep, planned_fn())
        with folder.progress() as progress:
            for outcome in outcomes(runs, path, begin, progress):
                folder.add(outcome)
        if not is_shown:
            folder.draw()
            return
        folder.finish()
        DIVERGED.extend(f"{run}{_with_own_optimizer(config)}" for run in folder.diverged)


def _is_changed(config: DictConfig, folder: Path) -> bool:
    """Whether a run is gone on with under other settings than it was started with, metrics left aside."""
    settings = OmegaConf.to_container(config, resolve=True)
    return config.resume is not None and bool(settings_changed(settings, folder, OF_FIGURES))


def _with_own_optimizer(config: DictConfig) -> str:
    """What names an optimizer of the user's own beside a run that diverged; empty where it is torch's."""
    target = str(config.optimizer.get("_target_"))
    return "" if target.startswith("torch.optim.") else f", with optimizer={target}"


def sweep_of_this_job() -> Path | None:
    """Returns the folder of the sweep that the running Hydra job belongs to; None outside of one.

    A job that is resumed is no part of a sweep to Hydra: then it is the folder above that Hydra marked as a sweep's.

    Raises:
        ConfigError: the job does not lie below the sweep's folder.
    """
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        check_subdir(str(settings.sweep.subdir))
        return Path(os.path.abspath(Path(settings.runtime.cwd, settings.sweep.dir)))  # as Hydra itself, links kept
    from fedsim_userdp.mechanisms.sweep import sweep_above  # here, so that --help need not load what it needs

    return sweep_above(folder)


def check_used(runs: Iterable[tuple[DictConfig, Mapping[str, Any]]]) -> None:
    """Raises ConfigError where the command line sets something of a mechanism that no run takes.

    It is asked of a new run only, and not of a sweep, where another job may take it.

    Args:
        runs: each run's configuration, and what is set for that run alone, by key.
    """
    settings = HydraConfig.get()
    used = set[str]()
    for config, own in runs:
        if config.resume is not None or settings.mode != RunMode.RUN:
            return
        mechanism = OmegaConf.to_container(config.mechanism, resolve=False)
        used.update(key for name, _ in leaves(mechanism) if (key := f"mechanism.{name}") not in own)
        used.update(key for name in config.selection if (key := f"selection.{name}") not in own)
        used.update(re.findall(r"\$\{(tuned\.[\w.]+)\}", str(mechanism)))
    for key in [override_key(one) for one in settings.overrides.task if not one.startswith("~")]:
        is_of_one = key.startswith(("mechanism.", "selection.")) or re.match(r"tuned\.(?!searched)\w+\.", key)
        if is_of_one and not any(f"{one}.".startswith(f"{key}.") for one in used):
            whose = "selection that is compared" if key.startswith("selection.") else "mechanism that is trained"
            raise ConfigError(f"{key} has no effect here: no {whose} takes it from there")


def has_ended(folder: Path) -> bool:
    """Whether all runs of a folder have ended."""
    try:
        stated = json.loads(plain_content(folder / _STATED))
        return (folder / _RESULTS).is_file() and not stated["unfinished"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_jobs(command: str, arguments: Sequence[str]) -> Path:
    """Returns the folder of a sweep, after checking, before any job starts, that each finds its own run in its folder.

    Settings that may differ between a run and its continuation are checked too, as those of a run alone.

    Args:
        command: `run` or `compare`.
        arguments: the command line for Hydra.

    Raises:
        ConfigError, DataError, ValueError: no job can start.
    """
    if any(argument.partition("=")[0] in FOLDERS for argument in arguments):
        raise ConfigError("--config-dir is for one run: what its files set of a sweep would not be looked at before it")
    given = [argument for argument in arguments if not argument.startswith("-")]
    parser = OverridesParser.create()
    for one in given:
        if override_key(one) in ("output_dir", "hydra.sweep.dir") and parser.parse_override(one).is_sweep_override():
            raise ConfigError(
                f"{one}: the jobs of a sweep lie in one folder, where what they promise together is stated"
            )
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        single = [one for one in given if not parser.parse_override(one).is_sweep_override()]
        named = f"hydra.job.name={command}"  # which Hydra finds out for itself later, and folders are named by
        whole = compose(command, overrides=[named, *single], return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        _check_one_folder(whole)
        sweep = Path(str(whole.hydra.sweep.dir))
        check_sweep_folder(sweep)
        is_there = sweep.is_dir()
        params: dict[str, Any] = dict(whole.hydra.sweeper.get("params") or {})
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *given])
        problems: list[str] = []
        folders: dict[Path, int] = {}
        settings: dict[tuple[str, ...], int] = {}
        free = FreeSettings(command, given, sweep)
        for number, job in enumerate(BasicSweeper.split_arguments(overrides, None)[0]):
            swept = ", ".join(one for one in job if one not in single)
            try:
                config = compose(command, overrides=[named, *job], return_hydra_config=True)
                folder = _folder_of(config, number, sweep)
                free.check(config)
                problem = _problem(config, folder) if is_there else ""
                if (other := settings.setdefault(tuple(job), number)) != number:
                    problem = f"jobs {other} and {number} ({swept}) are the same"
                if (other := folders.setdefault(folder, number)) != number:
                    problem = f"jobs {other} and {number} ({swept}) have one folder, {folder}"
            except (HydraException, OmegaConfBaseException) as error:
                problem = f"job {number} ({swept}): {sentence(error)}"
            problems += [problem] if problem else []
        problems += [
            f"{folder} holds a job of this sweep that is not among these: go on with all of them by resume={sweep}"
            for folder in sorted(_started_in(sweep) - folders.keys())
        ]
    if problems:
        raise ConfigError(f"{in_words(len(problems))} cannot be run, and none was started: {'; '.join(problems)}")
    return sweep


def in_words(number: int) -> str:
    """Returns how many jobs, in words."""
    return "1 job" if number == 1 else f"{number} jobs"


def _check_one_folder(config: DictConfig) -> None:
    """Raises ConfigError where the folder of a sweep depends on the job."""
    written = OmegaConf.to_container(config, resolve=False)
    assert isinstance(written, dict)
    for key, text in (("output_dir", written["output_dir"]), ("hydra.sweep.dir", written["hydra"]["sweep"]["dir"])):
        left = re.sub(r"\$\{(now:[^}]*|oc\.env:[^}]*|output_dir|hydra:job\.name)\}", "", str(text))
        if "${" in left:
            raise ConfigError(
                f"{key}={text}: the jobs of a sweep lie in one folder, where what they promise together is stated, and "
                "that cannot follow from their settings"
            )


def check_sweep_folder(sweep: Path) -> None:
    """Raises ConfigError where a sweep's folder is a run's, or lies in one of a run or of another sweep."""
    of_sweeps = {_STATED, "PRIVACY.md", "multirun.yaml"} if _states_a_sweep(sweep) else {"multirun.yaml"}
    if mark := next((name for name in MARKS if name not in of_sweeps and os.path.lexists(sweep / name)), ""):
        raise ConfigError(f"{sweep} holds {mark}, which is of a run: a sweep needs a folder of its own")
    check_plain(sweep)
    if (above := run_above(sweep, sweeps=True)) is not None:
        raise ConfigError(
            f"{sweep} lies in {above}, which is of a run or sweep that would not count it: choose another folder"
        )
    if not os.path.isfile(sweep / _SWEEP_FILE) and (busy := busy_around(sweep)) is not None:
        raise ConfigError(
            f"{sweep} and {busy}, where a run has just begun, lie one in the other: choose another folder"
        )


def _states_a_sweep(folder: Path) -> bool:
    """Whether the statement of a folder is a sweep's."""
    try:
        return "jobs" in json.loads(plain_content(folder / _STATED))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _started_in(sweep: Path) -> set[Path]:
    """The folders below a sweep's in which a job of it has started; other runs may have been put there since."""
    found = {Path(os.path.normpath(file.parent)) for file in sweep.rglob(RUN_FILE)} if sweep.is_dir() else set()
    return {folder for folder in found if not _has_folder_of_its_own(folder)}


def _has_folder_of_its_own(folder: Path) -> bool:
    """Whether a run was started in a folder that was named for it alone, not in one of its sweep's."""
    try:
        named = read_started(folder)["config"]["output_dir"]
    except (ConfigError, KeyError, TypeError):
        return False
    return Path(str(named)).name == folder.name


def _folder_of(config: DictConfig, number: int, sweep: Path) -> Path:
    """The folder of a job of a sweep; takes Hydra's own settings out of its configuration."""
    with open_dict(config):
        config.hydra.job.num, config.hydra.job.id = number, f"{config.hydra.job.name}_{number}"
        HydraConfig.instance().set_config(config)
        folder = sweep / str(config.hydra.sweep.subdir)
        del config["hydra"]
    return Path(os.path.normpath(folder))


def _problem(config: DictConfig, folder: Path) -> str:
    """What a job's folder holds that is not this job; empty where it is free or holds the same."""
    if not (folder / RUN_FILE).is_file():
        mark = mark_of_a_run(folder)
        return f"{folder} holds {mark} and no {RUN_FILE}" if mark else ""
    changed = settings_changed(OmegaConf.to_container(config, resolve=True), folder, OF_FIGURES)
    return f"{folder} holds another run ({'; '.join(changed.values())})" if changed else ""
