"""Checkpoints: the adapter, the optimizer and what was noted so far, written whole or not at all.

Everything random is addressed by (run key, stream, round, user), so no generator's state has to be kept.  A checkpoint
is safetensors and JSON, sealed by checksums: reading one runs no code, and damage is noticed.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsim_userdp.errors import CheckpointError, PluginError
from fedsim_userdp.naming import naming
from fedsim_userdp.plain_files import make_folder, move, read_file, remove, sync, write_file
from fedsim_userdp.plugins import calling, class_name
from fedsim_userdp.training.schedule import OptimizerFn, new_optimizer, options_of

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointFolder",
    "check_comes_back",
    "load_optimizer_tensors",
    "optimizer_tensors",
    "tensors_to_write",
]

FORMAT = 2
_CODE = "code of "  # before the name of a class, in an origin
_TENSORS, _NOTES = "state.safetensors", "checkpoint.json"
_log = logging.getLogger(__name__)


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
        origin: what a run is besides its state, name to value: a hash of its settings, of its data, versions of the
            code, and as "code of CLASS" a hash of its source.  A checkpoint of another origin is refused.
        keep: how many of the latest checkpoints stay, at least 1.
        allow_changes: whether a checkpoint of another origin is taken all the same, with a warning.
        fixed: names of the origin that must be the same in any case, since what a run claims rests on them.
    """

    def __init__(
        self,
        path: Path,
        origin: Mapping[str, str],
        keep: int = 2,
        *,
        allow_changes: bool = False,
        fixed: Collection[str] = (),
    ) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep={keep} must be at least 1")
        self.path, self.origin, self.keep, self.allow_changes = path, dict(origin), keep, allow_changes
        self._fixed = frozenset(fixed)

    def write(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint: temporary folder, fsync, rename; then drops all but the last `keep` up to its round.

        Raises:
            OSError: when the disk is full or broken, naming the file or folder; earlier checkpoints are as they were.
        """
        with naming(self.path):
            self._write(checkpoint)

    def _write(self, checkpoint: Checkpoint) -> None:
        """See `write`."""
        make_folder(self.path)
        final = self.path / f"round-{checkpoint.round:08d}"
        temporary, replaced = self.path / f".{final.name}.new", self.path / f".{final.name}.replaced"
        _drop(self.path.glob(".round-*"))  # left by a process that was killed
        make_folder(temporary)
        try:
            tensors = save(_named(checkpoint))
            _write_synced(temporary / _TENSORS, tensors)
            _write_synced(temporary / _NOTES, self._described(checkpoint, tensors))
            sync(temporary)
        except OSError:
            with suppress(OSError):
                remove(temporary)  # room for the rest of the folder
            raise
        if final.exists():  # damaged, or the run would have gone on after it
            move(final, replaced)
        move(temporary, final)
        sync(self.path)
        found = self._by_round()
        older = [folder for round, folder in found.items() if round <= checkpoint.round][: -self.keep]
        later = [folder for round, folder in found.items() if round > checkpoint.round]
        _drop([*older, *later, replaced])

    def latest(self) -> Checkpoint | None:
        """Returns the latest checkpoint that is whole, or None when there is none; damaged ones get a warning.

        Raises:
            CheckpointError: when it is of another origin or format.
        """
        for folder in reversed(self._by_round().values()):
            try:
                body, tensors = _read(folder)
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
                _log.warning("%s is damaged (%s) and is passed over", folder, error)
                continue
            self._check_origin(folder, body)
            return _restored(folder, body, tensors)
        return None

    def exist(self) -> bool:
        """Returns whether there are checkpoints, damaged ones included."""
        return bool(self._by_round())

    def _described(self, checkpoint: Checkpoint, tensors: bytes) -> bytes:
        """The content of the JSON file."""
        body = {
            "format": FORMAT,
            "round": checkpoint.round,
            "origin": self.origin,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "notes": checkpoint.notes,
        }
        return json.dumps({**body, "seal": _seal(body)}).encode()

    def _check_origin(self, folder: Path, body: Mapping[str, object]) -> None:
        """Raises CheckpointError, or warns, where a sound checkpoint comes from something else than this run."""
        if body.get("format") != FORMAT:
            raise CheckpointError(f"{folder} has format {body.get('format')} instead of this version's {FORMAT}")
        before = body.get("origin")
        before = before if isinstance(before, dict) else {}
        names = sorted(before.keys() | self.origin.keys())
        changed = [name for name in names if before.get(name) != self.origin.get(name)]
        changes = [_changed(name, before.get(name), self.origin.get(name)) for name in changed]
        if fixed := self._fixed.intersection(changed):
            raise CheckpointError(
                f"{folder} belongs to something else: {'; '.join(changes)}: go back to what it was; "
                f"{' and '.join(sorted(fixed))} cannot change within a run"
            )
        if changes and not self.allow_changes:
            raise CheckpointError(
                f"{folder} belongs to something else: {'; '.join(changes)}: go back to what it was, or set "
                "checkpoint.allow_changes=true to go on all the same"
            )
        for change in changes:
            _log.warning("%s: %s", folder, change)

    def _by_round(self) -> dict[int, Path]:
        """Folders of checkpoints by round, oldest first; leftovers of a killed process have other names."""
        found = {}
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            if (match := re.fullmatch(r"round-([0-9]{8,10})", folder.name)) and folder.is_dir():
                found[int(match.group(1))] = folder
        return dict(sorted(found.items()))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the optimizer's state by "<parameter number>.<key>"; plain numbers become 0-d tensors.

    Raises:
        CheckpointError: when there is something else in it.
        PluginError: when a class of the user's own raises.
    """
    return {name: _as_tensor(name, value) for name, value in _state_of(optimizer).items() if value is not None}


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], optimizer_fn: OptimizerFn
) -> None:
    """Puts `optimizer_tensors` back; the optimizer must be over the same parameters in the same order.

    Args:
        optimizer: a new one, which takes the state.
        tensors: what a checkpoint holds of it.
        optimizer_fn: what makes such an optimizer; another one is tried out.

    Raises:
        CheckpointError: when they are not what such an optimizer has after a step.
        PluginError: when a class of the user's own raises.
    """
    trial = _after_a_step(optimizer, optimizer_fn)
    expected, kinds = optimizer_tensors(trial), _state_of(trial)
    wrong = sorted(expected.keys() ^ tensors.keys()) or [
        name for name, tensor in expected.items() if tensor.shape != tensors[name].shape
    ]
    if wrong:
        raise CheckpointError(f"the optimizer's state in the checkpoint does not fit at {', '.join(wrong[:3])}")
    state: dict[int, dict[str, object]] = {}
    for name, kind in kinds.items():
        number, key = name.split(".", 1)
        state.setdefault(int(number), {})[key] = _as_it_was(tensors.get(name), kind)
    with calling("optimizer", optimizer, "load_state_dict()"):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    _put_back(optimizer, state)


