"""How surprising a record is to the frozen public base model, for choosing records by perplexity."""

import hashlib
import logging
import time
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedModel

from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.training.batches import Unit, collate
from fedsim_userdp.training.losses import record_losses

SECONDS_BETWEEN_WORDS = 10.0

_log = logging.getLogger(__name__)


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
        self._num_records = self._num_users = 0
        self._told_at = time.monotonic()

    def __call__(self, records: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the records' mean token losses in nats, float64, shape [len(records)]; tells of its progress."""
        starts = range(0, len(records), self.batch_size)
        losses = [self._scores(records[start : start + self.batch_size]) for start in starts]
        self._num_users += 1
        return np.concatenate(losses)

    @torch.inference_mode()
    def _scores(self, records: Sequence[np.ndarray]) -> np.ndarray:
        """The losses of one batch."""
        batch = collate([Unit(i, [record]) for i, record in enumerate(records)], self.source.torch_device)
        losses = record_losses(self._model, batch).cpu().double().numpy()
        self._num_records += len(records)
        if time.monotonic() - self._told_at >= SECONDS_BETWEEN_WORDS:
            _log.warning("scoring records: %s of %s users so far", f"{self._num_records:,}", f"{self._num_users + 1:,}")
            self._told_at = time.monotonic()
        return losses

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
        return {name: value for name, value in vars(self).items() if name != "_model"}
