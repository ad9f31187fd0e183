"""Choosing records by how surprising they are to a frozen public model; scores are kept on disk."""

from __future__ import annotations

import copy
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.cache import require_writable
from fedsim_userdp.data.corpus import DataError
from fedsim_userdp.data.records import Tokens, check_bound, smallest

ScoreFn = Callable[[Sequence[Tokens]], NDArray[np.float64]]


class PerplexityRecords:
    """The k records on which a frozen model's mean token loss is highest, or lowest.

    Perplexity is exp(mean token loss), so ranking by either is the same. A record whose score is not finite
    comes last either way. Nothing is chosen before a scorer is bound.

    Args:
        highest: True for the most surprising records, False for the least.
        score_fn: Maps a user's records to their mean token losses in nats, shape [len(records)]. It must depend on
            these records and a public model only.

    Assumes: the model behind `score_fn` was not trained on these users.
    """

    fresh = False

    def __init__(self, highest: bool = True, score_fn: ScoreFn | None = None) -> None:
        self.highest = highest
        self.score_fn = score_fn

    def bind(self, score_fn: ScoreFn) -> Self:
        """Returns a copy of this selector that ranks by `score_fn`."""
        bound = copy.copy(self)
        bound.score_fn = score_fn
        return bound

    def select(self, records: Sequence[Tokens], k: int, generator: np.random.Generator) -> list[Tokens]:
        """Returns min(k, len(records)) records, the most extreme first.

        Raises:
            ValueError: k < 1, no scorer is bound, or it returned another number of scores.
        """
        check_bound(k)
        if len(records) <= k:
            return list(records)
        if self.score_fn is None:
            raise ValueError("no score_fn: call bind(score_fn) with the frozen model's mean token losses first")
        scores = np.asarray(self.score_fn(records), np.float64)
        if scores.shape != (len(records),):
            raise ValueError(f"score_fn must return shape ({len(records)},), got {scores.shape}")
        ranked = np.where(np.isfinite(scores), -scores if self.highest else scores, np.inf)
        return [records[index] for index in smallest(ranked, k)]


class CachedScores:
    """A score function that keeps what it computes in one SQLite file, safe under several processes.

    A score is keyed by all of a user's records together, so that what a user gets never depends on which other
    user was scored first. The file says something about users' text: it is as private as the text.

    Args:
        score_fn: What to call for records not seen before.
        folder: Folder of the file, made if need be.
        corpus: Fingerprint of the token store, a hex digest.
        model: Fingerprint of the scoring model, a hex digest.

    Raises:
        DataError: the file cannot be opened or written.
    """

    def __init__(self, score_fn: ScoreFn, folder: Path, *, corpus: str, model: str) -> None:
        self.score_fn = score_fn
        key = hashlib.blake2b(repr((corpus, model)).encode(), digest_size=16).hexdigest()
        self.path = folder / f"scores-{key}.sqlite"
        require_writable(folder)
        try:
            self.path.touch(mode=0o600)
        except OSError as error:
            raise DataError(f"{self.path}: score cache cannot be used ({error}); delete it") from error
        self._run("CREATE TABLE IF NOT EXISTS scores (records BLOB PRIMARY KEY, losses BLOB NOT NULL)", ())

    def __call__(self, records: Sequence[Tokens]) -> NDArray[np.float64]:
        """Returns the scores of one user's records, shape [len(records)]."""
        key = digest_records(records)
        found = self._run("SELECT losses FROM scores WHERE records = ?", (key,))
        if found and len(found[0][0]) == 8 * len(records):
            return np.frombuffer(found[0][0], "<f8").astype(np.float64)
        scores = np.asarray(self.score_fn(records), "<f8")
        self._run("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, scores.tobytes()))
        return scores.astype(np.float64)

    def _run(self, statement: str, values: tuple[bytes, ...]) -> list[tuple[bytes]]:
        """Runs one statement in its own connection and transaction."""
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: score cache cannot be used ({error}); delete it") from error


def digest_records(records: Sequence[Tokens]) -> bytes:
    """Returns a 16-byte digest of the token ids and of where each record ends."""
    digest = hashlib.blake2b(np.array([len(record) for record in records], "<i8").tobytes(), digest_size=16)
    for record in records:
        digest.update(np.ascontiguousarray(record, "<i8").tobytes())
    return digest.digest()
