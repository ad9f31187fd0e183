"""How objects and settings made in Python are written down: as the settings of the command, which can then go on."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import yaml

from fedsim_userdp import conf
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.settings_tree import Tree, leaves, tree_of
from fedsim_userdp.settings import Settings

_ROOT = Path(str(conf.__file__)).resolve().parent
_DEFAULTS = {"selection": "poisson", "data": "chitchat", "records": "random", "model": "tiny"}
_DEFAULTS |= {"engine": "in_process", "optimizer": "adam", "mechanism": "user_wise"}
_SEARCHED = {"data": "chitchat", "runs": 41}  # what the default settings of mechanisms were chosen among


@dataclass(frozen=True)
class Written:
    """An object as settings.

    Attributes:
        group: what it is given as, such as `selection`.
        choice: name of the file of settings in `conf/GROUP` that it is nearest to.
        tree: `_target_` and settings.
        overrides: what of the file is to be changed, as on the command line.
        value: the object itself.
        beside: settings in `tree` that are not the object's.
    """

    group: str
    choice: str
    tree: Tree
    overrides: tuple[str, ...]
    value: object = field(default=None, compare=False, repr=False)
    beside: tuple[str, ...] = ()

    def differs(self, key: str) -> bool:
        """Returns whether a setting differs from what the command takes by default."""
        default = defaults_in(self.group, self.choice)
        return key not in default or default[key] != self.tree[key]

    def with_setting(self, key: str, value: str) -> "Written":
        """Returns the same with one more setting, which is not the object's but that of its group."""
        override = f"{self.group}.{key}={as_value(value)}"
        return replace(self, tree={**self.tree, key: value}, overrides=(*self.overrides, override), beside=(key,))

    def check_unchanged(self) -> None:
        """Raises ConfigError where the object has other settings by now than were written down."""
        now = written(self.group, self.value)
        keys = [key for key in {**self.tree, **now.tree} if key not in self.beside]
        if changed := [key for key in keys if self.tree.get(key) != now.tree.get(key)]:
            raise ConfigError(
                f"{self.group}.{changed[0]} was {self.tree.get(changed[0])!r} when the study was made and is "
                f"{now.tree.get(changed[0])!r} now: make the study anew"
            )


def written(group: str, value: object) -> Written:
    """Returns an object as settings.

    Args:
        group: what it is given as.
        value: an object, or a `functools.partial` of a class.

    Raises:
        ConfigError: it cannot be written down.
    """
    full = tree_of(group, value)
    choice = _nearest(group, full)
    file, defaults = defaults_in(group, choice), _defaults_of(value)
    tree = {key: one for key, one in full.items() if key in file or key not in defaults or defaults[key] != one}
    tree |= {key: None for key, one in file.items() if one is None and key not in tree}  # Hydra cannot take these out
    overrides = [f"~{group}.{key}" for key in file if key not in tree]
    for key, one in tree.items():
        if key not in file:
            overrides.append(f"+{group}.{key}={as_value(one)}")
        elif file[key] != one:
            overrides.append(f"{group}.{key}={as_value(one)}")
    return Written(group, choice, tree, tuple(overrides), value)


def settings_overrides(settings: Settings) -> list[str]:
    """Returns what of the default settings is to be changed, as on the command line."""
    defaults = dict(leaves(Settings().to_tree()))
    return [f"{key}={as_value(one)}" for key, one in leaves(settings.to_tree()) if defaults[key] != one]


def as_value(value: Any) -> str:
    """Returns a value as it is written on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(as_value, value)) + "]"
    if isinstance(value, str):
        escaped = re.sub(r"(\\*)'", r"\1\1\\'", value.replace("${", "\\${"))
        return f"'{escaped}'"
    return repr(value)


def defaults_in(group: str, choice: str, tuned: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the settings of a file as the command takes them, those of `tuned` and `tokens` put in.

    Args:
        group: of the file.
        choice: its name.
        tuned: the section; None for the default one.
    """
    tuned, window = tuned_tree() if tuned is None else tuned, Settings().tokens.window
    found = dict(_file(group, choice))
    for key, value in found.items():
        if isinstance(value, str) and (name := re.fullmatch(r"\$\{([\w.]+)\}", value)):
            found[key] = _at({"tuned": tuned, "tokens": {"window": window}, "cache_dir": None}, name[1])
    return found


def mechanisms_started(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the settings of each mechanism of a run, as its `run.json` has them, those of `tuned` put in.

    Args:
        content: of `run.json`.
    """
    config = content["config"]
    if content.get("command") == "run":
        return [dict(config["mechanism"])]
    found = []
    for entry in config["compare"]["mechanisms"]:
        one = dict(entry) if isinstance(entry, Mapping) else {"mechanism": entry}
        choice = str(one.pop("mechanism", _DEFAULTS["mechanism"]))
        found.append((defaults_in("mechanism", choice, config["tuned"]) if "_target_" not in one else {}) | one)
    return found


def labels(choices: Mapping[str, str], tree: Tree) -> tuple[str, str]:
    """Returns what model and corpus of a run are called: the name of the file of settings that was chosen, where they
    are what that file names; else that of the model's folder or package, and of the corpus's class.

    Args:
        choices: names of the files, by group.
        tree: the run's settings.
    """
    named = {group: defaults_in(group, choices[group]) for group in ("model", "data")}
    model, data = tree["model"], str(tree["data"].get("_target_"))
    where = next((str(model[key]) for key in ("path", "package") if model.get(key) is not None), "")
    is_other = any(model.get(key) != named["model"].get(key) for key in ("_target_", "path", "package"))
    return (
        Path(where).name if is_other and where else choices["model"],
        choices["data"] if data == named["data"]["_target_"] else data.rpartition(".")[2],
    )


def default_mechanism() -> dict[str, Any]:
    """Returns the settings of the mechanism that the command takes by default."""
    return defaults_in("mechanism", _DEFAULTS["mechanism"])


def _at(tree: Any, key: str) -> Any:
    """The part of a tree at a dotted key."""
    for part in key.split("."):
        tree = tree[part]
    return tree


def tuned_tree() -> dict[str, Any]:
    """Returns the section of settings that differ between mechanisms, as `fedsim compare` has it by default."""
    found: dict[str, Any] = dict(_file("", "base")["tuned"])
    return {**found, "searched": _SEARCHED}


def _nearest(group: str, tree: Tree) -> str:
    """The file of a group that has most of a tree's settings; the default one for another class."""
    files = {path.stem: defaults_in(group, path.stem) for path in sorted((_ROOT / group).glob("*.yaml"))}
    alike = {name: file for name, file in files.items() if file["_target_"] == tree["_target_"]}
    scores = {name: sum(tree.get(key) == one for key, one in file.items()) for name, file in alike.items()}
    return max(scores, key=lambda name: (scores[name], name == _DEFAULTS[group]), default=_DEFAULTS[group])


@cache
def _file(group: str, name: str) -> dict[str, Any]:
    """The content of a file of settings."""
    found: dict[str, Any] = yaml.safe_load((_ROOT / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def _defaults_of(value: object) -> dict[str, object]:
    """The settings that a class has by default."""
    if not callable(kind := getattr(value, "func", type(value))):
        return {}
    parameters = signature(kind).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not Parameter.empty}
