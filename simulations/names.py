"""Names of settings: what there is, and what somebody meant who wrote another one."""

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, flag_override

from fedsim_userdp import conf
from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.mechanisms.settings_tree import is_own_code
from fedsim_userdp.plugins import loading, reason_of
from fedsim_userdp.simulations.explanations import choices
from fedsim_userdp.simulations.targets import check_importable, parameters

# What people write for a setting that has another name here.
_ALSO_CALLED = {
    "k": "mechanism.records_per_user",
    "eps": "privacy.epsilon",
    "lr": "mechanism.learning_rate",
    "clip": "mechanism.clip_norm",
    "q": "selection.sampling_prob",
    "batch_size": "selection.sampling_prob",
    "epochs": "mechanism.rounds",
    "steps": "mechanism.rounds",
    "output": "output_dir",
    "out": "output_dir",
    "dir": "output_dir",
    "folder": "output_dir",
    "sigma": "privacy.epsilon",
}
PUBLIC = ("public", "public_columns")  # settings of the selection that are not its class's
_MOST = 3  # suggestions
_HYDRA = "hydra"


def check_name(key: str, *, groups: frozenset[str]) -> None:
    """Raises ConfigError for a key that is no setting; below a choice of a class, the class decides later.

    Args:
        key: dotted, as on the command line.
        groups: names of the choices.
    """
    first = key.partition(".")[0]
    if "/" in key or "@" in key or first in groups or first == _HYDRA or key in known() or _is_of_metric(key):
        return
    if any(name.startswith(f"{key}.") for name in known()):
        raise ConfigError(f"{key} is a section of settings: set one of {', '.join(_below(key))}")
    if first == "metrics":
        raise ConfigError(f"{key} is a metric's name: give its class by +{key}._target_=CLASS")
    raise ConfigError(unknown(key))


def _is_of_metric(key: str) -> bool:
    """Whether a key is of a metric, whose name is the user's."""
    return key.startswith("metrics.") and key.count(".") > 1


def unknown(key: str) -> str:
    """Returns the sentence for a key that is no setting, with what may have been meant."""
    meant = suggestions(key)
    return f"there is no setting {key}" + (f"; did you mean {' or '.join(meant)}?" if meant else "")


def suggestions(key: str) -> list[str]:
    """Returns the settings or choices, at most three, that somebody may have meant who wrote `key`."""
    last = key.rpartition(".")[2].lower().replace("-", "_")
    if last in _ALSO_CALLED and "." not in key:
        return [_ALSO_CALLED[last]]
    same = [name for name in known() if name.rpartition(".")[2] == last]
    same = [name for name in same if not name.startswith("study.")] or same  # whose axes are named as settings are
    if same:
        return sorted(same, key=lambda name: -_likeness(name, key))[:_MOST]
    offered = known() if "." in key else known() | frozenset(choices())
    near = sorted(offered, key=lambda name: (-_likeness(name, key), name))
    least = max(0.75, _likeness(near[0], key) - 0.1)  # of several, such as are about as near as the nearest
    return [name for name in near[:_MOST] if _likeness(name, key) >= least]


def whole_name(section: str, said: str) -> str:
    """Returns a sentence on a setting that begins with its name, the name of its section before it.

    Args:
        section: such as `tokens`.
        said: such as `window must be at least 2 tokens, got 0`, or `rounds=0 must be`; others are returned as they are.
    """
    name = re.split(r"[ =]", said, maxsplit=1)[0]
    return f"{section}.{said}" if f"{section}.{name}" in known() else said


def check_arguments(config: DictConfig) -> None:
    """Raises ConfigError where a node has settings that its `_target_` does not take."""
    nodes = [*config.items_ex(resolve=False)]
    metrics = config.get("metrics")
    nodes += [(f"metrics.{name!s}", node) for name, node in metrics.items()] if isinstance(metrics, DictConfig) else []
    for key, node in nodes:
        if not isinstance(node, DictConfig) or "_target_" not in node or OmegaConf.is_missing(node, "_target_"):
            continue
        check_importable(str(key), node["_target_"])
        if key == "mechanism":
            check_takes_name(node)
        takes = parameters(str(key), str(node["_target_"]))
        unused = ["path"] if key == "data" and _has_unused_path(node, takes) else []  # left by the default corpus
        unused += PUBLIC if key == "selection" else []
        for name in [str(name) for name in node if not str(name).startswith("_")]:
            if takes is not None and name not in (*takes, *unused):
                near = difflib.get_close_matches(name, takes, n=_MOST, cutoff=0.6)
                meant = f"; did you mean {' or '.join(f'{key!s}.{one}' for one in near)}?" if near else ""
                all_of_them = f"it takes {', '.join(takes)}" if takes else "it takes none"
                raise ConfigError(f"{key!s}._target_={node['_target_']} has no setting {name} ({all_of_them}){meant}")


