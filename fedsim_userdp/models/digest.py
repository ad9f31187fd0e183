"""What a model's weights are: a digest of the whole files that decide them, the same wherever the files lie."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from transformers.utils import cached_file

from fedsim_userdp.models.errors import ModelError

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PIECE = 1 << 26  # bytes that are hashed at once; another number gives other digests


def files_digest(files: Mapping[str, Path], format: int = 1) -> str:
    """Returns a hex digest over names and whole contents of files; pieces of a file are hashed side by side.

    Args:
        files: name to path; names enter the digest, paths do not.
        format: whatever else the digest stands for.

    Raises:
        ModelError: when a file cannot be read.
    """
    try:
        sizes = {name: files[name].stat().st_size for name in sorted(files)}
        pieces = [(name, start) for name, size in sizes.items() for start in range(0, max(size, 1), _PIECE)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves Python's lock to others
            found = list(pool.map(lambda piece: _piece_digest(files[piece[0]], piece[1]), pieces))
    except OSError as error:
        raise ModelError(f"{error.filename or 'a file of the model'} cannot be read: {error.strerror}") from error
    content = [[name, sizes[name], digest] for (name, _), digest in zip(pieces, found, strict=True)]
    return hashlib.sha256(json.dumps([format, content]).encode()).hexdigest()


def model_files(location: str) -> dict[str, Path]:
    """Returns the files that decide what is loaded from a folder or a Hub name, by name; the latter's are fetched.

    They are the configuration, every safetensors file and the index of several; tokenizers are not among them.

    Raises:
        ModelError: when a file is missing.
    """
    folder = Path(location)
    files = _files_of_folder(folder) if folder.is_dir() else _files_of_hub(location)
    if _CONFIG not in files:
        place = (
            "a folder with a whole model" if folder.is_dir() else "a name whose files are on the Hub or in its cache"
        )
        raise ModelError(f"model.path={location} holds no {_CONFIG}: give {place}")
    shards = _shards(location, files[_INDEX]) if _INDEX in files and _WEIGHTS not in files else []
    if not shards and not any(name.endswith(".safetensors") for name in files):
        raise ModelError(f"model.path={location} holds no safetensors file: save the model in that format")
    if missing := [name for name in shards if name not in files]:
        raise ModelError(f"model.path={location}: {missing[0]} is missing, which its index names")
    return files


def _files_of_folder(folder: Path) -> dict[str, Path]:
    """Files of a local model."""
    known = (_CONFIG, _INDEX, "adapter_config.json")
    return {
        file.name: file
        for file in folder.iterdir()
        if (file.name in known or file.name.endswith(".safetensors")) and file.is_file()
    }


def _files_of_hub(name: str) -> dict[str, Path]:
    """Files of a model in the Hub's local cache, fetched where they are not there."""
    files = {file: found for file in (_CONFIG, _WEIGHTS) if (found := _fetched(name, file))}
    if _WEIGHTS not in files and (index := _fetched(name, _INDEX)):
        shards = {file: found for file in _shards(name, index) if (found := _fetched(name, file))}
        files |= {_INDEX: index, **shards}
    return files


def _fetched(name: str, file: str) -> Path | None:
    """One file of a Hub model, or None where it has no such file."""
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={name}: {file} cannot be had ({str(error).splitlines()[0]})") from error
    return Path(found) if found else None


def _shards(location: str, index: Path) -> list[str]:
    """Names of the files that an index divides the weights among."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model.path={location}: {_INDEX} cannot be read ({error})") from error


def _piece_digest(file: Path, start: int) -> str:
    """The digest of a piece of a file."""
    with file.open("rb") as opened:
        opened.seek(start)
        return hashlib.sha256(opened.read(_PIECE)).hexdigest()
