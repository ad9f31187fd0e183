"""Descriptions as JSON, and back."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import cast

from fedsim_userdp.privacy.accounting.descriptions import (
    AdaptiveClipping,
    Adjacency,
    Composed,
    Description,
    FixedSize,
    FixedSizeStrata,
    HyperparameterSearch,
    NoAmplification,
    PaidSignals,
    PoissonGroups,
    PoissonUsers,
    RecordLevel,
    TruncatedPoisson,
)

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None

_CLASSES = (
    PoissonUsers,
    PoissonGroups,
    TruncatedPoisson,
    RecordLevel,
    FixedSize,
    FixedSizeStrata,
    NoAmplification,
    PaidSignals,
    AdaptiveClipping,
    HyperparameterSearch,
    Composed,
)
_NAMES = {kind: "UserWise" if kind is PoissonUsers else kind.__name__ for kind in _CLASSES}  # as files have them
_KINDS: dict[str, Callable[..., Description]] = {name: kind for kind, name in _NAMES.items()}


def to_json(description: Description) -> dict[str, Json]:
    """Returns a description as a JSON object: its attributes, and which class it is under "type"."""
    values = {field.name: getattr(description, field.name) for field in dataclasses.fields(description)}
    return {"type": _NAMES[type(description)], **{name: _value_to_json(value) for name, value in values.items()}}


def from_json(value: Json) -> Description:
    """Returns the description of a JSON object, checked as if it were made by hand.

    Raises:
        ValueError: `value` is not what `to_json` writes.
    """
    if not isinstance(value, dict) or value.get("type") not in tuple(_KINDS):
        raise ValueError(f"a description must be an object whose type is one of {sorted(_KINDS)}, got {value!r}")
    kind = _KINDS[str(value["type"])]
    arguments = {name: _value_from_json(item) for name, item in value.items() if name != "type"}
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{value!r} does not describe a {value['type']}: {error}") from error


def _value_to_json(value: object) -> Json:
    """An attribute as JSON."""
    if isinstance(value, Adjacency):
        return {"adjacency": value.name}
    if isinstance(value, tuple):
        return [_value_to_json(item) for item in value]
    if isinstance(value, _CLASSES):
        return to_json(value)
    return int(value) if isinstance(value, numbers.Integral) else float(cast(float, value))


def _value_from_json(value: Json) -> object:
    """An attribute from JSON."""
    if isinstance(value, list):
        return tuple(_value_from_json(item) for item in value)
    if isinstance(value, dict):
        name = value.get("adjacency")
        return Adjacency[name] if isinstance(name, str) and name in Adjacency.__members__ else from_json(value)
    return value
