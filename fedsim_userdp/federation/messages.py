"""What server and nodes say to each other, as typed requests and replies over Flower's records."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from torch import Tensor

from fedsim_userdp.errors import NodeRefusal
from fedsim_userdp.privacy.clipping import ClippedSum
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.signals import Query
from fedsim_userdp.training.cohort import CohortUpdate

# How long a message stays valid after nobody waits for its answer any more; clocks of several machines may differ.
GRACE_SECONDS = 60.0


@dataclass(frozen=True)
class RunDescription:
    """What every request of a run says of it, so that all nodes train the same thing.

    Attributes:
        fingerprint: what a node's update depends on besides the request, name to digest: data, split, model, settings,
            code.  A node that has another answers with a refusal.
        settings: the resolved settings as JSON, for nodes that build their worker from them; empty where they have one.
        key: the nodes' key, for choices of records and for dropout masks; None where a node has it already.
    """

    fingerprint: Mapping[str, str] = field(default_factory=dict)
    settings: str = ""
    key: RunKey | None = None

    @property
    def mark(self) -> str:
        """A digest of the fingerprint, which every answer repeats; empty where there is none."""
        text = json.dumps(dict(self.fingerprint), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest() if self.fingerprint else ""

    def check(self, own: Mapping[str, str]) -> None:
        """Raises NodeRefusal unless a node's own fingerprint is this one; names what differs, and no digest."""
        names = sorted(self.fingerprint.keys() | own.keys())
        if differing := [name for name in names if self.fingerprint.get(name) != own.get(name)]:
            raise NodeRefusal(
                f"the node has another {', '.join(differing)} than the server: give every node the same data, model, "
                "settings and version"
            )


@dataclass(frozen=True)
class TrainRequest:
    """Asks a node for the sum of its sampled users' clipped updates.

    Attributes:
        state: the global adapter.
        round: the round, from 1.
        users: numbers of the sampled users that the node hosts.
        clip_norm: bound on the L2 norm of each user's update, above 0; infinity for no clipping.
        run: what the run is.
        weights: what each user's clipped update is multiplied by, at least 0; empty for 1.
        query: what the users send besides; None for nothing.
    """

    state: dict[str, Tensor]
    round: int
    users: tuple[int, ...]
    clip_norm: float
    run: RunDescription = field(default_factory=RunDescription)
    weights: tuple[float, ...] = ()
    query: Query | None = None


