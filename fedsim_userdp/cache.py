"""Answers kept on disk between processes. Losing the cache costs time only; a damaged entry is as good as none.

One JSON file for each question in the folder that `default_cache_dir` names. A file holds its whole question, so that a
collision or a stale version is noticed, and a checksum, so that an answer that was changed since is.
"""

import functools
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import metadata
from pathlib import Path

from fedsim_userdp.errors import DataError

VARIABLE = "FEDSIM_CACHE_DIR"
_APP = "fedsim_userdp"
ALGORITHM_VERSION = 10  # to be raised whenever an answer of the accounting may change
_IS_USED: ContextVar[bool] = ContextVar("is_used", default=True)


def remembered(question: tuple[str | float, ...], compute: Callable[[], float], *, worth: bool) -> float:
    """Returns the answer to a question, from disk if it is there, and keeps a new one there.

    Args:
        question: What identifies the answer, apart from the versions of the software.
        compute: Called where the answer is not known. What it raises is passed on, and nothing is kept.
        worth: Whether the disk is used at all.
    """
    if not worth or not _IS_USED.get():
        return compute()
    key = json.dumps([ALGORITHM_VERSION, *_versions(), *question])
    try:
        folder = default_cache_dir()
    except ValueError:  # which a command refuses that keeps more there
        return compute()
    path = folder / "accounting" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    answer = read_answer(path, key)
    if answer is None:
        answer = compute()
        write_answer(path, key, answer)
    return answer


@contextmanager
def unused() -> Iterator[None]:
    """Within the block every answer is computed, whatever is on disk, and nothing is kept there."""
    token = _IS_USED.set(False)
    try:
        yield
    finally:
        _IS_USED.reset(token)


def default_cache_dir() -> Path:
    """Returns the folder of all that the package keeps between runs; it need not exist.

    It is $FEDSIM_CACHE_DIR, or this user's cache folder on the platform with `fedsim_userdp` in it.

    Raises:
        ValueError: This user has no home folder, and no variable names another place.
    """
    if chosen := os.environ.get(VARIABLE):
        return folder_of(chosen, VARIABLE)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / _APP
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / _APP
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / _APP


def path_of(path: str, setting: str) -> Path:
    """Returns a path with the tilde at its beginning expanded.

    Args:
        path: The path.
        setting: What gives it, for the message.

    Raises:
        ValueError: There is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{setting}={path}: it is not known which folder ~ stands for: give the whole path") from error


def folder_of(path: str, setting: str) -> Path:
    """Returns the folder of caches that a setting names; it need not exist.

    Args:
        path: The setting's value.
        setting: Its name, for the message.

    Raises:
        ValueError: It names none, or a file.
    """
    if not path.strip():
        raise ValueError(f"{setting}= names no folder: name one, or leave {setting} out")
    folder = path_of(path, setting)
    if folder.is_file():
        raise ValueError(f"{setting}={path} is a file: name a folder")
    return folder


def _home() -> Path:
    """This user's home folder."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise ValueError(
            f"this user has no home folder: set the environment variable {VARIABLE} to a folder for caches"
        ) from error


def require_writable(folder: Path) -> None:
    """Makes `folder` if need be, readable by this user only, and tries it by writing to it.

    Raises:
        DataError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(
            f"cache folder {folder} cannot be written ({error.strerror}); set {VARIABLE} or cache_dir to one that can"
        ) from error


@functools.cache
def _versions() -> tuple[str, ...]:
    """Versions of what computes the answers."""
    return tuple(metadata.version(name) for name in ("dp_accounting", "numpy", "scipy"))


def read_answer(path: Path, question: str) -> float | None:
    """Returns the finite answer to `question` that `write_answer` put into a file, None where it is not there whole."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    answer = entry.get("answer") if isinstance(entry, dict) else None
    if not isinstance(answer, float) or not math.isfinite(answer):
        return None
    return answer if entry == _entry(question, answer) else None


def write_answer(path: Path, question: str, answer: float) -> None:
    """Puts an answer into a file at once, so that a reader sees all of it or nothing; a full disk is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False, encoding="utf-8") as file:
            json.dump(_entry(question, float(answer)), file)
        os.replace(file.name, path)
    except OSError:
        return


def _entry(question: str, answer: float) -> dict[str, str | float]:
    """What a file holds: the question, the answer and a checksum of both."""
    seal = hashlib.sha256(json.dumps([question, answer]).encode()).hexdigest()
    return {"question": question, "answer": answer, "sha256": seal}
