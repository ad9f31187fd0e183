"""Files of a run folder: opened, replaced and removed only as regular files in real folders inside it.

A run folder may be somebody else's, and change under way: a link would be followed out of it, a pipe waited for, a
device read for ever.  Below a folder that `kept_inside` names, no link is followed, whatever stands there by then.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_STRANGE = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)  # what links, pipes and devices give
_SAID = "is no file or folder of its own (a link, pipe or device), or lies behind one: a run folder must not hold such"
_roots: list[tuple[Path, int]] = []  # run folders of this process with their descriptors, for all of its threads


@contextmanager
def kept_inside(folder: Path) -> Iterator[None]:
    """Within the block, what is below `folder` is reached from the folder that it is now, without following links."""
    descriptor = os.open(folder, _FOLDER)
    _roots.append((folder, descriptor))
    try:
        yield
    finally:
        _roots.remove((folder, descriptor))
        os.close(descriptor)


def open_file(path: Path, flags: int, mode: int = 0o644) -> int:
    """Returns a descriptor of a regular file, opened as by `os.open`.

    Raises:
        OSError: It is something else, or cannot be opened; names the path.
    """
    with _parent(path) as (folder, name):
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, _SAID, str(path))
    return descriptor


def read_file(path: Path) -> bytes:
    """Returns what a regular file holds.

    Raises:
        OSError: It is something else, or cannot be read; names the path.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        return file.read()


def write_file(path: Path, data: bytes) -> None:
    """Makes or empties a regular file, writes it, and waits until it is on the disk.

    Raises:
        OSError: It is something else, or cannot be written.
    """
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they are not there."""
    root = _root_of(path)
    if root is None:
        path.mkdir(parents=True, exist_ok=True)
        return
    parts = path.relative_to(root[0]).parts
    for length in range(1, len(parts) + 1):
        with _parent(root[0].joinpath(*parts[:length])) as (folder, name):
            try:
                os.close(os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder))
            except FileNotFoundError:
                os.mkdir(name, dir_fd=folder)


def move(source: Path, target: Path) -> None:
    """Puts a file or folder in the place of another file, or where nothing is."""
    with _parent(source) as (before, old), _parent(target) as (after, new):
        os.replace(old, new, src_dir_fd=before, dst_dir_fd=after)


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one; of a link, the link only."""
    try:
        with _parent(path) as (folder, name):
            if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return


def open_folder(path: Path) -> int:
    """Returns a descriptor of a folder.

    Raises:
        OSError: It is something else, or cannot be opened; names the path.
    """
    with _parent(path) as (folder, name):
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


def sync(path: Path) -> None:
    """Waits until a file, or a folder's entries, are on the disk."""
    with _parent(path) as (folder, name):
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_entry(path: Path) -> None:
    """Waits until a path's entry in its folder is on the disk."""
    with _parent(path) as (folder, _):
        os.fsync(folder)


def _root_of(path: Path) -> tuple[Path, int] | None:
    """The innermost run folder that a path is or lies below, with its descriptor; None outside of all."""
    return next((root for root in reversed(_roots) if root[0] in (path, *path.parents)), None)


@contextmanager
def _parent(path: Path) -> Iterator[tuple[int, str]]:
    """The descriptor of the folder that a path lies in, and its name there; errors of the block name the path."""
    root = _root_of(path)
    opened = []
    try:
        if root is None:
            opened.append(os.open(path.parent, _FOLDER))
            name = path.name or "."
        else:
            *folders, name = path.relative_to(root[0]).parts or (".",)
            opened.append(os.dup(root[1]))
            for folder in folders:
                opened.append(os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=opened[-1]))
        yield opened[-1], name
    except OSError as error:
        said = _SAID if error.errno in _STRANGE else error.strerror
        raise OSError(error.errno, said, str(path)) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
