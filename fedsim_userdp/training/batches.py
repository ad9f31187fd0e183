"""Ragged records of many units packed into micro-batches with little padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsim_userdp.models.dropout import DropoutRows
from fedsim_userdp.models.stacked import RowsOfUnits

IGNORED = -100


@dataclass(frozen=True)
class Unit:
    """One privacy unit's training data for a step.

    Attributes:
        index: the caller's number for the unit.
        records: token ids of each record, each of shape [tokens] with at least 2 tokens; at least one record.
    """

    index: int
    records: Sequence[np.ndarray]


@dataclass(frozen=True)
class StepAddress:
    """Where in a run a gradient is computed; what dropout masks are drawn for."""

    round: int = 0
    local_step: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """Some units' records as one padded batch.

    Attributes:
        input_ids: token ids of each record but its last, shape [rows, length], int64, padded on the right.
        targets: next-token ids, shape [rows, length], int64, `IGNORED` where there is nothing to predict.
        rows: which unit each row belongs to.
        units: the units' `index`, in the order of their slices.
        num_tokens: tokens that are predicted, padding not counted.
    """

    input_ids: Tensor
    targets: Tensor
    rows: RowsOfUnits
    units: tuple[int, ...]
    num_tokens: int

    def of_unit(self, position: int) -> "MicroBatch":
        """Returns the batch of one unit alone, given by its place in `units`, without the others' padding."""
        chosen = self.rows.unit_of_row == position
        targets = self.targets[chosen]
        longest = int((targets != IGNORED).sum(1).max())
        return MicroBatch(
            input_ids=self.input_ids[chosen, :longest],
            targets=targets[:, :longest],
            rows=RowsOfUnits.from_counts([int(chosen.sum())], self.input_ids.device),
            units=(self.units[position],),
            num_tokens=int((targets != IGNORED).sum()),
        )

    def dropout_rows(self, at: StepAddress) -> DropoutRows:
        """Returns which dropout masks the rows get: those of the unit, and the record's place in it."""
        positions = self.rows.unit_of_row.tolist()
        first = {position: row for row, position in reversed(list(enumerate(positions)))}
        return DropoutRows(
            round=at.round,
            local_step=at.local_step,
            owners=[(self.units[position], row - first[position]) for row, position in enumerate(positions)],
            lengths=(self.targets != IGNORED).sum(1).tolist(),
        )


def micro_batches(units: Sequence[Unit], max_tokens: int, device: torch.device | str = "cpu") -> Iterator[MicroBatch]:
    """Yields the units in micro-batches of at most `max_tokens` padded tokens (always at least one unit).

    Units are sorted by number of records and by longest record, so that padding stays small and most
    micro-batches are rectangular.

    Args:
        units: the units of a step; those without records must have been left out.
        max_tokens: bound on rows * length of a micro-batch, at least 1.
        device: where the tensors go.
    """
    pending: list[Unit] = []
    rows = longest = 0
    for unit in sorted(units, key=_size):
        count, length, _ = _size(unit)
        if pending and (rows + count) * max(longest, length) > max_tokens:
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
        input_ids=torch.from_numpy(input_ids).to(device),
        targets=torch.from_numpy(targets).to(device),
        rows=RowsOfUnits.from_counts([len(unit.records) for unit in units], device),
        units=tuple(unit.index for unit in units),
        num_tokens=sum(len(record) - 1 for record in records),
    )


def _size(unit: Unit) -> tuple[int, int, int]:
    """Sort key: number of records, longest record, then the index so that the order never varies."""
    return len(unit.records), max(map(len, unit.records)), unit.index