def to_arrays(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Returns the tensors as a Flower record of numpy arrays, float32."""
    return ArrayRecord({name: Array(tensor.detach().cpu().float().numpy()) for name, tensor in state.items()})


def from_arrays(arrays: ArrayRecord) -> dict[str, Tensor]:
    """Returns the record's tensors, float32, on the CPU."""
    return {name: torch.from_numpy(np.array(array.numpy(), dtype=np.float32)) for name, array in arrays.items()}


def write_request(
    arrays: ArrayRecord,
    round: int,
    users: Sequence[int],
    clip_norm: float,
    run: RunDescription,
    weights: Sequence[float] = (),
    query: Query | None = None,
) -> RecordDict:
    """Returns the message content of a `TrainRequest`; `arrays` is the encoded state, shared by a round's nodes."""
    config = ConfigRecord(
        {
            "round": round,
            "users": list(users),
            "weights": list(weights),
            "clip_norm": clip_norm,
            "groups": [] if query is None else [query.group_of[user] for user in users],
            "num_groups": 0 if query is None else query.num_groups,
            "bound": 0.0 if query is None else query.bound,
            "fingerprint": json.dumps(dict(run.fingerprint)),
            "settings": run.settings,
            "key": b"" if run.key is None else run.key.secret,
            "is_seeded": run.key is not None and run.key.is_seeded,
        }
    )
    return RecordDict({"arrays": arrays, "config": config})


def read_request(content: RecordDict) -> TrainRequest:
    """Returns the request in a train message.

    Raises:
        NodeRefusal: when it is not of this version's form.
    """
    try:
        return _read_request(content)
    except (KeyError, TypeError, ValueError) as error:
        raise NodeRefusal(
            "the node cannot read the request: give server and nodes one version of fedsim_userdp"
        ) from error


def _read_request(content: RecordDict) -> TrainRequest:
    """See `read_request`."""
    config = content.config_records["config"]
    secret = bytes(config["key"])  # type: ignore[arg-type]
    run = RunDescription(
        fingerprint=json.loads(str(config["fingerprint"])),
        settings=str(config["settings"]),
        key=RunKey(secret, bool(config["is_seeded"])) if secret else None,
    )
    num_groups, bound = int(config["num_groups"]), float(config["bound"])  # type: ignore[arg-type]
    users = tuple(int(user) for user in config["users"])  # type: ignore[union-attr]
    groups = [int(group) for group in config["groups"]]  # type: ignore[union-attr]
    return TrainRequest(
        state=from_arrays(content.array_records["arrays"]),
        round=int(config["round"]),  # type: ignore[arg-type]
        users=users,
        clip_norm=float(config["clip_norm"]),  # type: ignore[arg-type]
        run=run,
        weights=tuple(float(weight) for weight in config["weights"]),  # type: ignore[union-attr]
        query=Query(bound, num_groups, dict(zip(users, groups, strict=True))) if num_groups else None,
    )


def write_refusal(refusal: NodeRefusal) -> RecordDict:
    """Returns the message content of a node that will not do what it was asked."""
    return RecordDict({"refusal": ConfigRecord({"sentence": str(refusal)})})


def read_refusal(content: RecordDict) -> str | None:
    """Returns why a node refused, or None where it did not."""
    record = content.config_records.get("refusal")
    return None if record is None else str(record.get("sentence", "no reason given"))


def write_reply(update: CohortUpdate, run: RunDescription | None = None) -> RecordDict:
    """Returns the message content of a node's answer to a request of the run; None for one that says nothing of it."""
    clipped = update.clipped
    metrics = MetricRecord(
        {
            "num_units": clipped.num_units,
            "num_nonfinite": clipped.num_nonfinite,
            "num_clipped": clipped.num_clipped,
            "norm_sum": clipped.norm_sum,
            "loss_sum": update.loss_sum,
            "num_tokens": update.num_tokens,
            "signals": update.signals.ravel().tolist(),
        }
    )
    mark = ConfigRecord(
        {"mark": "" if run is None else run.mark, "failed": list(update.failed), "reason": update.reason}
    )
    return RecordDict({"arrays": to_arrays(clipped.total), "metrics": metrics, "run": mark})


def read_mark(content: RecordDict) -> str:
    """Returns the mark of the run that an answer is of; empty where it names none, as those of old versions do."""
    return str(content.config_records.get("run", ConfigRecord()).get("mark", ""))


def read_reply(content: RecordDict) -> CohortUpdate:
    """Returns a node's answer.

    Raises:
        KeyError: a record or number is missing.
        ValueError, TypeError, OverflowError, EOFError, MemoryError: what is there cannot be decoded.
    """
    metrics = content.metric_records["metrics"]
    return CohortUpdate(
        clipped=ClippedSum(
            total=from_arrays(content.array_records["arrays"]),
            num_units=int(metrics["num_units"]),  # type: ignore[arg-type]
            num_nonfinite=int(metrics["num_nonfinite"]),  # type: ignore[arg-type]
            num_clipped=int(metrics["num_clipped"]),  # type: ignore[arg-type]
            norm_sum=float(metrics["norm_sum"]),  # type: ignore[arg-type]
        ),
        loss_sum=float(metrics["loss_sum"]),  # type: ignore[arg-type]
        num_tokens=int(metrics["num_tokens"]),  # type: ignore[arg-type]
        signals=np.array(metrics["signals"], dtype=np.float64).reshape(2, -1),
        failed=tuple(int(user) for user in content.config_records["run"]["failed"]),  # type: ignore[union-attr]
        reason=str(content.config_records["run"].get("reason", "")),
    )
