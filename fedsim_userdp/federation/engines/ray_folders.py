"""Temporary folders of Ray clusters: each is locked by the run that it belongs to, and removed when that has ended.

A run that was killed removes nothing; the next one that needs such a folder does, and ends what Ray left running there.
"""

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "fedsim-ray-"
# Ray makes sockets below this folder, whose whole path may have 107 characters.
_LONGEST_TEMPORARY_FOLDER = 40
_PROCESSES = Path("/proc")
_PATIENCE = 5.0  # seconds for killed processes to be gone


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Gives a new folder for the files of a cluster, locked while the block runs and removed after it."""
    parent = _parent()
    remove_leftovers(parent)
    while True:
        with (
            tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent, ignore_cleanup_errors=True) as name,
            _opened(Path(name)) as descriptor,
        ):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.isdir(name):  # else another start took it for a leftover before it was locked
                try:
                    yield Path(name)
                finally:
                    _end(Path(name))  # what Ray's own shutdown has missed
                return


def remove_leftovers(parent: Path) -> None:
    """Removes the folders of this user's runs that are no more, and ends what Ray left running in them.

    Guarantee: a folder that a live run has locked is left alone, with all its processes.
    """
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), _opened(folder) as descriptor:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _end(folder)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of a real folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _end(folder: Path) -> None:
    """Kills Ray's processes in a folder, and waits until they are gone."""
    deadline = time.monotonic() + _PATIENCE
    while (found := _processes_in(folder)) and time.monotonic() < deadline:
        for process in found:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.05)


def _processes_in(folder: Path) -> list[int]:
    """The ids of this user's processes of Ray that have files of the folder open; none where there is no /proc."""
    found = []
    for place in _PROCESSES.glob("[0-9]*"):
        with suppress(OSError):  # of another user, or gone by now
            is_ray = b"ray" in (place / "cmdline").read_bytes()
            if is_ray and int(place.name) != os.getpid() and _has_open(place / "fd", folder):
                found.append(int(place.name))
    return found


def _has_open(descriptors: Path, folder: Path) -> bool:
    """Whether one of a process's descriptors is a file below the folder."""
    for descriptor in descriptors.iterdir():
        with suppress(OSError):
            if os.readlink(descriptor).startswith(f"{folder}/"):
                return True
    return False


def _parent() -> Path:
    """The parent of temporary folders, unless its path is too long for sockets below it."""
    usual = Path(tempfile.gettempdir())
    return Path("/tmp") if len(str(usual)) > _LONGEST_TEMPORARY_FOLDER and Path("/tmp").is_dir() else usual
