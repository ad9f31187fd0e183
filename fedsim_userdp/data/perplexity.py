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

from fedsim_userdp.cache import require_writable
from fedsim_userdp.data.records import Tokens, check_bound, smallest
from fedsim_userdp.errors import DataError

POOL = 2000  # a few seconds of the bundled model

TABLE = "CREATE TABLE IF NOT EXISTS scores (records BLOB PRIMARY KEY, losses BLOB NOT NULL)"
SEAL_BYTES = 16

ScoreFn = Callable[[Sequence[Tokens]], NDArray[np.float64]]


class PerplexityRecords:
    """The k records on which a frozen model's mean token loss is highest, or lowest, among at most `pool` of a user's.

    Perplexity is exp(mean token loss), so ranking by either is the same. A record whose score is not finite
    comes last either way. Nothing is chosen before a scorer is bound. Of somebody with more than `pool` records (and
    more than k) so many are drawn first, by the user's own generator, so that no user takes hours.

    Args:
        highest: True for the most surprising records, False for the least.
        pool: The most records of a user that are scored, at least 1; k are where that is more.
        score_fn: Maps a user's records to their mean token losses in nats, shape [len(records)]. It must depend on
            these records and a public model only.

    Assumes: the model behind `score_fn` was not trained on these users.

    Raises:
        ValueError: pool < 1.
    """

    fresh = False

    def __init__(self, highest: bool = True, score_fn: ScoreFn | None = None, pool: int = POOL) -> None:
        if not isinstance(pool, int) or pool < 1:
            raise ValueError(f"pool must be a whole number of records, at least 1, got {pool!r}")
        self.highest = highest
        self.score_fn = score_fn
        self.pool = pool

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
        if len(records) > (most := max(self.pool, k)):
            drawn = np.sort(generator.choice(len(records), size=most, replace=False))
            records = [records[index] for index in drawn]
        scores = np.asarray(self.score_fn(records), np.float64)
        if scores.shape != (len(records),):
            raise ValueError(f"score_fn must return shape ({len(records)},), got {scores.shape}")
        ranked = np.where(np.isfinite(scores), -scores if self.highest else scores, np.inf)
        return [records[index] for index in smallest(ranked, k)]


class CachedScores:
    """A score function that keeps what it computes in one SQLite file, safe under several processes.

    A score is keyed by all of a user's records together, so that what a user gets never depends on which other
    user was scored first. The file says something about users' text: it is as private as the text. What is not as it
    was written is computed anew, and a file that is no database is started anew.

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
        self._run("SELECT 1", ())

    def __call__(self, records: Sequence[Tokens]) -> NDArray[np.float64]:
        """Returns the scores of one user's records, shape [len(records)]."""
        key = digest_records(records)
        found = self._run("SELECT losses FROM scores WHERE records = ?", (key,))
        kept = found[0][0] if found else None
        if isinstance(kept, bytes) and len(kept) == 8 * len(records) + SEAL_BYTES:
            losses = kept[:-SEAL_BYTES]
            if kept == _sealed(key, losses):
                return np.frombuffer(losses, "<f8").astype(np.float64)
        scores = np.asarray(self.score_fn(records), "<f8")
        self._run("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, _sealed(key, scores.tobytes())))
        return scores.astype(np.float64)

    def _run(self, statement: str, values: tuple[bytes, ...]) -> list[tuple[object]]:
        """Runs one statement in its own connection and transaction, on a new file where this one is damaged."""
        try:
            try:
                return self._execute(statement, values)
            except sqlite3.OperationalError:  # locked, say, or on a full disk
                raise
            except sqlite3.DatabaseError:
                self.path.unlink(missing_ok=True)
                self.path.touch(mode=0o600)
                return self._execute(statement, values)
        except (sqlite3.Error, OSError) as error:
            raise DataError(f"{self.path}: score cache cannot be used ({error}); delete it") from error

    def _execute(self, statement: str, values: tuple[bytes, ...]) -> list[tuple[object]]:
        """Runs one statement on the file as it is."""
        with closing(sqlite3.connect(self.path, timeout=60)) as connection, connection:
            connection.execute(TABLE)
            return connection.execute(statement, values).fetchall()


def _sealed(key: bytes, losses: bytes) -> bytes:
    """Scores with a checksum of them and of whose they are."""
    return losses + hashlib.blake2b(key + losses, digest_size=SEAL_BYTES).digest()


def digest_records(records: Sequence[Tokens]) -> bytes:
    """Returns a 16-byte digest of the token ids and of where each record ends."""
    digest = hashlib.blake2b(np.array([len(record) for record in records], "<i8").tobytes(), digest_size=16)
    for record in records:
        digest.update(np.ascontiguousarray(record, "<i8").tobytes())
    return digest.digest()
