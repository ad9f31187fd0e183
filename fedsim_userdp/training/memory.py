"""How many tokens a micro-batch may hold: measured on the model itself, kept on disk between runs."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedsim_userdp.cache import read_answer, write_answer
from fedsim_userdp.models.adapters import trainable_state
from fedsim_userdp.models.stacked import stack
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import StepAddress, Unit, collate
from fedsim_userdp.training.gradients import UnitGradients
from fedsim_userdp.training.probe import vocabulary_size

# Part of the device's memory that activations may take; the rest is for the model, the corpus and other processes.
_SHARE = {"cpu": 0.2, "cuda": 0.5, "mps": 0.3}
# And part of it that the units' own adapters may take.
_ADAPTERS_SHARE = {"cpu": 0.05, "cuda": 0.15, "mps": 0.1}
# Beyond this nothing gets faster: on a CPU larger activations leave its caches, a GPU is busy.
_MOST_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 16384}
# What the backward pass holds besides what the forward pass saved.
_TRANSIENT = 2.0


def micro_batch_tokens(bytes_per_token: float, device: torch.device, longest: int) -> int:
    """Returns the padded tokens of a micro-batch, a power of two: what memory allows, at most what helps.

    It depends on the machine's memory, not on what is free at the moment, so that a resumed run chooses the same.

    Args:
        bytes_per_token: what training keeps for each token.
        device: where training runs.
        longest: tokens of the longest record; a micro-batch holds at least one.
    """
    allowed = _SHARE[device.type] * device_memory(device) / (_TRANSIENT * bytes_per_token)
    tokens = max(min(allowed, _MOST_TOKENS[device.type]), longest, 1)
    return int(2 ** int(np.log2(tokens)))


def units_in_memory(state: Mapping[str, Tensor], device: torch.device, copies: int) -> int:
    """Returns how many units a micro-batch may hold, at least 1, so that their adapters fit into the device's memory.

    Short records make micro-batches of many units; their adapters then need more than their activations.

    Args:
        state: the adapter.
        device: where training runs.
        copies: tensors of the adapter's size that a unit has at once.
    """
    adapter = 4 * sum(tensor.numel() for tensor in state.values())
    return max(1, int(_ADAPTERS_SHARE[device.type] * device_memory(device) / (copies * max(adapter, 1))))


def activation_bytes_per_token(gradients: UnitGradients, length: int) -> float:
    """Returns the bytes that a forward pass saves for the backward pass, for each token, the model's own left out.

    Args:
        gradients: computes the gradients, with its model.
        length: tokens of the two records that it is tried on, at least 2.
    """
    model = gradients.model
    device = next(model.parameters()).device
    records = np.random.default_rng(0).integers(0, vocabulary_size(model), size=(2, length))
    batch = collate([Unit(0, [records[0]]), Unit(1, [records[1]])], device)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        gradients(stack(trainable_state(model), 2, device), batch, StepAddress(key=RunKey.seeded(0)))
    return sum(saved.values()) / (2 * length)


def device_memory(device: torch.device) -> int:
    """Returns the bytes of memory of the device, of the machine for a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def remembered_measurement(question: str, cache_dir: Path, measure: Callable[[], float]) -> float:
    """Returns the answer to a question from the cache folder, measured and kept there when it is not known yet.

    Args:
        question: all that the answer depends on; its hash names the file.
        cache_dir: the cache folder; answers are in its folder `measurements`, made when need be.
        measure: returns the answer, in bytes per token; called when there is none, or not as it was written.
    """
    file = cache_dir / "measurements" / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
    answer = read_answer(file, question)
    if answer is None:
        answer = measure()
        write_answer(file, question, answer)
    return answer
