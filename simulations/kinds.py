"""What kinds of values a setting takes: what the annotation of its field or argument says."""

import inspect
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig

from fedsim_userdp.plugins import is_own
from fedsim_userdp.settings import SECTIONS, Settings

# What a file of settings or a command line gives for each kind; bool comes first, as it is an int to Python.
_GIVEN: dict[object, tuple[type, ...]] = {
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str, int, float),
    Path: (str,),
    type(None): (type(None),),
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a text"}
_LISTS = (list, tuple, Sequence)


def annotations(config: DictConfig) -> dict[str, object]:
    """Returns the annotation of each setting of this package's own classes, by dotted key.

    Args:
        config: a configuration; settings below a `_target_` are arguments of that class.
    """
    whole = get_type_hints(Settings)
    found: dict[str, object] = {name: whole[name] for name in whole if name not in SECTIONS}
    for name, kind in SECTIONS.items():
        found |= {f"{name}.{key}": hint for key, hint in get_type_hints(kind).items()}
    for group, node in config.items_ex(resolve=False):
        if isinstance(node, DictConfig) and isinstance(node.get("_target_"), str):
            found |= {f"{group!s}.{key}": hint for key, hint in _arguments(str(node["_target_"])).items()}
    return found


def is_taken(value: object, annotation: object) -> bool:
    """Returns whether a setting may have a value; of a kind that no file of settings can hold, any value."""
    if (found := _alternatives(annotation)) is not None:
        return any(isinstance(value, str) if one is str else is_taken(value, one) for one in found)
    if get_origin(annotation) in _LISTS:
        return isinstance(value, list) and all(is_taken(one, get_args(annotation)[0]) for one in value)
    if get_origin(annotation) is dict or get_origin(annotation) is Mapping:
        return isinstance(value, dict)
    given = _GIVEN.get(annotation)
    if given is None:
        return True
    return isinstance(value, given) and (bool in given or not isinstance(value, bool))


def in_words(annotation: object) -> str:
    """Returns what a setting may be, such as "a whole number, or null"; empty for what has no words."""
    found = _alternatives(annotation) or (annotation,)
    words = list(dict.fromkeys(word for one in found if (word := _word(one))))
    return " or ".join(words) + (", or null" if type(None) in found and words else "")


def word_of(value: object) -> str:
    """Returns what kind of setting a value is."""
    return next((_WORDS[kind] for kind in (bool, int, float, str) if is_taken(value, kind)), "a list")


def _word(annotation: object) -> str:
    """The word for one kind."""
    if get_origin(annotation) in _LISTS:
        return "a list"
    return next((word for kind, word in _WORDS.items() if kind is annotation), "")


def _alternatives(annotation: object) -> tuple[object, ...] | None:
    """The kinds of a union, texts that are listed counting as text; None for one kind."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(part for one in get_args(annotation) for part in _alternatives(one) or (one,))
    if get_origin(annotation) is Literal:
        return tuple(dict.fromkeys(type(one) for one in get_args(annotation)))
    return None


def _arguments(target: str) -> dict[str, Any]:
    """The annotations of what a class of this package takes; none where it is not found, which others say."""
    try:
        found = get_object(target)
        if not is_own(found):
            return {}
        parameters = inspect.signature(found, eval_str=True).parameters.values()
    except Exception:  # noqa: BLE001 - whatever importing it raises; whoever makes the object says what is wrong
        return {}
    return {one.name: one.annotation for one in parameters if one.annotation is not inspect.Parameter.empty}
