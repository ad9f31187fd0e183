"""How surprising a record is to the frozen public base model, for choosing records by perplexity."""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel

from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.losses import record_losses


class BaseModelScorer:
    """Maps a user's records to their mean token losses under the base model.

    Loads the model at the first call and leaves it behind when pickled.  A user's records are scored as one batch of
    their own, so that no other user's text can change the numbers.

    Args:
        source: the base model; it must not have been trained on these users.
        batch_size: records scored at once.
    """

    def __init__(self, source: ModelSource, batch_size: int = 64) -> None:
        self.source, self.batch_size = source, batch_size

    def __call__(self, records: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the records' mean token losses in nats, float64, shape [len(records)]."""
        starts = range(0, len(records), self.batch_size)
        return np.concatenate([self._scores(records[start : start + self.batch_size]) for start in starts])

    @torch.inference_mode()
    def _scores(self, records: Sequence[np.ndarray]) -> np.ndarray:
        """The losses of one batch."""
        batch = collate([Unit(i, [record]) for i, record in enumerate(records)], self.source.torch_device)
        return record_losses(self._model, batch).cpu().double().numpy()

    @cached_property
    def _model(self) -> PreTrainedModel:
        """The frozen model."""
        return self.source.load()

    def fingerprint(self) -> str:
        """Returns a hex digest of the model's weights, which name the score cache."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __getstate__(self) -> dict[str, object]:
        """What is pickled: everything but the loaded model."""
        return {"source": self.source, "batch_size": self.batch_size}