def check_takes_name(mechanism: DictConfig) -> None:
    """Raises ConfigError where the settings of a mechanism have no name, or its class does not take one.

    Args:
        mechanism: its settings, a `_target_` among them.
    """
    target, name = str(mechanism["_target_"]), mechanism.get("name")
    takes = parameters("mechanism", target)
    if takes is not None and "name" not in takes:
        raise ConfigError(
            f"mechanism._target_={target} takes no name, by which tables, files and folders call it: write "
            "def __init__(self, name) and keep it as self.name"
        )
    if name is None:
        raise ConfigError(f"mechanism._target_={target} is left without a name: write mechanism.name=NAME")


def without_unused_path(data: DictConfig) -> DictConfig:
    """Returns the settings of a corpus without a `path` that is null where its class takes none."""
    if not _has_unused_path(data, parameters("data", str(data["_target_"]))):
        return data
    kept = copy.deepcopy(data)
    with flag_override(kept, ["struct", "readonly"], False):
        del kept["path"]
    return kept


def without_public(selection: DictConfig) -> DictConfig:
    """Returns the settings of a selection without those of public facts, which are not its class's."""
    kept = copy.deepcopy(selection)
    with flag_override(kept, ["struct", "readonly"], False):
        for name in PUBLIC:
            kept.pop(name, None)
    return kept


def _has_unused_path(data: DictConfig, takes: list[str] | None) -> bool:
    """Whether a corpus has the default's `path: null` and its class takes none."""
    return takes is not None and "path" not in takes and "path" in data and data["path"] is None


def made(setting: str, node: DictConfig) -> Any:
    """Returns what the `_target_` of a setting's node makes, as `instantiate` does.

    Raises:
        PluginError: when it would end the command, or is not this package's and raises.
        Exception: what it raises besides.
    """
    target = str(node.get("_target_"))
    try:
        with loading(setting, target):
            return instantiate(node)
    except InstantiationException as error:
        if "blocklisted" in str(error) and error.__cause__ is None:
            raise ConfigError(
                f"{setting}._target_={target} runs code or commands, and is no class for this setting"
            ) from error
        if is_own_code(target) or error.__cause__ is None or not str(error).startswith("Error in call"):
            raise
        reason = reason_of(error.__cause__)
        raise PluginError(f"{setting}._target_={target}: making it raised {reason}") from error
    except (ConfigError, PluginError, HydraException):
        raise
    except Exception as error:  # what a class raises that Hydra only looks at
        if is_own_code(target):
            raise
        raise PluginError(f"{setting}._target_={target}: looking at it raised {reason_of(error)}") from error


@cache
def known() -> frozenset[str]:
    """Returns the dotted keys of all settings of all commands and choices."""
    root, found = Path(str(conf.__file__)).parent, set[str]()
    for path in root.rglob("*.yaml"):
        group = [part for part in path.parent.relative_to(root).parts if part != "experiment"]  # which sets all others
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        found |= {key for key in _leaves(content, ".".join(group)) if not key.startswith(("defaults", _HYDRA))}
    return frozenset(found)


def _leaves(node: Any, prefix: str) -> Iterator[str]:
    """Dotted keys of nested mappings, down to what is none."""
    if isinstance(node, dict) and (node or not prefix):
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix


def _below(section: str) -> Sequence[str]:
    """Some settings of a section."""
    names = sorted(name for name in known() if name.startswith(f"{section}."))
    return [*names[:6], *(["..."] if len(names) > 6 else [])]


def _likeness(name: str, key: str) -> float:
    """How alike two keys are, in [0, 1]."""
    return difflib.SequenceMatcher(None, name, key).ratio()
