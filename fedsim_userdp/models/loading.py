"""Causal language models and their tokenizers, by name or by path."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedsim_userdp.cache import default_cache_dir, folder_of, path_of
from fedsim_userdp.errors import ModelError
from fedsim_userdp.models.activations import checkpoint_activations
from fedsim_userdp.models.causal import refuse_looking_ahead
from fedsim_userdp.models.digest import check_exists, files_digest, model_files
from fedsim_userdp.models.frozen_layers import speed_up_frozen_layers
from fedsim_userdp.models.gguf import converted, gguf_digest, packaged_gguf
from fedsim_userdp.models.output_layer import answer_with_losses
from fedsim_userdp.models.precision import autocast_forward
from fedsim_userdp.models.whole import (
    MOST_LAYERS,
    described_layers,
    refuse_broken_config,
    refuse_incomplete,
    refuse_no_numbers,
    refuse_pointers,
    refuse_too_many_layers,
    tensor_shapes,
    within_sizes_of,
)
from fedsim_userdp.surroundings import quiet_libraries

TINY_MODEL = Path(__file__).parent / "tiny_gpt2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelSource:
    """Where a base model comes from; cheap to pickle, loads nothing by itself.

    Attributes:
        name: label in tables and files.
        path: a local folder in Hugging Face's format, a GGUF file, a name on the Hugging Face Hub, or None for
            `package`.
        package: an installed package that holds a GGUF file; None for the bundled tiny GPT-2.
        dtype: "float32" or "bfloat16".
        autocast: "bfloat16" to do a float32 model's matrix products in bfloat16, sums and the adapter staying float32;
            None for no mixed precision.
        device: "auto" (CUDA, else Apple MPS, else CPU), "cpu", "cuda" or "mps".
        activation_checkpointing: compute each block's activations again in the backward pass, to save memory.
        cache_dir: where converted GGUF files are kept; None for the package's cache folder.

    Raises:
        ModelError: when `dtype` or `autocast` is unknown, or `autocast` is set for a model that is not float32.
    """

    name: str = "tiny"
    path: str | None = None
    package: str | None = None
    dtype: str = "float32"
    autocast: str | None = None
    device: str = "auto"
    activation_checkpointing: bool = False
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"dtype={self.dtype} is unknown; expected one of {', '.join(DTYPES)}")
        if self.autocast not in (None, "bfloat16"):
            raise ModelError(f"autocast={self.autocast} is unknown; expected bfloat16 or null")
        if self.autocast is not None and self.dtype != "float32":
            raise ModelError(f"autocast={self.autocast} is for a float32 model, not for dtype={self.dtype}")

    @cached_property
    def location(self) -> str:
        """The folder or Hub name that is loaded; a GGUF file is converted when this is asked for first.

        Raises:
            ModelError: when `path` looks like a folder or file but is none, or a GGUF file cannot be converted.
        """
        if self.path is not None and not self.path.strip():
            raise ModelError("model.path= names no model: give a model folder, a GGUF file or a Hub name")
        file = Path(self._origin)
        if file.suffix == ".safetensors":
            raise ModelError(f"model.path={self._origin} is one file of a model: give the folder that it is in")
        if file.is_file():
            return str(
                converted(
                    file,
                    default_cache_dir() if self.cache_dir is None else folder_of(self.cache_dir, "model.cache_dir"),
                )
            )
        return self._origin

    @property
    def _origin(self) -> str:
        """The folder, GGUF file or Hub name that is meant."""
        if self.path is None and self.package is None:
            return str(TINY_MODEL)
        path = str(packaged_gguf(self.package) if self.path is None and self.package else self.path)
        looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(".gguf")
        found = path_of(path, "model.path")
        if looks_local and not found.exists():
            raise ModelError(f"model.path={path} does not exist: give a model folder, a GGUF file or a Hub name")
        return str(found) if found.exists() else path

    @property
    def asked_name(self) -> str:
        """The name by which the base model was asked for: on the Hub, of a package, or of a folder or file alone.

        It is what an adapter names as its base, on other machines too; where a folder lies is nobody's business there.
        """
        if self.path is None and self.package is not None:
            return self.package
        found = Path(self._origin)
        return Path(os.path.abspath(found)).name if found.exists() else str(self.path)

    def weights_digest(self) -> str:
        """Returns a hex digest of the whole files that decide the model's weights and shape.

        It is the same for a copy elsewhere and another for other weights.  A GGUF file has one of its own;
        a Hub model's files are fetched where they are not in the local cache.

        Raises:
            ModelError: when there is no whole model, or a file cannot be read.
        """
        if Path(self._origin).is_file():
            return gguf_digest(Path(self._origin))
        return files_digest(model_files(self._origin))

    @property
    def product_dtype(self) -> str:
        """What matrix products are done in: "float32" or "bfloat16"."""
        return self.autocast or self.dtype

    @cached_property
    def torch_device(self) -> torch.device:
        """The device that `device` stands for on this machine.

        Raises:
            ModelError: when this machine has no such device.
        """
        return choose_device(self.device)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer.

        Raises:
            ModelError: when there is none at `location`.
        """
        folder = Path(self.location)
        if folder.is_dir():
            refuse_broken_config(self.location, folder / "config.json")
            refuse_pointers(self.location, {file.name: file for file in folder.glob("*.json")})
            refuse_no_numbers(self.location, folder / "config.json")
        else:
            check_exists(self.location)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.location, trust_remote_code=False)
            is_empty = not tokenizer("the words of a text", add_special_tokens=False)["input_ids"]
        except Exception as error:  # readers of foreign files raise whatever they meet
            raise ModelError(f"model.path={self.location}: no tokenizer to load ({_first_line(error)})") from error
        if is_empty:  # which is made up where a folder has no files of one
            raise ModelError(f"model.path={self.location} holds no tokenizer that knows a word: give its files too")
        return tokenizer

    def context_length(self) -> int | None:
        """Returns the most tokens that the model reads at once; None where no configuration says it.

        Positions that are scaled when a batch is longer than some length (longrope, dynamic) end at that length: beyond
        it a record's gradient would depend on the longest record beside it, or on one of an earlier batch.
        """
        found = [self._configured("max_position_embeddings"), _fixed_positions(self._text_config())]
        return min((number for number in found if number), default=None)

    def vocabulary_size(self) -> int | None:
        """Returns how many different tokens the model knows; None where no configuration says it."""
        return self._configured("vocab_size")

    def _configured(self, name: str) -> int | None:
        """A positive number of the model's configuration; None where there is none."""
        number = getattr(self._text_config(), name, None)
        return number if isinstance(number, int) and number > 0 else None

    def _text_config(self) -> PretrainedConfig | None:
        """The configuration of what reads text, a part of the model's where it reads more; None without one."""
        try:
            if max(described_layers(Path(self.location, "config.json")).values(), default=0) > MOST_LAYERS:
                return None  # which would have a list of them
            return AutoConfig.from_pretrained(self.location, trust_remote_code=False).get_text_config()
        except Exception:  # noqa: BLE001 - whatever readers of foreign files raise; `load` says what is wrong
            return None

    def load(self) -> PreTrainedModel:
        """Returns the frozen model in eval mode on its device: no dropout, so that results repeat.

        Raises:
            ModelError: when there is no whole causal language model at `location`, or one whose layers mix users.
        """
        model = self._loaded()
        refuse_batch_statistics(model, self.location)
        if self.activation_checkpointing:
            checkpoint_activations(model)
        model = model.to(self.torch_device).eval().requires_grad_(False)
        refuse_looking_ahead(model, self.location, self.context_length())
        speed_up_frozen_layers(model)
        answer_with_losses(model)
        if self.autocast is not None:
            autocast_forward(model, DTYPES[self.autocast])
        model.name_or_path = self.asked_name
        return model

    def _loaded(self) -> PreTrainedModel:
        """The model as its files hold it, nothing of it made up."""
        transformers_logging.disable_progress_bar()
        files = model_files(self.location)
        refuse_pointers(self.location, files)
        refuse_no_numbers(self.location, files["config.json"])
        shapes = tensor_shapes(self.location, files)
        refuse_too_many_layers(self.location, files, len(shapes))
        try:
            config = AutoConfig.from_pretrained(self.location, trust_remote_code=False)
            if config.is_encoder_decoder:
                raise ModelError("it is an encoder-decoder, which reads its input as a whole: give a causal one")
            if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
                raise ModelError(f"{config.model_type} is not causal: give a causal language model")
            with within_sizes_of(shapes), quiet_libraries():  # what is not whole is refused by name below
                # No code and no pickle of the model's own: a prompt would ask whether to run the former.
                model, found = AutoModelForCausalLM.from_pretrained(
                    self.location,
                    dtype=DTYPES[self.dtype],
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                )
        except ModelError as error:
            raise ModelError(f"model.path={self.location}: {error}") from error
        except Exception as error:  # readers of foreign files raise whatever they meet
            raise ModelError(f"model.path={self.location}: no model to load ({_first_line(error)})") from error
        refuse_incomplete(model, found, self.location)
        loaded: PreTrainedModel = model
        return loaded


def refuse_batch_statistics(model: nn.Module, location: str) -> None:
    """Raises ModelError when a layer normalises over the batch: one user would see others, whatever is clipped."""
    found = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if found:
        raise ModelError(
            f"model.path={location}: {found[0]} normalises over the batch, so that a user's update would depend on "
            "other users and clipping would bound nothing; replace it by LayerNorm or GroupNorm"
        )


def choose_device(name: str) -> torch.device:
    """Returns the device called `name`, where "auto" takes the fastest that there is.

    Raises:
        ModelError: when this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        there = [kind for kind, is_there in available.items() if is_there]
        raise ModelError(f"model.device={name} is not available here; expected auto or one of {', '.join(there)}")
    return torch.device(name)


def _fixed_positions(config: PretrainedConfig | None) -> int | None:
    """Up to how many tokens every rotary position is what it is in a shorter batch; None for no such bound."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]
    bounds = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    return min((bound for bound in bounds if isinstance(bound, int)), default=None)


def _first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
