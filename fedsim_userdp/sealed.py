"""Folders that nobody's class may look into while it is asked who takes part: users' records.

An audit hook of Python's sees what is opened by Python and which programs are started.  Code that means to get around
it can, by machine code or by objects in memory: a class is trusted not to (docs/selection.md); this keeps it from doing
so by mistake.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

from fedsim_userdp.errors import PluginError

_folders: set[str] = set()
_asked: ContextVar[str] = ContextVar("_asked", default="")  # the class that is asked; empty while none is
_PROGRAMS = frozenset({"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn"})
_OBJECTS = frozenset({"gc.get_objects", "gc.get_referrers"})


def seal(folder: str | os.PathLike[str]) -> None:
    """Keeps a folder, and all below it, from classes that are asked within `sealed`."""
    _folders.add(os.path.realpath(folder))
    _watch()


@contextmanager
def sealed(name: str) -> Iterator[None]:
    """Within the block, opening a sealed file, starting a program or listing all objects raises PluginError.

    Args:
        name: of the class that is asked, for the message.
    """
    token = _asked.set(name)
    try:
        yield
    finally:
        _asked.reset(token)


@cache
def _watch() -> None:
    """Adds the hook, once; it stays for as long as the process."""
    sys.addaudithook(_look)


def _look(event: str, arguments: tuple[object, ...]) -> None:
    """Raises where a class that is asked does what it must not."""
    name = _asked.get()
    if not name:
        return
    if event in _PROGRAMS or event in _OBJECTS:
        raise PluginError(f"selection={name} calls {event} while it is asked who takes part, which it must not")
    if event != "open" or not isinstance(path := arguments[0], str | bytes):
        return
    place = os.path.realpath(os.fsdecode(path))
    if any(place == folder or place.startswith(folder + os.sep) for folder in _folders):
        raise PluginError(
            f"selection={name} opens the users' records while it is asked who takes part: a selection must not see them"
        )
