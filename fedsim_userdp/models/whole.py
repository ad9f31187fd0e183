"""Whether a model's files hold the whole model that its configuration describes.

Loaders complete what is missing with random numbers and allocate whatever sizes are written in a configuration.  Here
files are looked at first, without reading a tensor, and what was loaded is compared name by name.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.digest import indexed_places

# Settings that a model's code turns into so many layers, each with tensors of its own.
_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"),
    *("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"),
)
# Settings that are whole numbers of at least 1, or null where their reader knows what to do without.
_SIZES = frozenset(
    {
        *("vocab_size", "n_embd", "hidden_size", "d_model", "n_positions", "max_position_embeddings", "n_ctx"),
        *("n_head", "n_heads", "num_heads", "num_attention_heads", *_LAYERS),
    }
)
_NULLABLE_SIZES = frozenset({"n_inner", "intermediate_size", "ffn_dim", "num_key_value_heads", "head_dim"})
_NUMBERS = frozenset(
    {
        *("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "initializer_range", "rope_theta"),
        *("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "hidden_dropout", "dropout"),
    }
)
MOST_LAYERS = 100_000  # of a configuration that is read without its weights
# A model may have more tensors and numbers than its files: tied ones, masks, one tensor that is split into several.
_TIMES, _SPARE_TENSORS, _SPARE_NUMBERS = 4, 1_000, 1 << 27
_POINTER = b"version https://git-lfs.github.com/spec/"
_PREFIXES = {
    "_orig_mod.": "as torch.compile names them: save the model that was given to it, or rename the tensors",
    "base_model.model.": "as PEFT names them: merge the adapter by merge_and_unload() and save what it returns",
    "_fsdp_wrapped_module.": "as FSDP names them: save the full state of the model that it wraps",
    "module.": "as DataParallel names them: save the model that it wraps",
}
_NAMED = 3  # tensors that a sentence names


def refuse_pointers(location: str, files: Mapping[str, Path]) -> None:
    """Raises ModelError where a file is the pointer that Git leaves when Git LFS has not fetched the file itself."""
    for name, path in files.items():
        if path.is_file() and path.open("rb").read(len(_POINTER)) == _POINTER:
            raise ModelError(
                f"model.path={location}: {name} is a Git LFS pointer and not the file itself: fetch it by git lfs pull"
            )


def refuse_broken_config(location: str, config: Path) -> None:
    """Raises ModelError where a `config.json` is no JSON object, or has a kind or dtype that is none."""
    try:
        content = json.loads(config.read_bytes())
    except OSError:
        return  # whoever needs it says so
    except (ValueError, RecursionError) as error:
        raise ModelError(f"model.path={location}: config.json is no JSON ({error}): fetch or save it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"model.path={location}: config.json holds no settings by name: fetch or save it again")
    kind = content.get("model_type", "")
    if not isinstance(kind, str):
        raise ModelError(
            f"model.path={location}: config.json says model_type={json.dumps(kind)[:80]}, which must be a text"
        )
    for key in ("dtype", "torch_dtype"):
        dtype = content.get(key)
        if not isinstance(dtype, str) or dtype == "auto":
            continue
        if not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
            raise ModelError(
                f"model.path={location}: config.json says {key}={json.dumps(dtype)[:80]}, which is no dtype of torch"
            )


def refuse_too_many_layers(location: str, files: Mapping[str, Path], most: int) -> None:
    """Raises ModelError where a `config.json` describes more layers than `most`, the tensors that there are."""
    found = described_layers(files["config.json"])
    key = max(found, key=lambda key: found[key], default="")
    if key and not found[key] <= most:
        raise ModelError(
            f"model.path={location}: config.json says {key}={found[key]}, and its files hold {most} tensors: give the "
            "config.json that belongs to them"
        )


def refuse_no_numbers(location: str, config: Path) -> None:
    """Raises ModelError where a `config.json` has a text, null or a number out of range for one of a model's sizes."""
    for key, value in _settings(config):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if isinstance(value, list | dict) or (value is None and key not in _SIZES):
            continue  # one for each layer, or left to its reader
        if key in _SIZES | _NULLABLE_SIZES and not (is_number and isinstance(value, int) and value >= 1):
            wanted = "a whole number of at least 1"
        elif key in _NUMBERS and not (is_number and 0 <= value < math.inf):
            wanted = "a number of at least 0"
        else:
            continue
        raise ModelError(
            f"model.path={location}: config.json says {key}={json.dumps(value)[:80]}, which must be {wanted}: give the "
            "config.json that belongs to the model"
        )


_WEIGHTS = (".weight", ".bias")  # how names of weights end
_KINDS = ("F64", "F32", "F16", "BF16")  # of numbers that weights may be


def _is_weight(name: str, kind: str) -> bool:
    """Whether a tensor is a weight: by its name, or by its kind, which no mask or list of places has."""
    return name.endswith(_WEIGHTS) or kind[0] in "CF"


