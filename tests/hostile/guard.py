"""Watches what hostile input makes this process do, and what it raises.

Assumes: Python's audit events, which tell of every file opened, program started and class unpickled by Python code.
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from fedsim_userdp.simulations.sentences import MENDABLE, sentence

SECONDS = 10.0
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "socket.connect")
_CHANGES = ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.chmod")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_seen: list[str] | None = None
_allowed: tuple[str, ...] = ()


class Hung(BaseException):
    """It worked for longer than `SECONDS`, or waited for six times as long."""


@contextmanager
def watched(*folders: Path) -> Iterator[list[str]]:
    """Within the block, gives what should not have happened: files changed outside `folders`, programs, pickles."""
    global _seen, _allowed
    before = _seen, _allowed
    _seen, _allowed = [], (*(os.path.realpath(folder) for folder in folders), "/dev/null", "/proc/self")
    try:
        yield _seen
    finally:
        _seen, _allowed = before


@contextmanager
def in_time() -> Iterator[None]:
    """Raises `Hung` when the block works for longer than `SECONDS`, whatever else runs on the machine."""

    def hung(number: int, frame: FrameType | None) -> None:
        raise Hung(f"over {SECONDS:g} s")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, SECONDS), (signal.SIGALRM, signal.ITIMER_REAL, 6 * SECONDS))
    before = [signal.signal(number, hung) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextmanager
def refusing() -> Iterator[list[str]]:
    """Lets the project's own refusals pass, said in one line; everything else is a failure of the test."""
    said: list[str] = []
    try:
        with in_time():
            yield said
    except MENDABLE as error:
        said.append(sentence(error))
    assert all(line and "\n" not in line and len(line) < 2000 for line in said)


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    """Notes what should not happen while something is watched."""
    if _seen is None:
        return
    if event in _STARTS or event == "pickle.find_class":
        _seen.append(f"{event} {arguments!r}"[:300])
    elif event in ("os.rename", "os.link"):
        _note(event, arguments[0], arguments[2])
        _note(event, arguments[1], arguments[3])
    elif event in _CHANGES:
        _note(event, arguments[0], arguments[-1] if len(arguments) > 1 else -1)
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _note(event, arguments[0], -1)


def _note(event: str, path: object, folder: object) -> None:
    """Notes a change of a path, in a folder given by its descriptor if not -1, outside the allowed folders."""
    if not isinstance(path, str | bytes | os.PathLike) or _seen is None:
        return
    text = os.fsdecode(path).replace("\0", "")
    if isinstance(folder, int) and folder >= 0 and event not in ("os.truncate", "os.symlink"):
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    real = os.path.realpath(text)
    if "__pycache__" not in real and ".hypothesis" not in real and not real.startswith(_allowed):
        _seen.append(f"{event} {real}")


sys.addaudithook(_audit)
TEMPORARY = Path(tempfile.gettempdir())
