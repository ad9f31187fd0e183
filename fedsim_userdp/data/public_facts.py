"""Public facts about users, a row each: what a selector may know of them besides their number."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.data.arrow_rows import read_parquet
from fedsim_userdp.data.corpus import DropCounts
from fedsim_userdp.data.csv_rows import read_csv
from fedsim_userdp.data.ids import id_of
from fedsim_userdp.data.rows import Row, read_jsonl
from fedsim_userdp.data.writer import hash_id
from fedsim_userdp.errors import DataError

USER_COLUMN = "user_id"
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*|(?=\.))(\.\d*)?([eE][+-]?\d+)?")
_READERS = {".jsonl": read_jsonl, ".ndjson": read_jsonl, ".csv": read_csv, ".tsv": read_csv}


class PublicFacts:
    """A table of public facts, keyed by user id.

    Ids are read as those of the corpus are.  A column whose values are all numbers, or texts of numbers, is one of
    numbers; others are texts.  Users whom nobody trains on may be in it.

    Args:
        rows: rows as mappings, each with a `user_id`; all have the same columns.
        source: what to call it in messages: a file's path, or "memory".

    Raises:
        DataError: a row names no user, a user has two rows, or a row lacks a column.
    """

    def __init__(self, rows: Iterable[tuple[str, Row]], source: str = "memory") -> None:
        self.source = source
        hashes, places, values, names = [], dict[bytes, str](), list[Row](), list[str]()
        for at, row in rows:
            names = names or [name for name in row if name != USER_COLUMN]
            if missing := [name for name in (USER_COLUMN, *names) if name not in row]:
                raise DataError(f"{at}: public facts need a column {missing[0]!r}; this row has {', '.join(row)}")
            user = id_of(row[USER_COLUMN], at)
            if user is None:
                raise DataError(f"{at}: this row of public facts names no user")
            found = hash_id(user.encode())
            if found in places:
                raise DataError(f"{at}: public facts name a user twice, before in {places[found]}")
            places[found] = at
            hashes.append(found)
            values.append(row)
        if not values:
            raise DataError(f"{source} has no row of public facts")
        self._hashes = np.frombuffer(b"".join(hashes), dtype="<u8")
        self._columns = {name: _column(name, [row[name] for row in values], source) for name in names}

    @classmethod
    def of(cls, given: "PublicFacts | str | os.PathLike[str] | Mapping[str, Any] | Iterable[Any]") -> "PublicFacts":
        """Returns public facts from a file, a table or rows.

        Args:
            given: the path of a CSV, JSONL or Parquet file; columns by name, such as a data frame; or rows as mappings.

        Raises:
            DataError: see `PublicFacts`; or the file is of no such kind, or not there.
        """
        if isinstance(given, PublicFacts):
            return given
        if isinstance(given, str | os.PathLike):
            return cls(_rows_of_file(Path(given).expanduser()), str(given))
        names = getattr(given, "columns", None) if not isinstance(given, Mapping) else given
        rows: list[Any]
        if names is not None:
            columns = {str(name): list(given[name]) for name in names}  # type: ignore[index]
            rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        else:
            rows = list(given)
        if not all(isinstance(row, Mapping) for row in rows):
            raise DataError("public facts must be a file's path, columns by name, or rows as mappings")
        return cls((f"row {number} of the public facts", row) for number, row in enumerate(rows))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, the user's id aside."""
        return tuple(self._columns)

    @property
    def id_hashes(self) -> NDArray[np.uint64]:
        """Hashes of the ids that have a row, ascending."""
        return np.sort(self._hashes)

    def of_users(self, id_hashes: NDArray[np.uint64]) -> dict[str, NDArray[Any]]:
        """Returns the columns in the order of some users, given by the hashes of their ids.

        Raises:
            DataError: some have no row; it says how many.
        """
        order = np.argsort(self._hashes, kind="stable")
        at = np.searchsorted(self._hashes[order], id_hashes)
        places = order[np.minimum(at, len(order) - 1)]
        if missing := int((self._hashes[places] != id_hashes).sum()):
            raise DataError(
                f"{self.source}: {missing} of {len(id_hashes)} training users have no row of public facts: add them"
            )
        return {name: values[places] for name, values in self._columns.items()}

    def known(self, id_hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Returns which of some users, given by the hashes of their ids, have a row."""
        return np.isin(id_hashes, self._hashes)

    def digest(self, id_hashes: NDArray[np.uint64]) -> str:
        """Returns a digest of what is said of some users."""
        found = hashlib.sha256(np.ascontiguousarray(id_hashes, dtype="<u8").tobytes())
        for name, values in self.of_users(id_hashes).items():
            found.update(repr((name, values.tolist())).encode())
        return found.hexdigest()


def _rows_of_file(path: Path) -> Iterable[tuple[str, Row]]:
    """The rows of a file, each with its place."""
    if not path.is_file():
        raise DataError(
            f"selection.public={path} is no file: give a CSV, JSONL or Parquet file with a row for each user"
        )
    if path.suffix.lower() == ".parquet":
        return read_parquet(path, DropCounts(), ())
    if (reader := _READERS.get(path.suffix.lower())) is None:
        raise DataError(f"selection.public={path} must end in .csv, .tsv, .jsonl or .parquet")
    return reader(path, DropCounts())


def _column(name: str, values: list[object], source: str) -> NDArray[Any]:
    """A column as numbers where all are, else as text; lists of numbers of one length are rows of an array."""
    if all(isinstance(value, list | tuple) for value in values):
        with suppress(TypeError, ValueError):
            if np.isfinite(found := np.array(values, dtype=np.float64)).all():
                return found
        raise DataError(f"{source}: column {name!r} holds lists that are not finite numbers of one length")
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        return np.array(numbers, dtype=np.float64)
    return np.array(["" if value is None else str(value) for value in values])


def _number(value: object) -> float | None:
    """A finite number, or a text of one; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | np.number):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):  # 007 and 1_0 are codes
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if np.isfinite(found) else None
