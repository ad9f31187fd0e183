"""Small models and users that every test can afford."""

import os
import sys

import absl.logging

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fedsim_userdp.models.adapters import attach_lora, factors, lora_layers
from fedsim_userdp.settings import LoraSettings
from fedsim_userdp.training.batches import Unit
from tests.simulations.zygote import Zygote, zygote

# dp_accounting brings absl, whose handler closes its stream when Hydra sets up logging: never pytest's captured one.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

VOCABULARY = 40


def small_gpt2(lora: LoraSettings | None = None, **changes: object) -> PeftModel:
    """A random GPT-2 (Conv1D layers, tied embeddings) with an adapter that already does something."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0,
        "eos_token_id": 0,
    }  # fmt: skip
    config = GPT2Config(**(sizes | changes))
    return _with_adapter(GPT2LMHeadModel(config), lora)


def small_llama(lora: LoraSettings | None = None, **changes: object) -> PeftModel:
    """A random Llama (Linear layers, rotary positions, grouped queries)."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16,
    }  # fmt: skip
    return _with_adapter(LlamaForCausalLM(LlamaConfig(**(sizes | changes))), lora)


def _with_adapter(base: torch.nn.Module, lora: LoraSettings | None) -> PeftModel:
    model = attach_lora(base.eval().requires_grad_(False), lora or LoraSettings(rank=2, freeze_a=False), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in lora_layers(model).values():
            factors(layer)[1].normal_(0, 0.1, generator=generator)
    return model


def ragged_units(num_units: int, seed: int = 0, most_records: int = 4) -> list[Unit]:
    """Users with 1 to `most_records` records of 2 to 12 tokens."""
    generator = np.random.default_rng(seed)
    return [
        Unit(
            index,
            [
                generator.integers(0, VOCABULARY, size=generator.integers(2, 13))
                for _ in range(generator.integers(1, most_records + 1))
            ],
            owner=f"user {index}",
        )
        for index in range(num_units)
    ]


@pytest.fixture(params=["gpt2", "llama"])
def any_model(request: pytest.FixtureRequest) -> PeftModel:
    """Each model family in turn."""
    return {"gpt2": small_gpt2, "llama": small_llama}[request.param]()


@pytest.fixture
def model() -> PeftModel:
    """The small GPT-2."""
    return small_gpt2()


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Starts `fedsim` in processes of its own, quickly."""
    with zygote(tmp_path_factory.mktemp("processes")) as started:
        yield started
