"""Ragged records of many units packed into micro-batches with little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim_userdp.models.devices import to_device
from fedsim_userdp.models.dropout import DropoutRows
from fedsim_userdp.models.stacked import RowsOfUnits
from fedsim_userdp.privacy.streams import RunKey

IGNORED = -100


@dataclass(frozen=True)
class Unit:
    """One privacy unit's training data for a step.

    Attributes:
        index: the caller's number for the unit.
        records: token ids of each record, each of shape [tokens] with at least 2 tokens; at least one record.
        owner: id of the user whose records these are; with `place`, what dropout masks are addressed by.
        place: number of the first of these records among those chosen from the user.
        weight: what the unit's clipped update is multiplied by, finite and at least 0.
    """

    index: int
    records: Sequence[np.ndarray]
    owner: str = ""
    place: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class StepAddress:
    """Where in a run a gradient is computed; what dropout masks are drawn for.

    Attributes:
        round: the round or step of the run.
        local_step: the unit's own step within the round, from 0.
        key: what masks derive from; None where nothing is dropped.
    """

    round: int = 0
    local_step: int = 0
    key: RunKey | None = None


@dataclass(frozen=True)
class MicroBatch:
    """Some units' records as one padded batch.

    Attributes:
        input_ids: token ids of each record but its last, shape [rows, length], int64, padded on the right.
        targets: next-token ids, shape [rows, length], int64, `IGNORED` where there is nothing to predict.
        predicted: where in the flattened `targets` there is something to predict, ascending, shape [tokens], int64.
        rows: which unit each row belongs to.
        members: the units, in the order of their slices.
    """

    input_ids: Tensor
    targets: Tensor
    predicted: Tensor
    rows: RowsOfUnits
    members: tuple[Unit, ...]

    @property
    def units(self) -> tuple[int, ...]:
        """The units' `index`, in the order of their slices."""
        return tuple(unit.index for unit in self.members)

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted, padding not counted."""
        return len(self.predicted)

    def of_unit(self, position: int) -> "MicroBatch":
        """Returns the batch of one unit alone, given by its place in `members`, without the others' padding."""
        return collate([self.members[position]], self.input_ids.device)

    def dropout_rows(self, at: StepAddress) -> DropoutRows:
        """Returns which dropout masks the rows get: those of the user, and the record's place among the user's.

        Raises:
            ValueError: when the address has no key.
        """
        if at.key is None:
            raise ValueError("lora.dropout: masks need a run key")
        return DropoutRows(
            key=at.key,
            round=at.round,
            local_step=at.local_step,
            owners=[(unit.owner, unit.place + i) for unit in self.members for i in range(len(unit.records))],
            lengths=[len(record) - 1 for unit in self.members for record in unit.records],
        )


def micro_batches(
    units: Sequence[Unit], max_tokens: int, device: torch.device | str = "cpu", *, max_units: int | None = None
) -> Iterator[MicroBatch]:
    """Yields the units in micro-batches of at most `max_tokens` padded tokens (always at least one unit).

    Units are sorted by number of records and by longest record, so that padding stays small and most
    micro-batches are rectangular.

    Args:
        units: the units of a step; those without records must have been left out.
        max_tokens: bound on rows * length of a micro-batch, at least 1.
        device: where the tensors go.
        max_units: bound on the units of a micro-batch, at least 1; None for no bound.
    """
    pending: list[Unit] = []
    rows = longest = 0
    for unit in sorted(units, key=_size):
        count, length, _ = _size(unit)
        is_full = (rows + count) * max(longest, length) > max_tokens or len(pending) == max_units
        if pending and is_full:
            yield collate(pending, device)
            pending, rows, longest = [], 0, 0
        pending.append(unit)
        rows, longest = rows + count, max(longest, length)
    if pending:
        yield collate(pending, device)


def collate(units: Sequence[Unit], device: torch.device | str = "cpu") -> MicroBatch:
    """Returns the units' records as one padded batch, each unit's rows together."""
    records = [record for unit in units for record in unit.records]
    input_ids = np.zeros((len(records), max(map(len, records)) - 1), dtype=np.int64)
    targets = np.full(input_ids.shape, IGNORED, dtype=np.int64)
    for row, record in enumerate(records):
        input_ids[row, : len(record) - 1] = record[:-1]
        targets[row, : len(record) - 1] = record[1:]
    return MicroBatch(
        input_ids=to_device(input_ids, device),
        targets=to_device(targets, device),
        predicted=to_device(np.flatnonzero(targets != IGNORED), device),
        rows=RowsOfUnits.from_counts([len(unit.records) for unit in units], device),
        members=tuple(units),
    )


def _size(unit: Unit) -> tuple[int, int, int]:
    """Sort key: number of records, longest record, then the index so that the order never varies."""
    return len(unit.records), max(map(len, unit.records)), unit.index
