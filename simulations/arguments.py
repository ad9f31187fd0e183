"""Going on with a run folder: the same overrides, checked against the folder's configuration."""

from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from simulations.errors import ConfigError

# What may differ between a run and its continuation, since it cannot change a result.
FREE = frozenset({"resume", "output_dir", "threads", "cache_dir", "engine", "checkpoint"})

GROUPS = frozenset(
    {"mechanism", "selection", "data", "records", "model", "engine", "optimizer", "experiment"}
)  # choices of a file, not settings
# bool comes first: it is an int to Python
_KINDS: tuple[tuple[type, tuple[type, ...]], ...] = (
    (bool, (bool,)),
    (int, (int,)),
    (float, (int, float)),
    (str, (str, int, float, ListConfig)),
)
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def continued_arguments(arguments: list[str]) -> list[str]:
    """Returns the command line with the overrides of the folder that `resume=PATH` names; unchanged without it.

    Raises:
        ConfigError: when the folder holds no run.
    """
    resumed = [argument.split("=", 1)[1] for argument in arguments if argument.startswith("resume=")]
    if not resumed or resumed[-1] == "null":
        return arguments
    folder = Path(resumed[-1])
    file = folder / ".hydra" / "overrides.yaml"
    if not file.is_file():
        raise ConfigError(f"resume={folder} is no run folder: {file} does not exist")
    stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(stored, list) or not all(isinstance(override, str) for override in stored):
        raise ConfigError(f"{file} is not a list of overrides")
    given = {override_key(argument) for argument in arguments} | {"resume", "output_dir"}
    kept = [override for override in stored if override_key(override) not in given]
    return [*kept, *arguments, f"output_dir={folder}"]


def check_continues(config: DictConfig, folder: Path) -> None:
    """Raises ConfigError with the differences when `folder` was run with another configuration."""
    stored = OmegaConf.load(folder / "config.yaml")
    before, now = _flat(OmegaConf.to_container(stored)), _flat(OmegaConf.to_container(config, resolve=True))
    differences = [
        f"{key} was {before.get(key, 'absent')} and is {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if key.split(".")[0] not in FREE and before.get(key) != now.get(key)
    ]
    if differences:
        raise ConfigError(f"resume={folder}: the run was configured otherwise: {'; '.join(differences)}")


def override_key(override: str) -> str:
    """Returns the key of an override such as `+a.b=c` or `~a`."""
    return override.split("=")[0].lstrip("+~")


def check_types(config: DictConfig, config_name: str) -> None:
    """Raises ConfigError when an override of the running job is of another kind than the setting's default."""
    overrides = HydraConfig.get().overrides.task
    choices = [override for override in overrides if override_key(override) in GROUPS]
    defaults = hydra.compose(config_name, overrides=choices)
    for key in (override_key(override) for override in overrides):
        before, now = OmegaConf.select(defaults, key), OmegaConf.select(config, key)
        for kind, wanted in _KINDS:
            if key not in GROUPS and isinstance(before, kind) and not (isinstance(now, wanted) or now is None):
                raise ConfigError(f"{key}={now} must be {_WORDS[kind]}, such as {before}")
            if isinstance(before, kind):
                break


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    """The leaves of nested mappings by dotted key."""
    if not isinstance(node, dict):
        return {prefix: node}
    parts = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
    return {key: value for part in parts for key, value in part.items()}
