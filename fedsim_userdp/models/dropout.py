"""LoRA dropout whose masks are addressed by run key, round, step, layer, user id and record, never by call order.

`nn.Dropout` would draw from global random state, so that a user's update would depend on who else is in the batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsim_userdp.privacy.streams import RunKey


@dataclass(frozen=True)
class DropoutRows:
    """Which masks the rows of a batch get.

    Attributes:
        key: what masks derive from.
        round: the round or step of the run.
        local_step: the unit's own step within the round, from 0.
        owners: for each row, the id of the record's user and the record's place among those chosen from the user.
        lengths: input tokens of each row without padding.
    """

    key: RunKey
    round: int
    local_step: int
    owners: Sequence[tuple[str, int]]
    lengths: Sequence[int]


class AddressedDropout(nn.Module):
    """Zeroes each feature of each token with probability `prob` and scales the rest; does nothing outside `dropping`.

    Args:
        prob: in (0, 1).
        layer: name of the adapted layer.
    """

    def __init__(self, prob: float, layer: str) -> None:
        super().__init__()
        self.prob, self.layer = prob, layer
        self.rows: DropoutRows | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Returns `x`, shape [rows, length, features], with the masks of the rows being trained on.

        Raises:
            ValueError: within `dropping`, when `x` has another shape or number of rows.
        """
        if self.rows is None:
            return x
        if x.ndim != 3 or len(x) != len(self.rows.owners):
            raise ValueError(f"lora.dropout: {self.layer} does not see its input as [rows, length, features]")
        return x * self._masks(x).to(x)

    def _masks(self, x: Tensor) -> Tensor:
        """The factors 0 and 1 / (1 - prob); 1 on padding."""
        rows = self.rows
        masks = np.ones(tuple(x.shape), dtype=np.float32)
        if rows is None:
            return torch.from_numpy(masks)
        for row, ((owner, record), length) in enumerate(zip(rows.owners, rows.lengths, strict=True)):
            address = repr((self.layer, owner, record, rows.local_step))
            drawn = rows.key.generator("training", round=rows.round, user=address)
            kept = drawn.random((length, x.shape[2]), dtype=np.float32) >= self.prob
            masks[row, :length] = kept / (1 - self.prob)
        return torch.from_numpy(masks)


def dropout_layers(model: nn.Module) -> list[AddressedDropout]:
    """Returns the model's LoRA dropout layers; empty where it has none."""
    return [module for module in model.modules() if isinstance(module, AddressedDropout)]


@contextmanager
def dropping(layers: Sequence[AddressedDropout], rows: DropoutRows | None) -> Iterator[None]:
    """Within the block, the layers drop what belongs to these rows."""
    try:
        for layer in layers:
            layer.rows = rows
        yield
    finally:
        for layer in layers:
            layer.rows = None
