"""One folder, one run: a run's folder is locked, holds no other run, and is gone again if nothing was written."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.plain_files import kept_inside

# What only a run, comparison or audit writes to its folder.
MARKS = (
    *("run.json", "config.yaml", "privacy.json", "PRIVACY.md", "results.json", "results.csv", "audit.json"),
    *("ledger", "adapters", "not_private/checkpoints", "multirun.yaml"),
)


_ALLOWING = "the class named again and checkpoint.allow_changes=true"


@contextmanager
def own_folder(
    folder: Path,
    *,
    is_resumed: bool = False,
    holds_a_run: bool = True,
    going_on: str = "resume={folder}",
    allowing: str = _ALLOWING,
) -> Iterator[Path]:
    """Gives a folder, kept from other processes for the duration of the block.

    Where the block ends in an error before anything was written, the folder is removed again.

    Args:
        folder: the folder, which is there.
        is_resumed: whether the run that the folder holds is to be gone on with.
        holds_a_run: whether what is to be written is a run, whose statement is of all that the folder holds.
        going_on: how a run is gone on with, for messages.
        allowing: what is to be said besides, where the code of a class changed.

    Raises:
        ConfigError: when another process is at work in it, it holds a run that is not to be gone on with, or links or
            other things that are no files (see `check_plain`).
    """
    try:
        with locked(folder), _removed_if_empty(folder):
            if not is_resumed and not (folder / "run.json").is_file() and (folder / "multirun.yaml").is_file():
                raise ConfigError(
                    f"{folder} holds a sweep already: go on with it by --multirun resume={folder}, or choose another "
                    "folder"
                )
            if not is_resumed and (mark := mark_of_a_run(folder)):
                raise ConfigError(
                    f"{folder} holds a run already ({mark}): go on with it by "
                    f"{going_on.format(folder=folder)}, or choose another folder"
                )
            if not is_resumed and (above := run_above(folder)) is not None:
                raise ConfigError(
                    f"{folder} lies in {above}, which holds a run that would not count it: choose another folder"
                )
            if not is_resumed and holds_a_run and (below := run_below(folder)) is not None:
                raise ConfigError(
                    f"{folder} holds a run further down, {below}, which its own would not count: choose another folder"
                )
            if not is_resumed and (busy := busy_around(folder, below=holds_a_run)) is not None:
                raise ConfigError(
                    f"{folder} and {busy}, where another run has just begun, lie one in the other, and neither would "
                    "count the other: choose another folder"
                )
            check_plain(folder)
            with kept_inside(folder):
                yield folder
    except PluginError as error:
        raise ConfigError(f"{error}; mend it, and {_next_step(folder, going_on, allowing)}") from error
    except SystemExit as stop:
        if type(stop) is not SystemExit:  # the command's own
            raise
        raise ConfigError(
            f"a class that a setting names called sys.exit({'' if stop.code is None else stop.code}), by which no run "
            f"ends: leave that out, and {_next_step(folder, going_on, allowing)}"
        ) from stop


def mark_of_a_run(folder: Path) -> str:
    """Returns the name of something in a folder that only a run writes; empty where there is none."""
    return next((name for name in MARKS if os.path.lexists(folder / name)), "")


def run_above(folder: Path, *, sweeps: bool = False) -> Path | None:
    """Returns the folder of a run that a folder lies in; None where it lies in none.

    Args:
        folder: the folder.
        sweeps: whether the folder of a sweep counts, which counts the runs in it, but no sweep.
    """
    marks = [("run.json", "config.yaml"), *([("multirun.yaml",)] if sweeps else [])]
    return next(
        (one for one in _above(folder) if any(all((one / name).is_file() for name in kind) for kind in marks)), None
    )


def run_below(folder: Path) -> Path | None:
    """Returns the folder of a run that lies below a folder, links followed; None where there is none."""
    return next((place for place, files in _folders_below(folder) if {"run.json", "multirun.yaml"} & files), None)


def _above(folder: Path) -> Iterator[Path]:
    """The folders that a folder lies in, as it is named and as its links lead."""
    yield from dict.fromkeys((*Path(os.path.abspath(folder)).parents, *folder.resolve().parents))


def _folders_below(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """The folders below a folder and the names of their files, links followed, each folder once."""
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in seen]  # a link may lead back up
        seen |= {real[name] for name in folders}
        if Path(place) != folder:
            yield Path(place), set(files)


def busy_around(folder: Path, *, below: bool = True) -> Path | None:
    """Returns a folder above another one, or below it, in which a process is at work; None where there is none.

    What two processes that begin at once have not written yet, their locks tell: each has its own before it looks for
    the other's.

    Args:
        folder: the folder.
        below: whether to look below it as well.
    """
    around = chain(_above(folder), (place for place, _ in _folders_below(folder)) if below else ())
    return next((one for one in around if is_busy(one)), None)


def is_busy(folder: Path) -> bool:
    """Returns whether another process keeps a folder by `locked`; not of one that cannot be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # of a file system without locks
        return False
    finally:
        os.close(descriptor)
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder for the duration of the block; nothing is written for it.

    Args:
        folder: the folder.

    Raises:
        ConfigError: when another process is at work in it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is in use by another run: wait for it, or name another folder") from error
        if not os.path.lexists(folder) or not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise ConfigError(f"{folder} was removed by another run that was refused: start again")
        yield
    finally:
        os.close(descriptor)


def check_plain(folder: Path) -> None:
    """Raises ConfigError unless all that a run uses in a folder are files and folders of its own.

    A link would be followed out of the folder, a pipe waited for, a device read for ever.
    """
    for name in sorted({*(mark.partition("/")[0] for mark in MARKS), *_OTHERS}):
        for path in _below(folder / name):
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ConfigError(
                    f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}: a run folder must hold only files and "
                    "folders of its own"
                )


_OTHERS = ("comparison.png", "audit.csv", "audit.png", "data.csv", "data.json", "data.png", "not_private", ".lock")
_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _below(path: Path) -> Iterator[Path]:
    """A path and all below it, where there is something; links are not followed."""
    if not os.path.lexists(path):
        return
    yield path
    for place, folders, files in os.walk(path):
        yield from (Path(place, name) for name in (*folders, *files))


def _next_step(folder: Path, going_on: str, allowing: str) -> str:
    """What to do after a class of the user's own was mended: a run or comparison that has begun is resumed."""
    if not (folder / "run.json").is_file():
        return "start again"
    return f"go on with {going_on.format(folder=folder)}, {allowing}: its code is another then"


@contextmanager
def _removed_if_empty(folder: Path) -> Iterator[None]:
    """Removes a folder at the end of the block where nothing is in it; whoever holds its lock only may."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
