"""What a `_target_` of a setting names: whether it can be imported and made, and what it takes."""

import difflib
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from hydra.utils import get_object

from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.plugins import loading, reason_of

_NOT_FOUND = (ImportError, AttributeError, TypeError, ValueError, HydraException)
_MOST = 3  # suggestions


def check_importable(setting: str, target: object) -> None:
    """Raises where a `_target_` names no class or function, or its file fails when it is imported.

    Args:
        setting: whose it is, such as `selection`.
        target: its value.

    Raises:
        ConfigError: says what is wrong with it.
        PluginError: importing it would end the command.
    """
    about = f"{setting}._target_={'null' if target is None else target}"
    if not isinstance(target, str) or not re.fullmatch(r"[^\W\d]\w*(\.\w+)*", target):
        raise ConfigError(f"{about} must be the name of a class, such as package.module.CLASS")
    try:
        with loading(setting, target):
            found = get_object(target)
    except PluginError:
        raise
    except _NOT_FOUND as error:
        raise ConfigError(f"{about}: {_why_not_found(target, error)}") from error
    with _looking_at(setting, target):
        is_module, is_made = inspect.ismodule(found), callable(found)
    if is_module:
        raise ConfigError(f"{about} is a module: name a class in it, as {target}.CLASS")
    if not is_made:
        raise ConfigError(f"{about} is an object of {type(found).__qualname__} and no class: name its class")


def parameters(setting: str, target: str) -> list[str] | None:
    """Returns the names that a `_target_` takes; None where it takes any, or that is not known.

    Args:
        setting: whose it is.
        target: what was found to be importable.

    Raises:
        PluginError: its class cannot be looked at.
    """
    try:
        with _looking_at(setting, target):
            taken = inspect.signature(get_object(target)).parameters.values()
    except _NOT_FOUND:
        return None  # a class in C
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in taken):
        return None
    return [one.name for one in taken if one.kind is not inspect.Parameter.VAR_POSITIONAL and one.name != "self"]


@contextmanager
def _looking_at(setting: str, target: str) -> Iterator[None]:
    """Within the block, what a class raises that is only looked at becomes a `PluginError`."""
    try:
        yield
    except _NOT_FOUND:
        raise
    except Exception as error:  # anybody's metaclass can fail at this
        raise PluginError(f"{setting}._target_={target}: looking at it raised {reason_of(error)}") from error


def _why_not_found(target: str, error: BaseException) -> str:
    """Why a `_target_` cannot be had, in words."""
    cause = error.__cause__ or error
    if isinstance(cause, SyntaxError):
        where = f" in {cause.filename}, line {cause.lineno}" if cause.filename else ""
        return f"importing it raised {type(cause).__name__}: {cause.msg}{where}"
    is_absent = isinstance(cause, ModuleNotFoundError) and f"{target}.".startswith(f"{cause.name}.")
    if isinstance(cause, ImportError) and not is_absent:
        return f"importing it raised {reason_of(cause)}, at an import of its own"
    if not isinstance(cause, ImportError | AttributeError):
        return f"importing it raised {reason_of(cause)}"
    place, _, name = target.rpartition(".")
    if place not in sys.modules:
        return f"there is no module {place or target}: give a class as package.module.CLASS, of a module found here"
    near = difflib.get_close_matches(name, vars(sys.modules[place]), n=1)
    meant = f"; did you mean {place}.{near[0]}?" if near else ""
    return f"there is no {name} in {place}{meant}"
