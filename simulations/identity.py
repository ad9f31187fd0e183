"""What a run's releases depend on, and the keys that derive from it (docs/decisions/0011)."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from fedsim_userdp.privacy.streams import RunKey
from simulations.arguments import FREE, foreign_targets
from simulations.errors import ConfigError
from simulations.keys import RunKeys, stored_keys

_WITHOUT_EFFECT = FREE | {
    # what is digested by itself, or decides nothing that is released
    *("compare", "data", "evaluation", "hydra", "noise", "seed", "split", "tokens", "tuned"),
    *("local.max_tokens", "mechanism.name", "model.device", "model.name", "model.package", "model.path"),
    "model.activation_checkpointing",
    "privacy.num_searched",
}
# What a run's noise and claims rest on, in a checkpoint's origin: `checkpoint.allow_changes` does not reach it.
NEVER_CHANGED = frozenset({"data", "training split", "base model"})


def settings_digest(config: DictConfig) -> str:
    """Returns a digest of the settings that decide a run's releases; data, split and weights have digests of their own.

    Left out are names, paths, output, engine, threads and evaluation; whatever else a configuration holds counts, and
    so does the source of code that is not this package's.
    """
    kept = {key: value for key, value in plain(config).items() if key not in _WITHOUT_EFFECT}
    for group in ("mechanism", "model", "local", "privacy"):
        kept[group] = {k: v for k, v in kept[group].items() if f"{group}.{k}" not in _WITHOUT_EFFECT}
    for target in sorted(set(foreign_targets(config, ()))):
        kept[f"source of {target}"] = _source_digest(target)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def _source_digest(target: str) -> str:
    """A digest of the file that a `_target_` is defined in; empty where there is none."""
    try:
        file = inspect.getsourcefile(get_object(target))
    except (ImportError, AttributeError, TypeError, ValueError, HydraException):
        return ""  # whoever instantiates it says what is wrong
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def identity_of(settings: str, fingerprint: Mapping[str, str]) -> str:
    """Returns what a run's releases depend on, as text."""
    return json.dumps({**fingerprint, "settings": settings}, sort_keys=True)


def keys_of_run(config: DictConfig, identity: str, path: Path) -> RunKeys:
    """Returns the run's keys: those of the run that is gone on with, or new ones.

    Args:
        config: the run's configuration.
        identity: what its releases depend on, as text.
        path: the folder of its checkpoints.

    Raises:
        ConfigError: when `noise.source` is unknown.
        CheckpointError: when the stored keys are damaged, or of another noise source.
    """
    if config.noise.source not in ("seeded", "os"):
        raise ConfigError(f"noise.source={config.noise.source} is unknown; expected seeded or os")
    seeded = RunKey.seeded(config.seed, identity) if config.noise.source == "seeded" else None
    stored = stored_keys(path, seeded) if config.resume is not None else None
    return stored or RunKeys.of(seeded or RunKey.drawn())


def plain(config: DictConfig) -> dict[str, Any]:
    """Returns a node as a plain dict, interpolations resolved."""
    resolved = OmegaConf.to_container(config, resolve=True)
    if not isinstance(resolved, dict):
        raise ConfigError(f"expected a mapping in the configuration, got {resolved!r}")
    return {str(key): tuple(value) if isinstance(value, list) else value for key, value in resolved.items()}
