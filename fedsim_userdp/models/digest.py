"""What a model's weights are: a digest of the whole files that decide them, the same wherever the files lie."""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from transformers.utils import cached_file

from fedsim_userdp.errors import ModelError

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
# How the files of weights are called that can run code when they are read, or are not of this software.
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".onnx")
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
    if _ADAPTER in files:
        raise ModelError(
            f"model.path={location} holds an adapter ({_ADAPTER}), which needs its base model: give the base model"
            f"{_base_of(files[_ADAPTER])}, or what merge_and_unload() makes of both"
        )
    if _CONFIG not in files:
        raise ModelError(
            f"model.path={location} holds no {_CONFIG}: give a folder with a whole model"
            if folder.is_dir()
            else f"model.path={location} {_NOWHERE}: {_no_files()}"
        )
    shards = _shards(location, files[_INDEX]) if _INDEX in files and _WEIGHTS not in files else []
    if missing := [name for name in shards if name not in files]:
        raise ModelError(
            f"model.path={location}: {missing[0]} is missing, one of {len(missing)} files that its index names and "
            "that are not there: fetch or save the model again"
        )
    if not shards and _WEIGHTS not in files:
        raise ModelError(f"model.path={location} holds no safetensors file that is a whole model: {_instead(folder)}")
    return files


def _base_of(adapter_config: Path) -> str:
    """The name of the base model of an adapter in words; empty where it says none."""
    try:
        name = json.loads(adapter_config.read_bytes())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" ({name})" if isinstance(name, str) and name.isprintable() else ""


def _instead(folder: Path) -> str:
    """What a folder holds in place of weights that can be loaded, and what to do."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    if found := [name for name in names if name.endswith(".safetensors")]:
        return f"{found[0]} is not called {_WEIGHTS}, and no {_INDEX} names it: fetch or save the model again"
    if found := [name for name in names if name.endswith(_OTHER_WEIGHTS)]:
        return (
            f"{found[0]} is of a format that is not read here, since reading it can run code: save the model in "
            "safetensors by save_pretrained"
        )
    return "save the model in that format by save_pretrained"


def _files_of_folder(folder: Path) -> dict[str, Path]:
    """Files of a local model."""
    known = (_CONFIG, _INDEX, _ADAPTER)
    return {
        file.name: file
        for file in folder.iterdir()
        if (file.name in known or file.name.endswith(".safetensors")) and file.is_file()
    }


def _files_of_hub(name: str) -> dict[str, Path]:
    """Files of a model in the Hub's local cache, fetched where they are not there."""
    files = {file: found for file in (_CONFIG, _ADAPTER) if (found := _fetched(name, file))}
    if _ADAPTER in files or _CONFIG not in files:
        return files
    if weights := _fetched(name, _WEIGHTS):
        files[_WEIGHTS] = weights
    if _WEIGHTS not in files and (index := _fetched(name, _INDEX)):
        shards = {file: found for file in _shards(name, index) if (found := _fetched(name, file))}
        files |= {_INDEX: index, **shards}
    return files


def check_exists(location: str) -> None:
    """Raises ModelError where a path or a Hub name stands for nothing that can be had."""
    if not Path(location).exists() and not (_fetched(location, _CONFIG) or _fetched(location, _ADAPTER)):
        raise ModelError(f"model.path={location} {_NOWHERE}: {_no_files()}")


_NOWHERE = "is no folder or file here, and no model that can be had from the Hub"


def _fetched(name: str, file: str) -> Path | None:
    """One file of a Hub model, or None where it has no such file."""
    try:
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path={name} {_NOWHERE}: {_why_not_had(error)}") from error
    return Path(found) if found else None


def _no_files() -> str:
    """Why the Hub gives no file without an error."""
    if constants.is_offline_mode():
        return "its files are not in the Hub's cache on this machine, and the Hub is not asked (HF_HUB_OFFLINE)"
    return "it has no config.json there"


def _why_not_had(error: BaseException | None) -> str:
    """What the Hub's client says, in words."""
    while error is not None:
        for kind, words in _REASONS:
            if isinstance(error, kind):
                return words
        error = error.__cause__ or error.__context__
    return "it is not in the Hub's cache on this machine, and the Hub cannot be reached"


_REASONS = (
    (HFValidationError, "it is no name of a model there"),
    (GatedRepoError, "its owner wants to be asked for it there first"),
    (RepositoryNotFoundError, "there is none of that name, or it is private"),
    (OfflineModeIsEnabled, "it is not in the Hub's cache on this machine, and the Hub is not asked (HF_HUB_OFFLINE)"),
)


def _shards(location: str, index: Path) -> list[str]:
    """Names of the files that an index divides the weights among."""
    return sorted(set(_weight_map(location, index).values()))


def indexed_places(location: str, files: Mapping[str, Path]) -> dict[str, str]:
    """Returns the file that each tensor is in according to the index of a model; empty where there is no need of one.

    Raises:
        ModelError: the index cannot be read.
    """
    return _weight_map(location, files[_INDEX]) if _INDEX in files and _WEIGHTS not in files else {}


def _weight_map(location: str, index: Path) -> dict[str, str]:
    """What an index says: names of tensors to names of files."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model.path={location}: {_INDEX} cannot be read ({error})") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ModelError(
            f"model.path={location}: {_INDEX} has no weight_map of tensors to files: fetch or save the model again"
        )
    return found


def _piece_digest(file: Path, start: int) -> str:
    """The digest of a piece of a file."""
    with file.open("rb") as opened:
        opened.seek(start)
        return hashlib.sha256(opened.read(_PIECE)).hexdigest()
