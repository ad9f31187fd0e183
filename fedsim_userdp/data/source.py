"""Files a corpus is read from: finding them, fingerprinting them, and saying where to get them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.errors import DataError

SPLIT = re.compile(r"(?:^|[\W_])(train(?:ing)?|test(?:ing)?|valid(?:ation)?|val|dev|eval)(?![^\W\d_])", re.IGNORECASE)
CHUNK_BYTES = 1 << 20
HASHED_IN_FULL_BYTES = 256 << 20


def require_path(path: str | Path | None, *, corpus: str, get_it: str) -> Path:
    """Returns `path` with `~` expanded if it exists.

    Args:
        path: The configured location, or None when nothing was configured.
        corpus: Name of the corpus, for the message.
        get_it: Where the corpus is to be had and which form is expected, a sentence without its full stop.

    Raises:
        DataError: no path was given, nothing is there, or neither a file nor a folder; says where to get the corpus
            and which key to set.
    """
    if path is None or not str(path):
        raise DataError(f"corpus {corpus!r} needs local files: {get_it}, then set data.path=PATH")
    try:
        found = Path(path).expanduser()
        found.stat()
        if not (found.is_file() or found.is_dir()):
            raise OSError(0, "is neither a file nor a folder")
    except FileNotFoundError as error:
        raise DataError(f"corpus {corpus!r}: {found} does not exist; {get_it}, then set data.path=PATH") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a loop of links, no home
        why = getattr(error, "strerror", None) or error
        raise DataError(f"corpus {corpus!r}: data.path={short(path)}: {why}; {get_it}") from error
    return found


def short(name: object, longest: int = 80) -> str:
    """Returns a name in quotes, control characters escaped, with its middle left out where it is long."""
    text = str(name)
    return repr(text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 :]}")


def fingerprint_files(files: Iterable[Path], settings: dict[str, object], *, root: Path | None = None) -> str:
    """Returns a hex digest of the files and of the loader's settings.

    A file of up to 256 MiB counts with its content, so that a copy elsewhere has the same fingerprint; a larger
    one with its size, modification time, first and last MiB. Below `root` (a folder of many small files) each
    file counts with its relative path, size and modification time.

    Args:
        files: The files, in a deterministic order.
        settings: Everything else that decides what the loader yields; JSON values.
        root: The folder the files lie in, if they are many.
    """
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for path in files:
        if root is None:
            digest.update(_content_mark(path))
        else:
            stat = path.stat()
            digest.update(repr((path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()


def files_in(path: Path, suffixes: tuple[str, ...], dropped: DropCounts | None = None) -> list[Path]:
    """Returns `path` itself if it is a file, else the files directly in it with one of the suffixes, sorted.

    Args:
        path: A file or a folder.
        suffixes: Which files of a folder are meant, in lower case.
        dropped: Where to count what else lies in the folder; None not to count.

    Raises:
        DataError: a folder without such files.
    """
    if path.is_file():
        return [path]
    files = sorted(path.iterdir())
    found = [file for file in files if file.suffix.lower() in suffixes and file.is_file()]
    if not found:
        raise DataError(f"{path}: no file with suffix {' or '.join(suffixes)} in this folder; set data.path=PATH")
    if dropped is not None:
        for other in sorted(set(files).difference(found)):
            dropped.add("file of another kind, or folder, beside the corpus' files", at=str(other))
    return found


def of_one_split(files: list[Path], folder: Path) -> list[Path]:
    """Returns the files of `folder` unless their names say that they are of several splits, such as train and test.

    Raises:
        DataError: they do; names the splits.
    """
    splits = {found[1].lower()[:3]: found[1].lower() for file in files if (found := SPLIT.search(file.stem))}
    if len(splits) > 1:
        names = ", ".join(sorted(splits.values()))
        raise DataError(
            f"{folder}: files of several splits ({names}): set data.path to one file, or to a folder with those of one"
        )
    return files


def _content_mark(path: Path) -> bytes:
    """Digest of a file's content, or of its size, time and both ends when it is large."""
    stat = path.stat()
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        if stat.st_size <= HASHED_IN_FULL_BYTES:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        else:
            digest.update(repr((stat.st_size, stat.st_mtime_ns)).encode() + file.read(CHUNK_BYTES))
            file.seek(-CHUNK_BYTES, 2)
            digest.update(file.read(CHUNK_BYTES))
    return digest.digest()
