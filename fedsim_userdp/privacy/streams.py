"""Addressed randomness: every generator is a function of (seed, stream, round, user), never of call order.

Results therefore do not depend on the engine, the number of workers, the order of users or a resume.
"""

import hashlib

import numpy as np

STREAMS = frozenset({"selection", "records", "training", "noise", "count", "split", "init", "audit"})


def _key(seed: int, stream: str, round: int, user: str) -> int:
    """Returns the 128-bit key of an address; the length prefix keeps two addresses from meeting."""
    address = repr((int(seed), stream, int(round), user)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(address, digest_size=16).digest(), "little")


def numpy_generator(seed: int, stream: str, *, round: int = 0, user: str = "") -> np.random.Generator:
    """Returns the generator that belongs to one address.

    Args:
        seed: the run's seed, an integer of at least 0.
        stream: what the numbers are for, one of `STREAMS`; two streams never share numbers.
        round: the round, 0 for what is drawn once in a run.
        user: the user's id, empty for what concerns no single user.

    Returns:
        A counter-based (Philox) generator; the same address always gives the same numbers.

    Raises:
        ValueError: for an unknown stream or a negative seed or round.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream={stream!r} is unknown; expected one of {', '.join(sorted(STREAMS))}")
    if seed < 0 or round < 0:
        raise ValueError(f"seed={seed} and round={round} must be at least 0")
    return np.random.Generator(np.random.Philox(key=_key(seed, stream, round, user)))