def check_comes_back(optimizer: torch.optim.Optimizer, optimizer_fn: OptimizerFn) -> None:
    """Raises where a checkpoint does not give back the state of an optimizer that has taken a step.

    Args:
        optimizer: the optimizer.
        optimizer_fn: what makes such an optimizer.

    Raises:
        CheckpointError, PluginError: says what of it is lost.
    """
    written = optimizer_tensors(optimizer)
    with calling("optimizer", optimizer, "writing its state to a checkpoint"):
        content = save(_named(Checkpoint(1, {}, written, {})))
    fresh = new_optimizer(optimizer_fn, _copies(optimizer), optimizer.param_groups[0]["lr"])
    options = options_of(fresh)
    load_optimizer_tensors(fresh, _under("optimizer/", load(content)), optimizer_fn)
    if changed := [name for name, value in options_of(optimizer).items() if options.get(name) != value]:
        raise CheckpointError(
            f"step() changed {changed[0]} in param_groups, which no checkpoint holds: keep it in state"
        )
    again = optimizer_tensors(fresh)
    if lost := [name for name in written if name not in again or _bytes(again[name]) != _bytes(written[name])]:
        raise CheckpointError(f"its state does not come back out of a checkpoint at {_key(lost[0])}")


def tensors_to_write(optimizer: torch.optim.Optimizer, optimizer_fn: OptimizerFn, round: int) -> dict[str, Tensor]:
    """Returns `optimizer_tensors` for the checkpoint of a round; of a class of the user's own once they come back.

    Args:
        optimizer: after the step of the round.
        optimizer_fn: what makes such an optimizer.
        round: the round.

    Raises:
        PluginError: says what of its state no checkpoint gives back.
    """
    try:
        if not type(optimizer).__module__.startswith("torch.optim."):
            with torch.random.fork_rng(devices=[]):
                check_comes_back(optimizer, optimizer_fn)
        return optimizer_tensors(optimizer)
    except (CheckpointError, PluginError) as error:
        about = "" if isinstance(error, PluginError) else f"optimizer={class_name(optimizer)}: "
        raise PluginError(f"{about}{error} (in round {round}, which was released)") from error


