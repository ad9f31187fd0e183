"""Causal language models and their tokenizers, by name or by path."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

TINY_MODEL = Path(__file__).parent / "tiny_gpt2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """A model that cannot be had or used, in one sentence."""


@dataclass(frozen=True)
class ModelSource:
    """Where a base model comes from; cheap to pickle, loads nothing by itself.

    Attributes:
        name: label in tables and files.
        path: a local folder in Hugging Face's format, a name on the Hugging Face Hub, or None for the bundled
            tiny GPT-2.
        dtype: "float32" or "bfloat16".
        device: "auto" (CUDA, else Apple MPS, else CPU), "cpu", "cuda" or "mps".
    """

    name: str = "tiny"
    path: str | None = None
    dtype: str = "float32"
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ModelError(f"model.dtype={self.dtype} is unknown; expected one of {', '.join(DTYPES)}")

    @property
    def location(self) -> str:
        """The folder or Hub name that is loaded."""
        return str(TINY_MODEL) if self.path is None else str(self.path)

    @cached_property
    def torch_device(self) -> torch.device:
        """The device that `device` stands for on this machine."""
        return choose_device(self.device)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Returns the tokenizer.

        Raises:
            ModelError: when there is none at `location`.
        """
        self._check_location()
        try:
            return AutoTokenizer.from_pretrained(self.location)
        except (OSError, ValueError) as error:
            raise ModelError(f"model.path={self.location}: no tokenizer to load ({_first_line(error)})") from error

    def load(self) -> PreTrainedModel:
        """Returns the frozen model in eval mode on its device: no dropout, so that results repeat.

        Raises:
            ModelError: when there is no causal language model at `location`.
        """
        self._check_location()
        transformers_logging.disable_progress_bar()
        try:
            model = AutoModelForCausalLM.from_pretrained(self.location, dtype=DTYPES[self.dtype])
        except (OSError, ValueError) as error:
            raise ModelError(f"model.path={self.location}: no model to load ({_first_line(error)})") from error
        return model.to(self.torch_device).eval().requires_grad_(False)

    def _check_location(self) -> None:
        """Raises ModelError when `path` looks like a folder but is none."""
        looks_local = self.location.startswith((".", "/", "~")) or self.location.count("/") > 1
        if looks_local and not Path(self.location).is_dir():
            raise ModelError(f"model.path={self.location} does not exist: give a model folder or a Hub name")


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


def _first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