def described_layers(config: Path) -> dict[str, float]:
    """Returns how many layers a `config.json` describes, by setting; the largest where parts of it have the same."""
    found: dict[str, float] = {}
    for key, number in _numbers(config):
        if key in _LAYERS:
            found[key] = max(number, found.get(key, 0))
    return found


def tensor_shapes(location: str, files: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor of a model's safetensors files, by name; no tensor is read.

    Raises:
        ModelError: when a file is none of that format or is not whole, or its names are those of something that was
            wrapped around the model.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    places: dict[str, str] = {}
    for name, path in files.items():
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(path, "pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                shapes |= {key: tuple(one.get_shape()) for key, one in slices.items()}
                places |= dict.fromkeys(slices, name)
                kinds = {key: str(one.get_dtype()) for key, one in slices.items()}
        except (SafetensorError, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ModelError(
                f"model.path={location}: {name} is no whole safetensors file ({reason}): fetch or save it again"
            ) from error
        strange = [key for key, kind in kinds.items() if kind not in _KINDS and _is_weight(key, kind)]
        if strange:
            kind = kinds[strange[0]]
            held = "whole numbers" if kind[0] in "IU" else kind
            raise ModelError(
                f"model.path={location}: {name} holds weights as {held}, such as {strange[0]}: give a model whose "
                "weights are float32, float16 or bfloat16"
            )
    _refuse_other_places(location, indexed_places(location, files), places)
    for prefix, advice in _PREFIXES.items():
        if shapes and sum(key.startswith(prefix) for key in shapes) * 2 > len(shapes):
            raise ModelError(f"model.path={location}: its tensors' names begin with {prefix!r}, {advice}")
    return shapes


def _refuse_other_places(location: str, said: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Raises ModelError where an index says of a tensor that it is in a file in which it is not, or leaves one out."""
    problem = next(
        (
            f"says that {name} is in {file}, which does not hold it"
            for name, file in said.items()
            if found.get(name) != file
        ),
        "",
    )
    if said and not problem:
        problem = next(
            (
                f"does not name {name}, which {file} holds"
                for name, file in found.items()
                if name not in said and file in said.values()
            ),
            "",
        )
    if problem:
        raise ModelError(f"model.path={location}: its index {problem}: fetch or save the model again")


@contextmanager
def within_sizes_of(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """A block within which a model is described, before memory is taken, only as large as its files can fill.

    Raises:
        ModelError: from within, as soon as what is described has far more tensors or numbers than `shapes`.
    """
    held = sum(math.prod(shape) for shape in shapes.values())
    tensors, numbers = 0, 0

    def count(_: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, numbers
        if tensor is None or tensor.device.type != "meta":
            return
        tensors, numbers = tensors + 1, numbers + math.prod(tensor.shape)
        if tensors > _TIMES * len(shapes) + _SPARE_TENSORS or numbers > _TIMES * held + _SPARE_NUMBERS:
            raise ModelError(
                f"config.json describes {tensors} tensors of {numbers:,} numbers or more, such as a {name} of "
                f"{'x'.join(map(str, tensor.shape))}, and its files hold {len(shapes)} of {held:,}: give the "
                "config.json that belongs to them"
            )

    with ExitStack() as hooks:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            hooks.callback(register(count).remove)
        yield


def refuse_incomplete(model: nn.Module, found: Mapping[str, Any], location: str) -> None:
    """Raises ModelError where a loaded model is not what its files hold, naming tensors; tied ones may be left out.

    Args:
        model: the loaded model.
        found: what transformers says of the loading (`output_loading_info`).
        location: what was loaded.
    """
    problems = {
        "tensors are missing, which would be random": sorted(found["missing_keys"]),
        "tensors belong to no layer": sorted(found["unexpected_keys"]),
        "tensors are not of the shape that config.json says": [
            f"{name} ({'x'.join(map(str, held))} for {'x'.join(map(str, wanted))})"
            for name, held, wanted in sorted(found["mismatched_keys"])
        ],
        "tensors cannot be loaded": sorted(found.get("error_msgs", ())),
        "tensors hold numbers that are not finite": _not_finite(model),
    }
    said = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
    if said:
        raise ModelError(f"model.path={location} is no whole {type(model).__name__}: {'; '.join(said)}")


@torch.no_grad()
def _not_finite(model: nn.Module) -> list[str]:
    """The names of the tensors that hold NaN or infinity."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    return [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]


def _listed(names: list[str]) -> str:
    """The first few names and how many there are besides."""
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{rest}"


def _numbers(config: Path) -> Iterator[tuple[str, float]]:
    """The numbers of a `config.json` by key, those of its parts included; none where it cannot be read."""
    return ((key, value) for key, value in _settings(config) if isinstance(value, int | float))


def _settings(config: Path) -> Iterator[tuple[str, Any]]:
    """The settings of a `config.json` by key, those of its parts included; none where it cannot be read."""
    try:
        parts = [json.loads(config.read_bytes())]
    except (OSError, ValueError, RecursionError):
        return  # its reader says so
    while parts:
        part = parts.pop()
        for key, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, dict):
                parts.append(value)
            else:
                yield key, value