def _state_of(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """What an optimizer keeps, by "<parameter number>.<key>", as it is."""
    with calling("optimizer", optimizer, "state_dict()"):
        state = optimizer.state_dict()["state"]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"its state_dict() has a state of class {type(state).__name__}, not a dictionary")
    found: dict[str, object] = {}
    for number, values in state.items():
        if not isinstance(number, int) or not isinstance(values, Mapping) or not all(map(_is_text, values)):
            raise CheckpointError(
                f"its state holds {str(number)[:80]!r}, which is no parameter's, or not by names: a checkpoint keeps "
                "tensors and numbers, as state[parameter][name]"
            )
        found |= {f"{number}.{key}": value for key, value in values.items()}
    return found


def _is_text(value: object) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def _as_tensor(name: str, value: object) -> Tensor:
    """A value of an optimizer's state as a checkpoint keeps it; CheckpointError where it keeps no such thing."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return torch.tensor(value)
    raise CheckpointError(
        f"its state has {_key(name)} of class {type(value).__name__}: a checkpoint keeps tensors and numbers only"
    )


def _as_it_was(tensor: Tensor | None, kind: object) -> object:
    """What a checkpoint holds of an optimizer's state, as the kind of value that the optimizer keeps it as."""
    if tensor is None:
        return None
    return tensor.to(kind.device, copy=True) if isinstance(kind, Tensor) else type(kind)(tensor.item())  # type: ignore[call-arg]


def _put_back(optimizer: torch.optim.Optimizer, state: Mapping[int, Mapping[str, object]]) -> None:
    """Puts values in an optimizer's state as they are: `load_state_dict` makes them the parameters' dtype."""
    for number, parameter in enumerate(_parameters_of(optimizer)):
        values = optimizer.state.get(parameter, {})
        values.update({key: value for key, value in state.get(number, {}).items() if key in values})


def _key(name: str) -> str:
    """The key of a parameter's state, in a sentence."""
    return repr(name.partition(".")[2][:80])


def _bytes(tensor: Tensor) -> bytes:
    """A tensor's kind, shape and content."""
    return save({"": tensor.contiguous()})


def _after_a_step(optimizer: torch.optim.Optimizer, optimizer_fn: OptimizerFn) -> torch.optim.Optimizer:
    """Another optimizer, over copies of the parameters, that has taken a step along zero.

    It is made anew: a copy of an optimizer lacks the attributes of its class.
    """
    copies = _copies(optimizer)
    trial = new_optimizer(optimizer_fn, copies, optimizer.param_groups[0]["lr"])
    for parameter in copies:
        parameter.grad = torch.zeros_like(parameter)
    with calling("optimizer", optimizer, "step()", "along zero, before the run goes on"):
        trial.step()
    return trial


def _copies(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Copies of an optimizer's parameters."""
    return [torch.nn.Parameter(parameter.detach().clone()) for parameter in _parameters_of(optimizer)]


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Returns the parameters of all groups of an optimizer, in the order of their numbers in its state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _named(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All tensors of a checkpoint under one roof."""
    tensors = {f"adapter/{name}": tensor.contiguous() for name, tensor in checkpoint.adapter.items()}
    return tensors | {f"optimizer/{name}": tensor.contiguous() for name, tensor in checkpoint.optimizer.items()}


def _read(folder: Path) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The description and the tensors in a folder; raises one of several errors when a file is missing or damaged."""
    body = json.loads(_content(folder / _NOTES))
    if not isinstance(body, dict) or body.pop("seal", None) != _seal(body):
        raise ValueError(f"{_NOTES} does not fit its checksum")
    data = _content(folder / _TENSORS)
    if hashlib.sha256(data).hexdigest() != body.get("sha256"):
        raise ValueError(f"{_TENSORS} does not fit its checksum")
    return body, load(data)


def _restored(folder: Path, body: Mapping[str, object], tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint of a sound description."""
    round, notes = body.get("round"), body.get("notes")
    if not isinstance(round, int) or folder.name != f"round-{round:08d}" or not isinstance(notes, dict):
        raise CheckpointError(f"{folder} does not hold the checkpoint of its round")
    return Checkpoint(round, _under("adapter/", tensors), _under("optimizer/", tensors), notes)


def _content(path: Path) -> bytes:
    """The bytes of a plain file."""
    return read_file(path)


def _seal(body: Mapping[str, object]) -> str:
    """A checksum over a description, in hexadecimal."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _short(value: object) -> str:
    """A value of an origin in a sentence; long digests by their beginning."""
    text = "absent" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def _changed(name: str, before: object, now: object) -> str:
    """That a value of an origin changed, in words; of code, by whose it is."""
    if name.startswith(_CODE):
        return f"the {name} changed"
    return f"{name} was {_short(before)} and is {_short(now)}"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _drop(folders: Iterable[Path]) -> None:
    """Removes folders where there are any; of a link, the link only."""
    for folder in folders:
        remove(folder)


def _write_synced(path: Path, data: bytes) -> None:
    """Writes a file and waits until it is on disk."""
    with naming(path):
        write_file(path, data)
