"""Holds the statements of a run folder against its configuration, for `fedsim verify`."""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsim_userdp.privacy.assumptions import single_run
from fedsim_userdp.privacy.delta import default_delta
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.privacy.statement import PrivacyStatement
from simulations.arguments import RUN_FILE
from simulations.checks import Check, difference, is_same
from simulations.compare import compared_runs, composed
from simulations.errors import ConfigError
from simulations.run_files import CONFIG_FILE

_UNKNOWN = object()
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def configuration_checks(folder: Path, runs: Sequence[StatedRun]) -> Iterator[Check]:
    """Yields whether the configuration of a run folder is one, and whether every run is stated as it was configured."""
    about = f"{CONFIG_FILE} and {RUN_FILE}"
    try:
        settings = yaml.load((folder / CONFIG_FILE).read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - safe
        started = json.loads((folder / RUN_FILE).read_bytes())
        yield Check(about, difference(settings, started["config"]))
        configs = _configs(started["command"], started["config"], started["overrides"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        yield Check(about, f"they cannot be read: {error!r}")
        return
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        yield Check(about, f"{RUN_FILE} cannot be composed again: {error}")
        return
    expected = [(str(config.mechanism.name), int(config.seed)) for config in configs]
    found = [(run.statement.mechanism, run.seed) for run in runs]
    missing = [f"{name}, seed {seed}" for name, seed in expected if (name, seed) not in found]
    spare = [f"{name}, seed {seed}" for name, seed in found if (name, seed) not in expected]
    problem = "; ".join(
        f"{', '.join(names)} {what}" for names, what in ((missing, "not stated"), (spare, "not configured")) if names
    )
    yield Check("every run that was configured is stated", problem)
    for run in runs:
        config = dict(zip(expected, configs, strict=True)).get((run.statement.mechanism, run.seed))
        if config is not None:
            yield Check(f"{run.name}: stated as configured", _problem(run.statement, config))


def _configs(command: str, settings: Mapping[str, Any], overrides: Sequence[str]) -> list[DictConfig]:
    """The configuration of each run that a command was to make."""
    config = OmegaConf.create(dict(settings))
    if command != "compare":
        return [config]
    return [_compared(tuple(overrides), tuple(changes.items())) for changes in compared_runs(config)]


@functools.lru_cache(maxsize=64)
def _compared(overrides: tuple[str, ...], changes: tuple[tuple[str, str | int], ...]) -> DictConfig:
    """The configuration of one run of a comparison."""
    GlobalHydra.instance().clear()
    with initialize_config_module("conf", version_base="1.3"):
        return composed("compare", overrides, dict(changes))


def _problem(statement: PrivacyStatement, config: DictConfig) -> str:
    """How a statement differs from a run's configuration; empty where it does not."""
    pairs: dict[str, tuple[object, object]] = {
        "evaluation.users": (statement.evaluated_on, config.evaluation.users),
        "mechanism.records_per_user": (statement.records_per_user, config.mechanism.get("records_per_user")),
        "mechanism.clip_norm": (statement.clip_norm, config.mechanism.get("clip_norm")),
    }
    if statement.release is not None:
        pairs |= _of_release(statement, config)
    wrong = [f"{key}={told} and {stated} is stated" for key, (stated, told) in pairs.items() if _differ(stated, told)]
    if statement.level == "nobody" and math.isfinite(config.privacy.epsilon) and statement.clip_norm is not None:
        wrong.append(f"privacy.epsilon={config.privacy.epsilon} and no claim is stated")
    rounds = config.mechanism.get("rounds")
    if rounds is not None and statement.rounds > rounds:
        wrong.append(f"mechanism.rounds={rounds} and {statement.rounds} releases are stated")
    return "; ".join(wrong)


def _of_release(statement: PrivacyStatement, config: DictConfig) -> dict[str, tuple[object, object]]:
    """What is stated of a release and what was configured, by key."""
    run = single_run(statement.release)
    delta = config.privacy.delta
    searched = config.privacy.num_searched
    return {
        "privacy.epsilon": (statement.target_epsilon, config.privacy.epsilon),
        "privacy.delta": (statement.delta, default_delta(statement.num_users) if delta is None else delta),
        "privacy.num_searched": (statement.num_searched, _UNKNOWN if searched is None else searched),
        "noise.source": (statement.noise_source, config.noise.source),
        "tokens.window": (statement.window, _UNKNOWN if statement.window is None else config.tokens.window),
        "selection.sampling_prob": _both(run, config, "sampling_prob"),
        "selection.cohort_size": _both(run, config, "cohort_size"),
    }


def _both(run: object, config: DictConfig, name: str) -> tuple[object, object]:
    """An attribute of a release and the selection's setting; the same unknown where one of them has none."""
    stated, told = getattr(run, name, _UNKNOWN), config.selection.get(name, _UNKNOWN)
    return (_UNKNOWN, _UNKNOWN) if _UNKNOWN in (stated, told) else (stated, told)


def _differ(stated: object, told: object) -> bool:
    """Whether something stated is not what was configured."""
    return told is not _UNKNOWN and stated is not _UNKNOWN and not is_same(stated, told)
