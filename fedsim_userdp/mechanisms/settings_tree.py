"""Settings as plain nested mappings: the text of `config.yaml`, which a run's identity and its statement read.

An object in them is a mapping of `_target_`, where its class is, and of its settings.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache, partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, TypeGuard

from fedsim_userdp import conf
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.signals import Signal

Tree = Mapping[str, Any]  # values: None, bool, int, float, str, lists and mappings of these

# What may differ between a run and its continuation, since it cannot change a result.
FREE = frozenset(
    {"resume", "output_dir", "threads", "cache_dir", "model.cache_dir", "engine", "checkpoint", "selection.public"}
    | {"selection.public_columns"}
)
OWN_CODE = "fedsim_userdp"


def leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yields the leaves of nested mappings and lists of mappings, by dotted key."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif _is_list(node) and any(isinstance(item, Mapping) or _is_list(item) for item in node):
        for number, item in enumerate(node):
            yield from leaves(item, f"{prefix}.{number}")
    else:
        yield prefix, node


def _is_list(node: object) -> TypeGuard[Sequence[object]]:
    """Whether something is a list, Hydra's own included."""
    return isinstance(node, Sequence) and not isinstance(node, str | bytes)


def foreign_targets(node: object) -> list[str]:
    """Returns the `_target_`s of a tree or of a part of one that are neither this package's nor torch's optimizers."""
    targets = [str(value) for key, value in leaves(node) if key.rpartition(".")[2] == "_target_"]
    return [target for target in targets if not is_own_code(target)]


def is_own_code(target: str) -> bool:
    """Returns whether a `_target_` is one of the package's own configuration, or an optimizer of torch."""
    return bool(re.fullmatch(r"torch\.optim\.[A-Z]\w*", target)) or target in _own_targets()


@cache
def _own_targets() -> frozenset[str]:
    """The `_target_`s of the package's own configuration, and of what takes the place of one in Python."""
    files = Path(str(conf.__file__)).resolve().parent.rglob("*.yaml")
    texts = (file.read_text(encoding="utf-8") for file in files)
    found = (target for text in texts for target in re.findall(r"^\s*_target_:\s*(\S+)", text, re.M))
    metrics = (f"{OWN_CODE}.training.metrics.{name}" for name in ("BitsPerByte", "NextTokenAccuracy"))
    return frozenset((*found, *metrics, f"{OWN_CODE}.data.in_memory.InMemoryCorpus"))


def tree_of(setting: str, value: object) -> dict[str, Any]:
    """Returns an object as a mapping: where its class is, and the settings that it was made with.

    Args:
        setting: what it is given as, for the message.
        value: an object of a dataclass, a `functools.partial` of a class, or any object, whose settings are what its
            class takes and it keeps under the same name.

    Raises:
        ConfigError: its class has no place from which it could be imported again, or a setting is no plain value.
    """
    kind = value.func if isinstance(value, partial) else type(value)
    if isinstance(value, type) or kind.__module__ == "builtins":
        said = f"the class {value.__qualname__}" if isinstance(value, type) else repr(value)
        raise ConfigError(f"{setting}={said} must be an object, made by its class")
    if "<" in kind.__qualname__:
        raise ConfigError(f"{setting}={kind.__qualname__} must be defined at the top of a module, not in a function")
    given = _settings_of(setting, value)
    for key, one in given.items():
        if not _is_plain(one):
            raise ConfigError(
                f"{setting}={kind.__qualname__}: its setting {key} is {type(one).__name__}: a run is written down with "
                "its settings, which must be numbers, texts, lists and mappings of these"
            )
    plain = {key: _plain(one) for key, one in given.items()}
    return {"_target_": target_of(kind), **({"_partial_": True} if isinstance(value, partial) else {}), **plain}


def selection_in_words(selection: Tree) -> str:
    """Returns a selection as its class and settings, such as `StratifiedSelector(column=region, users_per_group=8)`."""
    settings = {key: value for key, value in selection.items() if key != "public" and not key.startswith("_")}
    said = ", ".join(f"{key}={value}" for key, value in settings.items() if value is not None)
    return f"{str(selection['_target_']).rpartition('.')[2]}({said})"


def target_of(kind: Any) -> str:
    """Returns where a class is, as a `_target_`: torch's optimizers by the name that torch gives them."""
    if kind.__module__.startswith("torch.optim."):
        return f"torch.optim.{kind.__qualname__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _settings_of(setting: str, value: object) -> Mapping[str, object]:
    """The settings that an object was made with: what its class takes and it keeps under the same name.

    One that is lost would make two runs the same run to their noise: it is refused.
    """
    if isinstance(value, partial):
        if value.args:
            raise ConfigError(f"{setting}: partial() must be given its arguments by name")
        return value.keywords
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    kept = vars(value) if hasattr(value, "__dict__") else {}
    named = {} if type(value).__init__ is object.__init__ else signature(type(value)).parameters
    takes = [name for name, one in named.items() if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)]
    is_own = type(value).__module__.partition(".")[0] == OWN_CODE  # whose text, say, is no setting
    lost = [name for name in takes if name not in kept] or ([] if named else list(kept))
    if lost and not is_own:
        raise ConfigError(
            f"{setting}={type(value).__qualname__}: a run is written down with its settings: take {lost[0]} as an "
            f"argument, and keep it as self.{lost[0]}"
        )
    return {name: kept[name] for name in takes if name in kept}


def _is_plain(value: object) -> bool:
    """Whether YAML and JSON can hold a value."""
    if isinstance(value, Signal):
        return True
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Path) or _is_number_of_numpy(value)


def _plain(value: Any) -> Any:
    """The same of mappings, lists, numbers and texts only, numbers being Python's own."""
    if _is_number_of_numpy(value):
        return value.item()
    if isinstance(value, Signal):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return str(value) if isinstance(value, Path) else value


def _is_number_of_numpy(value: object) -> bool:
    """Whether a value is a single number of numpy, which need not be imported to tell."""
    return type(value).__module__ == "numpy" and hasattr(value, "item") and not hasattr(value, "__len__")
