"""The files of a token store: flat arrays on disk, and one JSON file that describes and seals them."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import DataError
from fedsim_userdp.naming import naming

FORMAT = 3
META = "store.json"
SEAL = "sha256"

INDEX_DTYPES = {
    "record_offsets": "<i8",  # [num_records + 1] position of each record's first token in `tokens`
    "user_offsets": "<i8",  # [num_places + 1] position of each user's first record in `record_offsets`
    "id_bytes": "|u1",  # user ids in UTF-8, one after the other
    "id_offsets": "<i8",  # [num_places + 1] position of each user id in `id_bytes`
    "id_hashes": "<u8",  # [num_places] unkeyed 64-bit hash of each user id
}
# Only where some record names further owners. A source record is what the corpus gave, blank or not, in its order.
OWNER_DTYPES = {
    "owner_offsets": "<i8",  # [num_sources + 1] position of each source record's first owner in `owners`
    "owners": "<i8",  # index of an owner; owner i < num_places is user i, further ones have no record filed under them
    "source_users": "<i8",  # [num_sources] user that the source record is filed under
    "source_records": "<i8",  # [num_sources] number of its first stored record (window); 0 where it has none
    "source_windows": "<i8",  # [num_sources] how many stored records it has, 0 where it is blank
}


@dataclass(frozen=True)
class TokenStats:
    """What a store holds and what was left out on the way into it.

    Attributes:
        num_users: Users who have a record in the store.
        num_records: Records in the store; a window of a split record counts as one.
        num_tokens: Tokens in the store, marks of beginning and end included.
        num_words: Whitespace-separated words of these users' text, before tokenisation and dropping.
        num_owners: Distinct owners of source records, blank ones included, where records have several owners; else
            `num_users`.
        num_places: Users whom the corpus names, those without a record included; at least `num_users`.
        num_sources: Records as the corpus gave them, blank ones included.
        dropped: Number of things left out or repaired, by reason, from the corpus and from tokenisation.
        first_at: File and line where a reason first applied, where known.
    """

    num_users: int
    num_records: int
    num_tokens: int
    num_words: int = 0
    num_owners: int = 0
    num_places: int = 0
    num_sources: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    first_at: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArraySeal:
    """Type, length and SHA-256 of one array file."""

    dtype: str
    length: int
    sha256: str


@dataclass(frozen=True)
class StoreMeta:
    """The content of `store.json`."""

    fingerprint: str
    stats: TokenStats
    arrays: dict[str, ArraySeal]
    format: int = FORMAT


def array_path(folder: Path, name: str) -> Path:
    """Returns the path of array `name`."""
    return folder / f"{name}.bin"


def write_array(folder: Path, name: str, values: NDArray[np.generic]) -> ArraySeal:
    """Writes `values` (1-d) as a raw little-endian file, flushed to the disk, and returns its seal."""
    with array_path(folder, name).open("wb", buffering=0) as file:
        append_values(file, values)
    return seal_array(folder, name, values.dtype.str, len(values))


def append_values(file: FileIO, values: NDArray[np.generic]) -> None:
    """Writes `values` to an unbuffered file; numpy's own `tofile` passes over a full disk in silence.

    Raises:
        OSError: not all could be written; it names the file.
    """
    left = memoryview(values.tobytes())
    with naming(Path(str(file.name))):
        while left:
            left = left[file.write(left) :]


def seal_array(folder: Path, name: str, dtype: str, length: int) -> ArraySeal:
    """Flushes a written array file to the disk and returns its seal."""
    with array_path(folder, name).open("rb+") as file:
        os.fsync(file.fileno())
    return ArraySeal(dtype, length, _sha256(array_path(folder, name)))


def write_meta(folder: Path, meta: StoreMeta) -> None:
    """Writes `store.json`, the last file of a store, under a seal of its own; flushes it and the folder to the disk."""
    content = asdict(meta)
    with (folder / META).open("w", encoding="utf-8") as file:
        json.dump({**content, SEAL: _meta_seal(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_meta(folder: Path) -> StoreMeta:
    """Returns the content of `store.json` if it is what was written and every array file has the length it states.

    Raises:
        DataError: a file is missing, cut short, of another format version, or not what the writer wrote.
    """
    try:
        content = json.loads((folder / META).read_bytes())
        if content.pop(SEAL) != _meta_seal(content):
            raise DataError(f"{folder / META}: not what was written (SHA-256 differs); delete the store's folder")
        arrays = {name: ArraySeal(**seal) for name, seal in content["arrays"].items()}
        meta = StoreMeta(content["fingerprint"], TokenStats(**content["stats"]), arrays, content["format"])
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / META}: not a readable token store ({type(error).__name__}); delete it") from error
    if meta.format != FORMAT:
        raise DataError(f"{folder / META}: format {meta.format}, expected {FORMAT}; delete the folder")
    for name, seal in arrays.items():
        _check_size(array_path(folder, name), seal)
    return meta


def check_content(folder: Path, meta: StoreMeta) -> None:
    """Reads every array file through and compares it with its seal.

    Raises:
        DataError: a file's content has changed since it was written.
    """
    for name, seal in meta.arrays.items():
        if _sha256(array_path(folder, name)) != seal.sha256:
            raise DataError(f"{array_path(folder, name)}: corrupt (SHA-256 differs); delete the store's folder")


def content_digest(meta: StoreMeta) -> str:
    """Returns a hex digest of all arrays of a store, taken from their seals."""
    seals = {name: asdict(seal) for name, seal in meta.arrays.items()}
    return hashlib.sha256(json.dumps([meta.format, seals], sort_keys=True).encode()).hexdigest()


def map_array(folder: Path, name: str, meta: StoreMeta) -> NDArray[Any]:
    """Returns array `name`, read-only and mapped into memory: nothing is read before it is used."""
    seal = meta.arrays[name]
    if seal.length == 0:
        return np.empty(0, dtype=seal.dtype)
    with array_path(folder, name).open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), seal.dtype)


def release_pages(array: NDArray[Any]) -> None:
    """Gives back the memory that reading from a mapped array took; the system still caches the file."""
    mapping = getattr(array.base, "obj", array.base)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _meta_seal(content: dict[str, Any]) -> str:
    """SHA-256 of all else that `store.json` says, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_size(path: Path, seal: ArraySeal) -> None:
    """Raises DataError unless the file has the sealed length."""
    expected = seal.length * np.dtype(seal.dtype).itemsize
    found = path.stat().st_size if path.is_file() else -1
    if found != expected:
        raise DataError(f"{path}: {max(found, 0)} bytes, expected {expected}: corrupt; delete the store's folder")


def _sha256(path: Path) -> str:
    """SHA-256 of a file, in hex, read in chunks so that it never sits in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
