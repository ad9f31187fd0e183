"""Hydra's own settings and flags: those that name code, or change what code runs, which no statement would name."""

import re
from collections.abc import Iterator, Mapping

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.settings_tree import leaves

# Flags that take the place of this program's own file of settings, in which Hydra imports and unpickles what it names.
_REPLACING = frozenset({"--config-path", "-cp", "--config-name", "-cn", "--experimental-rerun"})
_REFUSED = {
    "hydra.callbacks": "a callback is code that no statement would name: leave it out",
    "hydra.searchpath": "it imports a package that no statement would name: add a folder of settings by --config-dir",
    "hydra.job.env_set": "it changes which code the run's processes find: set variables before the command",
    "hydra.job.env_copy": "it changes which code the run's processes find: set variables before the command",
}

# Classes that settings of logging may name.  Others of that module import or run what they are given.
_LOGGING = frozenset(
    {
        *("logging.Formatter", "logging.Filter", "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler"),
        *("logging.handlers.RotatingFileHandler", "logging.handlers.TimedRotatingFileHandler"),
    }
)


def check_flag(flag: str) -> None:
    """Raises ConfigError for a flag that would take the place of this program's own file of settings."""
    if flag in _REPLACING:
        raise ConfigError(
            f"{flag}: Hydra would import or unpickle what is named there, code that no statement would name: add a "
            "folder of settings by --config-dir"
        )


def check_override(override: Override) -> None:
    """Raises ConfigError for a setting of Hydra's own that names code, or changes what code runs.

    A mapping is looked at leaf by leaf, so that `hydra.job={env_set:...}` is refused as `hydra.job.env_set.X` is.
    """
    key = override.key_or_group.replace("/", ".")
    if override.is_delete() or not re.match(r"hydra\b", key):
        return
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    for name in {name for value in values for name, _ in leaves({key: value})} | {key}:
        found = next((said for one, said in _REFUSED.items() if f"{name}.".startswith(f"{one}.")), "")
        if "_target_" in name.split("."):
            found = found or "Hydra's own settings may name no code, which no statement would name: leave it out"
        if found:
            raise ConfigError(f"{override.input_line}: {found}")
    if re.match(r"hydra(\.(job|hydra)_logging\b|$)", key):  # which Hydra sets up before anything else is looked at
        named = next((found for value in values for found in _code_named(value, key.rpartition(".")[2])), None)
        if named is not None:
            raise ConfigError(
                f"{override.input_line}: it names code that no statement would name ({named}): leave it out"
            )


def is_more_than_a_setting(override: str) -> bool:
    """Returns whether an override is a flag or one of Hydra's own, which a run folder never holds."""
    return bool(re.match(r"[+~]*(-|hydra\b)", override.strip()))


def check_composed(node: Mapping[str, object]) -> None:
    """Raises ConfigError where Hydra's own settings, wherever they come from, name code: no statement would.

    Args:
        node: Hydra's own settings, as they were composed.
    """
    if node.get("callbacks"):
        raise ConfigError("hydra.callbacks names code that no statement would name: leave it out")
    job = node.get("job")
    if isinstance(job, Mapping) and (job.get("env_set") or job.get("env_copy")):
        raise ConfigError(f"hydra.job.env_set={job.get('env_set')}: {_REFUSED['hydra.job.env_set']}")
    for group in ("job_logging", "hydra_logging"):
        found = next(_code_named(OmegaConf.to_container(node[group], resolve=True)), None)
        if found is not None:
            raise ConfigError(f"hydra.{group} names code that no statement would name ({found}): leave it out")


def _code_named(node: object, key: object = "") -> Iterator[str]:
    """Yields what settings of logging would have imported, but for some classes of the standard library."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _code_named(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from _code_named(value, key)
    elif isinstance(node, str):
        is_class = key in ("class", "()", "_target_", "factory") and node not in _LOGGING
        is_fetched = node.startswith(("ext://", "cfg://")) and node not in ("ext://sys.stdout", "ext://sys.stderr")
        if is_class or is_fetched:
            yield node
