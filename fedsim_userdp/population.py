"""The training users as a selector may know them: hashes of their ids, and what is public about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsim_userdp.errors import ConfigError


@dataclass(frozen=True)
class Population:
    """The training users, and what is public about each.

    Attributes:
        id_hashes: a 64-bit hash of each user's id, shape [num_users]; user i is the i-th in the order of these.
        columns: public facts by name, each of shape [num_users] or [num_users, ...].
        computed: what follows from these and takes long, so that it need not be found again; no part of them.
    """

    id_hashes: NDArray[np.uint64]
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    computed: dict[tuple[object, ...], object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Keeps copies that nobody can write to: coins are drawn by these numbers."""
        object.__setattr__(self, "id_hashes", read_only(self.id_hashes))
        object.__setattr__(self, "columns", {name: read_only(values) for name, values in self.columns.items()})

    @classmethod
    def numbered(cls, num_users: int) -> "Population":
        """Returns a population whose users have their numbers as ids."""
        return cls(np.arange(num_users, dtype=np.uint64))

    def __len__(self) -> int:
        return len(self.id_hashes)

    def column(self, name: str) -> NDArray[Any]:
        """Returns a public fact of every user, shape [num_users], in the order of the users' numbers.

        Raises:
            ConfigError: there is no such column; it names those that there are.
        """
        if name in self.columns:
            return self.columns[name]
        if not self.columns:
            raise ConfigError(
                f"there is no column {name!r} of public facts: name its file by selection.public, or columns of the "
                "corpus by selection.public_columns"
            )
        raise ConfigError(f"there is no column {name!r} of public facts; they have {', '.join(self.columns)}")

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Returns a public fact that is a number for every user, shape [num_users].

        Raises:
            ConfigError: there is no such column, or it holds something else.
        """
        values = self.column(name)
        if values.dtype.kind not in "fiu" or values.ndim != 1:
            raise ConfigError(
                f"the column {name!r} of public facts must hold a number for every user, not text or lists"
            )
        return values.astype(np.float64)


@dataclass(frozen=True)
class Reported:
    """A signal of one round, as it was released.

    Attributes:
        sums: of the users' clipped numbers in each public group, noise included, shape [groups].
        counts: of the users in each, noise included, shape [groups]; may be below 0.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Keeps copies that nobody can write to."""
        object.__setattr__(self, "sums", read_only(self.sums))
        object.__setattr__(self, "counts", read_only(self.counts))


@dataclass(frozen=True)
class Past:
    """What was released before a round: public, so that a selector may follow it.

    Attributes:
        rounds: number of rounds before.
        norms: L2 norm of the mean update that each round released, noise included, by round; a round whose result was
            lost has none.
        signals: what each round told of a signal that the selector pays for, by its name and by round, likewise.
    """

    rounds: int = 0
    norms: Mapping[int, float] = field(default_factory=dict)
    signals: Mapping[str, Mapping[int, Reported]] = field(default_factory=dict)

    def means(self, name: str, half_life: float = 10.0) -> NDArray[np.float64]:
        """Returns the mean of a signal in each public group, shape [groups]; not a number where nobody told any.

        Rounds count less the longer ago they are.  Where noise leaves a group less than one user, nothing is known.

        Args:
            name: of the signal, such as "loss".
            half_life: rounds after which one counts half, above 0.
        """
        told = self.signals.get(name, {})
        if not told:
            return np.array([np.nan])
        ages = np.array([self.rounds - round for round in told], dtype=np.float64)
        shares = 0.5 ** (ages / half_life)
        sums = shares @ np.stack([one.sums for one in told.values()])
        counts = shares @ np.stack([one.counts for one in told.values()])
        return np.where(counts >= 1.0, sums / np.maximum(counts, 1.0), np.nan)


def read_only(values: NDArray[Any]) -> NDArray[Any]:
    """Returns a copy of an array that cannot be written to, nor be made writable: `bytes` hold it."""
    given = np.asarray(values)
    if not given.size or given.dtype.hasobject:
        kept = np.array(given)
        kept.setflags(write=False)
        return kept
    return np.frombuffer(given.tobytes(), dtype=given.dtype).reshape(given.shape)
