"""Code of the user's own that this package calls: whatever it raises becomes one sentence that names it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.sealed import sealed
from fedsim_userdp.stopping import is_asked_for

_OWN = "fedsim_userdp"
_LONGEST = 300  # characters of a reason


@contextmanager
def calling(setting: str, plugin: object, what: str, when: str = "") -> Iterator[None]:
    """Within the block, what a class that is not this package's raises becomes a `PluginError`.

    `sys.exit` and a KeyboardInterrupt of its own count: a plug-in does not end a run.  What asks the command to stop
    goes on (see `is_asked_for`).

    Args:
        setting: what names the class, such as `selection`.
        plugin: an object of the class, or the class.
        what: what is called, such as `select()`.
        when: when, such as `in round 3`.

    Raises:
        PluginError: names the class and keeps the reason.
    """
    asked = sealed(class_name(plugin)) if setting == "selection" and not is_own(plugin) else nullcontext()
    try:
        with asked:
            yield
    except BaseException as error:
        if is_asked_for(error) or is_own(plugin) or isinstance(error, PluginError):
            raise
        where = f" {when}" if when else ""
        raise PluginError(f"{setting}={class_name(plugin)}: {what} raised {reason_of(error)}{where}") from error


@contextmanager
def loading(setting: str, target: str) -> Iterator[None]:
    """Within the block, which imports a class or makes an object of it, what would end the command is a `PluginError`.

    Exceptions go on: whoever makes the object says them.

    Args:
        setting: what names the class, such as `selection`.
        target: its name.

    Raises:
        PluginError: names the class and keeps the reason.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or is_asked_for(error):
            raise
        raise PluginError(f"{setting}._target_={target}: importing or making it raised {reason_of(error)}") from error


def replaced_method(plugin: object) -> str:
    """Returns the name of a method that was set on an object in place of its class's; empty where none was."""
    kept = getattr(plugin, "__dict__", {})
    return next((name for name in kept if callable(getattr(type(plugin), name, None))), "")


def refuse_replaced_method(setting: str, plugin: object) -> None:
    """Raises ConfigError where a method of an object was replaced, which no statement would name.

    Args:
        setting: what it is given as, such as `records`.
        plugin: an object.
    """
    if name := replaced_method(plugin):
        raise ConfigError(
            f"{setting}={class_name(plugin)}: {name} was replaced on the object, which no statement would name: make a "
            "class of your own"
        )


def is_own(plugin: object) -> bool:
    """Returns whether an object's class, or a class, is this package's."""
    return class_name(plugin).partition(".")[0] == _OWN


def class_name(plugin: object) -> str:
    """Returns the name of an object's class, or of a class or function, with its module."""
    named = plugin if isinstance(plugin, type) or hasattr(plugin, "__qualname__") else type(plugin)
    return f"{named.__module__}.{named.__qualname__}"


def reason_of(error: BaseException) -> str:
    """Returns an exception's class and the first line of what it says."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - anybody's class can fail at this too
        lines = []
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}" if lines else type(error).__name__
