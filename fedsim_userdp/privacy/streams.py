"""Addressed randomness: every generator is a function of (run key, stream, round, user), never of call order.

Results therefore do not depend on the engine, the number of workers, the order of users or a resume
(docs/design.md, rule 9; docs/decisions/0011).
"""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

STREAMS = frozenset(
    {
        "selection",
        "records",
        "training",
        "noise",
        "count",
        "hosting",
        "init",
        "evaluation",
        "audit",
        "benchmark",
        "signals",
    }
)
KEY_BYTES = 32


@dataclass(frozen=True)
class RunKey:
    """What all random numbers of a run derive from.

    Guarantee: numbers of different streams, rounds, users or keys say nothing about each other to whoever does not know
        the key.  A key is 256 bits; it is never part of a `repr`.

    Attributes:
        secret: the key, 32 bytes.
        is_seeded: whether it follows from a seed, so that whoever guesses the seed has it.

    Raises:
        ValueError: when `secret` has another length.
    """

    secret: bytes = field(repr=False)
    is_seeded: bool

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a run key has {KEY_BYTES} bytes, got {len(self.secret)}")

    @classmethod
    def seeded(cls, seed: int, identity: str = "") -> Self:
        """Returns the key of a simulation: the same for the same seed and identity, and unlike any other.

        Args:
            seed: the run's seed, at least 0.
            identity: what the run's releases depend on, as text or digest; empty for what is public and the same in
                every run, such as the first adapter.

        Raises:
            ValueError: when `seed` is negative.
        """
        if seed < 0:
            raise ValueError(f"seed={seed} must be at least 0")
        return cls(_derived(b"fedsim_userdp seeded run", repr((int(seed), identity))), is_seeded=True)

    @classmethod
    def drawn(cls) -> Self:
        """Returns a secret key from the operating system, for a real release."""
        return cls(os.urandom(KEY_BYTES), is_seeded=False)

    def of_nodes(self) -> "RunKey":
        """Returns the key that nodes are given: it has records and dropout masks, but tells no cohort and no noise."""
        return RunKey(_derived(self.secret, "nodes"), self.is_seeded)

    def generator(self, stream: str, *, round: int = 0, user: str = "") -> np.random.Generator:
        """Returns the generator that belongs to one address.

        Args:
            stream: what the numbers are for, one of `STREAMS`; two streams never share numbers.
            round: the round, 0 for what is drawn once in a run.
            user: the user's id, empty for what concerns no single user.

        Returns:
            A counter-based (Philox) generator; the same address always gives the same numbers.

        Raises:
            ValueError: for an unknown stream or a negative round.
        """
        address = _address(stream, round, user)
        return np.random.Generator(np.random.Philox(key=int.from_bytes(_derived(self.secret, address)[:16], "little")))

    def coins(
        self, stream: str, id_hashes: NDArray[np.uint64], places: NDArray[np.uint64] | None = None, *, round: int = 0
    ) -> NDArray[np.float64]:
        """Returns one number for each id, uniform in [0, 1): that of an id does not depend on which others there are.

        The numbers are AES-128 of (id hash, place) under a key of the address: a pseudo-random function.

        Args:
            stream: what the numbers are for, one of `STREAMS`.
            id_hashes: hashes of user ids, shape [n].
            places: number of a record within its user, shape [n]; None for the user as a whole.
            round: the round, at least 0.

        Returns:
            Float64, shape [n]; multiples of 2^-53.

        Raises:
            ValueError: for an unknown stream or a negative round.
        """
        key = _derived(self.secret, _address(stream, round, "coins"))[:16]
        blocks = np.zeros((len(id_hashes), 2), dtype="<u8")
        blocks[:, 0] = id_hashes
        blocks[:, 1] = 0 if places is None else places + np.uint64(1)
        encrypted = Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(blocks.tobytes())  # one block an id
        upper = np.frombuffer(encrypted, dtype="<u8")[::2] >> np.uint64(11)
        numbers: NDArray[np.float64] = upper.astype(np.float64) * 2.0**-53
        return numbers

    def mark(self, purpose: str, content: str) -> str:
        """Returns a digest of `content` under the key: equal for equal content, and no test of a guess for others."""
        return _derived(self.secret, repr(("mark", purpose, content))).hex()


def _address(stream: str, round: int, user: str) -> str:
    """The text of an address."""
    if stream not in STREAMS:
        raise ValueError(f"stream={stream!r} is unknown; expected one of {', '.join(sorted(STREAMS))}")
    if round < 0:
        raise ValueError(f"round={round} must be at least 0")
    return repr((stream, int(round), user))  # quotes and brackets keep two addresses from meeting


def _derived(key: bytes, address: str) -> bytes:
    """HMAC-SHA256 of an address."""
    return hmac.new(key, address.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
