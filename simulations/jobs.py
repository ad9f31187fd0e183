"""A job of `fedsim run` or `fedsim compare`: alone, or one of a sweep (`--multirun`)."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from fedsim_userdp.simulations.arguments import RUN_FILE, beginning, check_types, override_key, settings_changed
from fedsim_userdp.simulations.errors import ConfigError
from fedsim_userdp.simulations.occupied import folder_of_job, mark_of_a_run
from fedsim_userdp.simulations.process import without_garbage_collection
from fedsim_userdp.simulations.refusals import REFUSALS, sentence
from fedsim_userdp.simulations.run_files import plain_content

DIVERGED: list[str] = []  # runs of this process whose training diverged
FAILED: list[str] = []  # jobs of this process's sweep that were refused or stopped, each said when it was
_RESULTS, _STATED = "results.json", "privacy.json"


def run_job(
    config: DictConfig,
    command: str,
    configs_fn: Callable[[], Sequence[DictConfig]],
    planned: Sequence[str] = (),
) -> None:
    """Runs what a configuration names and writes the run folder.

    In a sweep a job whose folder holds the same run goes on with it, or is left alone where that has ended; a job that
    is refused is named, and the others go on.

    Args:
        config: the job's configuration.
        command: `run` or `compare`.
        configs_fn: the configuration of each run.
        planned: names of the runs, where there are several.
    """
    settings = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN:
        _run(config, command, configs_fn, planned)
        return
    name = f"job {settings.job.num} of {Path(str(settings.sweep.dir))}, in {settings.sweep.subdir}"
    try:
        folder = Path(settings.runtime.output_dir)
        if config.resume is None and (folder / RUN_FILE).is_file():
            config.resume = str(folder)
        if config.resume is not None and _has_ended(folder):
            beginning(config, command)
            print(f"{name}: it has run before, and is left as it is: {folder}", flush=True)
            return
        _run(config, command, configs_fn, planned)
    except REFUSALS as error:
        FAILED.append(name)
        print(f"fedsim: {name}: {sentence(error)}", file=sys.stderr, flush=True)
        raise


def _run(
    config: DictConfig, command: str, configs_fn: Callable[[], Sequence[DictConfig]], planned: Sequence[str]
) -> None:
    """See `run_job`."""
    with folder_of_job(is_resumed=config.resume is not None) as path:
        check_types(config, command)
        _check_hydra()
        begin = beginning(config, command)
        with without_garbage_collection():
            from fedsim_userdp.simulations.folder import RunFolder  # here, so that --help need not load torch
            from fedsim_userdp.simulations.session import Session
            from fedsim_userdp.simulations.sweep import sweep_of_this_job

        configs = list(configs_fn())
        for one in configs:
            one.resume = config.resume
        session = Session(configs, path, begin, sweep_of_this_job())
        folder = RunFolder.of_this_job(planned)
        with folder.progress() as progress:
            for outcome in session.outcomes(progress):
                folder.add(outcome)
        folder.finish()
        DIVERGED.extend(folder.diverged)


def _check_hydra() -> None:
    """Raises ConfigError where Hydra's own settings name code: no statement would."""
    settings = HydraConfig.get()
    if settings.get("callbacks"):
        raise ConfigError("hydra.callbacks names code that no statement would name: leave it out")
    for name, handler in (settings.job_logging.get("handlers") or {}).items():
        made_by = [str(handler[key]) for key in ("class", "()", "_target_") if key in handler]
        if any(not one.startswith("logging.") for one in made_by):
            raise ConfigError(
                f"hydra.job_logging.handlers.{name} names code that no statement would name: leave it out"
            )


def _has_ended(folder: Path) -> bool:
    """Whether all runs of a folder have ended."""
    try:
        stated = json.loads(plain_content(folder / _STATED))
        return (folder / _RESULTS).is_file() and not stated["unfinished"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def check_jobs(command: str, arguments: Sequence[str]) -> None:
    """Raises ConfigError, before any job starts, where a job of a sweep would find another run in its folder.

    Args:
        command: `run` or `compare`.
        arguments: the command line for Hydra.
    """
    given = [argument for argument in arguments if not argument.startswith("-")]
    parser = OverridesParser.create()
    for one in given:
        if override_key(one) in ("output_dir", "hydra.sweep.dir") and parser.parse_override(one).is_sweep_override():
            raise ConfigError(
                f"{one}: the jobs of a sweep lie in one folder, where what they promise together is stated"
            )
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        single = [one for one in given if not parser.parse_override(one).is_sweep_override()]
        whole = compose(command, overrides=single, return_hydra_config=True)
        HydraConfig.instance().set_config(whole)
        sweep = Path(str(whole.hydra.sweep.dir))
        if not sweep.is_dir():
            return
        params: dict[str, Any] = dict(whole.hydra.sweeper.get("params") or {})
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *given])
        problems = []
        for number, job in enumerate(BasicSweeper.split_arguments(overrides, None)[0]):
            problem = _problem(compose(command, overrides=job, return_hydra_config=True), number, sweep)
            problems += [problem] if problem else []
    if problems:
        raise ConfigError(f"{len(problems)} jobs cannot be run, and none was started: {'; '.join(problems)}")


def _problem(config: DictConfig, number: int, sweep: Path) -> str:
    """What a job's folder holds that is not this job; empty where it is free or holds the same."""
    with open_dict(config):
        config.hydra.job.num, config.hydra.job.id = number, f"{config.hydra.job.name}_{number}"
        HydraConfig.instance().set_config(config)
        folder = sweep / str(config.hydra.sweep.subdir)
        del config["hydra"]
    if not (folder / RUN_FILE).is_file():
        mark = mark_of_a_run(folder)
        return f"{folder} holds {mark} and no {RUN_FILE}" if mark else ""
    changed = settings_changed(OmegaConf.to_container(config, resolve=True), folder)
    return f"{folder} holds another run ({'; '.join(changed.values())})" if changed else ""
