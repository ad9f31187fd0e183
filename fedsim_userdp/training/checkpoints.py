"""Checkpoints: the adapter, the optimizer and what was noted so far, written whole or not at all.

Everything random is addressed by (seed, stream, round, user), so no generator's state has to be kept.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

FORMAT = 1
_TENSORS, _NOTES = "state.safetensors", "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be continued from, in one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """The state after a round.

    Attributes:
        round: the round, from 1.
        adapter: trainable tensors by name.
        optimizer: the optimizer's tensors by "<parameter number>.<key>".
        notes: whatever the run wants back, as JSON values.
    """

    round: int
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    notes: dict[str, object]


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        path: the folder; made when the first checkpoint is written.
        config_hash: of the run's configuration; a checkpoint of another one is refused.
        keep: how many of the latest checkpoints stay, at least 1.
    """

    def __init__(self, path: Path, config_hash: str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep={keep} must be at least 1")
        self.path, self.config_hash, self.keep = path, config_hash, keep

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint: temporary folder, fsync, rename; then drops those beyond the last `keep`."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = {f"adapter/{name}": tensor.contiguous() for name, tensor in checkpoint.adapter.items()}
        tensors |= {f"optimizer/{name}": tensor.contiguous() for name, tensor in checkpoint.optimizer.items()}
        data = save(tensors)
        notes = {
            "format": FORMAT,
            "round": checkpoint.round,
            "config_hash": self.config_hash,
            "sha256": hashlib.sha256(data).hexdigest(),
            "notes": checkpoint.notes,
        }
        temporary = self.path / f".round-{checkpoint.round:08d}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        _write_synced(temporary / _TENSORS, data)
        _write_synced(temporary / _NOTES, json.dumps(notes).encode())
        final = self._of_round(checkpoint.round)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_folder(self.path)
        for old in self._complete()[: -self.keep]:
            shutil.rmtree(old)

    def latest(self) -> Checkpoint | None:
        """Returns the latest checkpoint that is whole, or None when there is none.

        Raises:
            CheckpointError: when it belongs to another configuration or format.
        """
        for folder in reversed(self._complete()):
            if (found := self._read(folder)) is not None:
                return found
        return None

    def _read(self, folder: Path) -> Checkpoint | None:
        """The checkpoint in `folder`; None when a file is missing or damaged."""
        try:
            data = (folder / _TENSORS).read_bytes()
            notes = json.loads((folder / _NOTES).read_text(encoding="utf-8"))
            if hashlib.sha256(data).hexdigest() != notes["sha256"]:
                return None
            tensors = load(data)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None
        if notes.get("format") != FORMAT:
            raise CheckpointError(f"{folder}: format {notes.get('format')} is not this version's {FORMAT}")
        if notes.get("config_hash") != self.config_hash:
            raise CheckpointError(f"{folder} belongs to another configuration")
        return Checkpoint(
            int(notes["round"]), _under("adapter/", tensors), _under("optimizer/", tensors), notes["notes"]
        )

    def _of_round(self, round: int) -> Path:
        """The folder of a round."""
        return self.path / f"round-{round:08d}"

    def _complete(self) -> list[Path]:
        """Folders of checkpoints, oldest first; leftovers of a killed process have other names."""
        return sorted(self.path.glob("round-[0-9]*")) if self.path.is_dir() else []


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's state by "<parameter number>.<key>"; plain numbers become 0-d tensors."""
    return {
        f"{number}.{key}": value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
        for number, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts `optimizer_tensors` back; the optimizer must be over the same parameters in the same order."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _write_synced(path: Path, data: bytes) -> None:
    """Writes a file and waits until it is on disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Waits until the folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
