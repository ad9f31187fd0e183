"""Lines of a ledger: what was released in which round, chained by hashes. No files here."""

import dataclasses
import hashlib
import json
import math
from typing import Literal

from fedsim_userdp.privacy.descriptions import (
    AdaptiveClipping,
    Composed,
    FixedSize,
    NoAmplification,
    RecordLevel,
    UserWise,
)
from fedsim_userdp.privacy.errors import LedgerError
from fedsim_userdp.privacy.serialization import Json, from_json, to_json
from fedsim_userdp.privacy.validation import check_count

Release = UserWise | RecordLevel | FixedSize | NoAmplification | AdaptiveClipping
NoiseSource = Literal["seeded", "os"]

FORMAT = 1
FIRST_HASH = hashlib.sha256(b"fedsim_userdp ledger 1").hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One release.

    Attributes:
        round: Number of the round, >= 0.
        release: What the round releases, usually with `rounds` or `steps` of 1.
        config_hash: Hash of everything that decides the release: settings, data, seed.
        noise_source: "seeded" (the same round gives the same release again) or "os" (it gives a new one).
    """

    round: int
    release: Release
    config_hash: str
    noise_source: NoiseSource

    def to_json(self) -> dict[str, Json]:
        """Returns the entry as a JSON object."""
        return {
            "round": self.round,
            "release": to_json(self.release),
            "config_hash": self.config_hash,
            "noise_source": self.noise_source,
        }


@dataclasses.dataclass(frozen=True)
class Torn:
    """A mark that vouches for pieces before it that were cut off while being written.

    Attributes:
        digest: sha256 of the pieces.
    """

    digest: str

    def to_json(self) -> dict[str, Json]:
        """Returns the mark as a JSON object."""
        return {"torn": self.digest}


@dataclasses.dataclass(frozen=True)
class Seal:
    """The closing line: what became of all releases.

    Attributes:
        digest: sha256 of the adapter's weights.
    """

    digest: str

    def to_json(self) -> dict[str, Json]:
        """Returns the seal as a JSON object."""
        return {"sealed": self.digest}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a ledger holds.

    Attributes:
        entries: Releases in order.
        num_torn: Number of torn pieces, marked or not.
        unmarked: Bytes of those at the end that are not marked yet; empty if there are none.
        ended: Whether the last line ends in a newline.
        head: Hash of the last sound line.
        sealed: sha256 of the adapter in the closing line; None where there is none yet.
    """

    entries: tuple[Entry, ...]
    num_torn: int
    unmarked: bytes
    ended: bool
    head: str
    sealed: str | None = None


def encode(line: Entry | Torn | Seal, previous: str) -> tuple[bytes, str]:
    """Returns a line with its newline, and its hash, which covers the line and the hash of the line before."""
    body: dict[str, Json] = {"format": FORMAT, **line.to_json(), "previous": previous}
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "hash": digest}) + b"\n", digest


def decode(data: bytes) -> Contents:
    """Returns what the bytes of a ledger hold.

    A piece that is no JSON was cut off while being written, and is a torn one. A line that is JSON but does not fit its
    hash, or the line before, was changed later.

    Raises:
        LedgerError: A line was changed, is missing or out of place, or a torn piece in the middle is not marked.
    """
    pieces = data.split(b"\n")
    ended = pieces[-1] == b""
    entries: list[Entry] = []
    head, num_torn, torn = FIRST_HASH, 0, list[bytes]()
    sealed: str | None = None
    for number, raw in enumerate(pieces[:-1] if ended else pieces, start=1):
        if not _is_whole(raw):
            torn.append(raw)
            continue
        line = _parse(raw, head)
        if isinstance(line, Entry) and not torn and sealed is None:
            entries.append(line)
        elif isinstance(line, Seal) and not torn and sealed is None:
            sealed = line.digest
        elif isinstance(line, Torn) and torn and line.digest == digest_of(b"\n".join(torn)):
            num_torn, torn = num_torn + len(torn), []
        else:
            raise LedgerError(f"line {number} of the ledger was changed, or a line before it is missing")
        head = _hash_of(raw)
    return Contents(tuple(entries), num_torn + len(torn), b"\n".join(torn), ended, head, sealed)


def digest_of(raw: bytes) -> str:
    """Returns the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def count(counts: dict[Release, int], entry: Entry) -> None:
    """Adds an entry to the counts of single releases."""
    release = entry.release if isinstance(_inner(entry.release), NoAmplification) else entry.release.first(1)
    times = 1 if isinstance(_inner(entry.release), NoAmplification) else entry.release.num_releases
    counts[release] = counts.get(release, 0) + times


def total(counts: dict[Release, int], num_torn: int, num_repeated: int = 0) -> Composed | None:
    """Returns everything that was released, or None if there is nothing.

    A torn piece is counted as one more of *each* kind of release in the ledger, since it was one of them. Releases
    without amplification are capped at the declared participations of a user, the costliest first; a round that was
    released twice, or may have been, is a participation that nobody declared.

    Args:
        counts: Single releases and how often each was made, as `count` makes them.
        num_torn: Number of torn pieces.
        num_repeated: Number of releases of a round that had been released before.

    Raises:
        ValueError: Releases of different neighbouring relations, or of different caps on participations.
    """
    left = math.inf
    caps = {inner.max_participations for inner in map(_inner, counts) if isinstance(inner, NoAmplification)}
    if caps:
        if len(caps) > 1:
            raise ValueError(f"releases must declare one max_participations, got {sorted(caps)}")
        left = min(caps) + num_torn + num_repeated
    parts: list[Release] = []
    for release in sorted(counts, key=lambda kind: kind.noise_multiplier):
        times = min(counts[release] + num_torn, left)
        if times > 0:
            parts.append(release.first(int(times)))
            left -= times
    return Composed(tuple(parts)) if parts else None


def _inner(release: Release) -> Release:
    """The run inside of adaptive clipping."""
    return release.run if isinstance(release, AdaptiveClipping) else release


def _is_whole(raw: bytes) -> bool:
    """Whether bytes are a whole JSON object, sound or not; the beginning of one never is."""
    try:
        return isinstance(json.loads(raw), dict)
    except (ValueError, RecursionError):
        return False


def _parse(raw: bytes, previous: str) -> Entry | Torn | Seal | None:
    """A sound line that follows `previous`, or None."""
    body = json.loads(raw)
    if body.get("previous") != previous or body.get("format") != FORMAT:
        return None
    digest = body.pop("hash", None)
    try:
        if digest != hashlib.sha256(_canonical(body)).hexdigest():
            return None
        if "torn" in body:
            return Torn(str(body["torn"]))
        if "sealed" in body:
            return Seal(str(body["sealed"]))
        release = from_json(body["release"])
        if not isinstance(release, Release):
            return None
        source: NoiseSource = "os" if body["noise_source"] == "os" else "seeded"
        return Entry(check_count("round", body["round"], 0), release, str(body["config_hash"]), source)
    except (ValueError, KeyError, TypeError, RecursionError):  # sound by its hash, but nothing that a ledger writes
        return None


def _hash_of(raw: bytes) -> str:
    """The hash that a sound line carries."""
    return str(json.loads(raw)["hash"])


def _canonical(body: dict[str, Json]) -> bytes:
    """JSON with one spelling."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
