"""A study made in Python is what was written down of it: whatever was put in another's place since is refused."""

import copy
from dataclasses import fields, replace
from typing import Any

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.settings_tree import tree_of
from fedsim_userdp.mechanisms.study import Study
from fedsim_userdp.plugins import refuse_replaced_method
from fedsim_userdp.selection import foreign_name

_MADE = "_made"  # an attribute that `dataclasses.replace` does not take over
_HELD = {
    "selection": "selector",
    "records": "records",
    "model": "model",
    "engine": "engine",
    "optimizer": "optimizer_fn",
}


def remember(study: Study) -> Study:
    """Returns a study, after noting what it holds."""
    held: dict[str, Any] = {one.name: getattr(study, one.name) for one in fields(study)}
    noted = {**held, "metrics": dict(study.metrics), "tree": copy.deepcopy(study.tree)}
    object.__setattr__(study, _MADE, noted)
    return study


def check_unchanged(study: object) -> None:
    """Raises ConfigError unless a study was made by `Study.of`, and it and its objects are as they were then."""
    if type(study) is not Study or not study.written:
        raise ConfigError(f"study={type(study).__name__} is none: make it by Study.of(...)")
    noted = getattr(study, _MADE, None)
    if noted is None:
        raise ConfigError("study was changed after Study.of, which nothing written down would say: make it anew")
    for name, before in noted.items():
        now = getattr(study, name)
        is_same = now == before if name in ("metrics", "tree") else now is before
        if not is_same:
            raise ConfigError(
                f"study.{name} was changed after Study.of, which nothing written down would say: make it anew"
            )
    refuse_replaced_method("study", study)
    for one in study.written:
        held = getattr(study, _HELD[one.group]) if one.group in _HELD else one.value
        replace(one, value=held).check_unchanged()
        if one.group not in ("selection", "optimizer"):
            refuse_replaced_method(one.group, held)
    if (foreign_name(study.selector) or "") != study.circumstances.selector:
        raise ConfigError("selection: a method was replaced on the object after Study.of: make a class of your own")
    for name, metric in study.metrics.items():
        refuse_replaced_method(f"metrics.{name}", metric)
        if tree_of(f"metrics.{name}", metric) != study.tree["metrics"][name]:
            raise ConfigError(f"metrics.{name} has other settings than when the study was made: make the study anew")
