"""What a run folder's files say was to be run, and whether that was stated, for `fedsim verify`."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run_files import CONFIG_FILE
from fedsim_userdp.mechanisms.started import RUN_FILE
from fedsim_userdp.plain_files import read_file
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.simulations.arguments import override_problem
from fedsim_userdp.simulations.checks import Check, difference
from fedsim_userdp.simulations.compare import compared_runs, composed
from fedsim_userdp.simulations.configured_claims import differences
from fedsim_userdp.simulations.hydras_own import is_more_than_a_setting

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ABOUT = f"{CONFIG_FILE} and {RUN_FILE}"


@dataclass(frozen=True)
class Configured:
    """What was to be run.

    Attributes:
        configs: The configuration of each run, by mechanism and seed.
        choices: Names of the files of settings that were chosen, by group.
        check: Whether the files that say so agree.
    """

    configs: Mapping[tuple[str, int], DictConfig] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)
    check: Check = field(default=Check(_ABOUT))

    def rounds(self, run: StatedRun) -> int | None:
        """Returns how many rounds a run was to have; None where that is not known."""
        config = self.configs.get((run.statement.mechanism, run.seed))
        return None if config is None else config.mechanism.get("rounds")


def configured(folder: Path) -> Configured:
    """Returns what a run folder's files say was to be run; nothing, with the reason, where they cannot be read."""
    try:
        settings = yaml.load(read_file(folder / CONFIG_FILE).decode(), Loader=_LOADER)  # noqa: S506 - safe
        started = json.loads(read_file(folder / RUN_FILE))
        overrides, choices = started["overrides"], started["choices"]
        _check_settings(overrides)
        problem = difference(settings, started["config"]) or override_problem(overrides, started["config"], choices)
        configs = _configs(started["command"], started["config"], overrides)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        return Configured(check=Check(_ABOUT, f"they cannot be read: {error!r}"))
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        return Configured(check=Check(_ABOUT, f"{RUN_FILE} cannot be composed again: {error}"))
    by_name = {(str(config.mechanism.name), int(config.seed)): config for config in configs}
    return Configured(by_name, choices, Check(_ABOUT, problem))


def configuration_checks(runs: Sequence[StatedRun], found: Configured) -> Iterator[Check]:
    """Yields whether the configuration of a run folder is one, and whether every run is stated as it was configured."""
    yield found.check
    if not found.configs:
        return
    expected, stated = list(found.configs), [(run.statement.mechanism, run.seed) for run in runs]
    missing = [f"{name}, seed {seed}" for name, seed in expected if (name, seed) not in stated]
    spare = [f"{name}, seed {seed}" for name, seed in stated if (name, seed) not in expected]
    problem = "; ".join(
        f"{', '.join(names)} {what}" for names, what in ((missing, "not stated"), (spare, "not configured")) if names
    )
    yield Check("every run that was configured is stated", problem)
    yield Check("all runs are on the same users", _other_users(runs))
    for run in runs:
        config = found.configs.get((run.statement.mechanism, run.seed))
        if config is not None:
            yield Check(f"{run.name}: stated as configured", _problem(run, config))


def _check_settings(overrides: Sequence[str]) -> None:
    """Raises ConfigError for an override that is a flag or Hydra's own: composing it would run what it names."""
    found = next((one for one in overrides if is_more_than_a_setting(one)), None)
    if found is not None:
        raise ConfigError(f"{found!r} is no setting of a run")


def _configs(command: str, settings: Mapping[str, Any], overrides: Sequence[str]) -> list[DictConfig]:
    """The configuration of each run that a command was to make."""
    config = OmegaConf.create(dict(settings))
    if command != "compare":
        return [config]
    return [_compared(tuple(overrides), json.dumps(changes)) for changes in compared_runs(config)]


@functools.lru_cache(maxsize=64)
def _compared(overrides: tuple[str, ...], changes: str) -> DictConfig:
    """The configuration of one run of a comparison; what is changed is JSON."""
    GlobalHydra.instance().clear()
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return composed("compare", overrides, json.loads(changes))


def _other_users(runs: Sequence[StatedRun]) -> str:
    """Which numbers of users are stated where there is one; with declared owners, people are counted as well."""
    for ownership in ("assigned", "declared"):
        numbers = sorted({run.statement.num_users for run in runs if run.statement.ownership == ownership})
        if len(numbers) > 1:
            return f"of {', '.join(map(str, numbers))} users"
    return ""


def _problem(run: StatedRun, config: DictConfig) -> str:
    """How a statement differs from a run's configuration; empty where it does not."""
    try:
        return "; ".join(differences(run.statement, config))
    except (ConfigError, OmegaConfBaseException, ValueError, TypeError, AttributeError) as error:
        return f"it cannot be compared: {error}"
