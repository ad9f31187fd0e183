"""Lines of a ledger: what was released in which round, chained by hashes. No files here."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from fedsim_userdp.errors import LedgerError
from fedsim_userdp.privacy.accounting.descriptions import (
    AdaptiveClipping,
    Composed,
    NoAmplification,
    PaidSignals,
    PoissonGroups,
    PoissonUsers,
    Run,
    inner_run,
)
from fedsim_userdp.privacy.accounting.serialization import Json, from_json, to_json
from fedsim_userdp.privacy.accounting.trajectories import highest_round
from fedsim_userdp.privacy.validation import check_count

Release = Run | PaidSignals | AdaptiveClipping
Counts = dict[tuple[Release, str | None], int]  # of single releases, and what they are accounted for with: `_kin`
NoiseSource = Literal["seeded", "os"]

_ROUNDING = 1e-15  # of a weight, upwards
FORMAT = 3
NO_RELEASE = b'{"format"'  # how marks and seals begin; a release has its answers first
FIRST_HASH = hashlib.sha256(b"fedsim_userdp ledger 3").hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """One release.

    Attributes:
        round: Number of the round, >= 0.
        release: What the round releases, usually with `rounds` or `steps` of 1.
        run: Digest of everything that decides the run's releases, under a secret of its folder: it is no test of a
            guess of somebody's data.
        noise_source: "seeded" (the same round gives the same release again) or "os" (it gives a new one).
        answers: Digest, likewise, of whose updates are in the release; empty where that cannot vary.
        draw: Stands for the key that cohorts and noise follow from: equal in two ledgers only where that is one.
        cohorts: Digest, under the folder's secret, of the users of every round so far, of one schedule over the whole
            ledger; empty where these do not count.
    """

    round: int
    release: Release
    run: str
    noise_source: NoiseSource
    answers: str = ""
    draw: str = ""
    cohorts: str = ""

    def to_json(self) -> dict[str, Json]:
        """Returns the entry as a JSON object."""
        return {
            "round": self.round,
            "release": to_json(self.release),
            "run": self.run,
            "noise_source": self.noise_source,
            "answers": self.answers,
            "draw": self.draw,
            "cohorts": self.cohorts,
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
    """The closing line of a run that has ended: nothing can be released after it.

    Attributes:
        adapter: sha256, in hexadecimal, of the file with the released adapter; empty where there is none: training
            diverged.
    """

    adapter: str

    def to_json(self) -> dict[str, Json]:
        """Returns the seal as a JSON object."""
        return {"sealed": self.adapter}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a ledger holds.

    Attributes:
        entries: Releases in order.
        num_torn: Number of releases that torn pieces, marked or not, can have been at most.
        unmarked: Bytes of those at the end that are not marked yet; empty if there are none.
        ended: Whether the last line ends in a newline.
        head: Hash of the last sound line.
        sealed: sha256 of the released adapter's file, where the run has ended; else None.
        num_torn_at_end: Number of releases, of `num_torn`, that pieces after the last entry can have been.
        num_unmarked: Number of releases, of `num_torn_at_end`, that the unmarked pieces can have been.
    """

    entries: tuple[Entry, ...]
    num_torn: int
    unmarked: bytes
    ended: bool
    head: str
    sealed: str | None = None
    num_torn_at_end: int = 0
    num_unmarked: int = 0


def encode(line: Entry | Torn | Seal, previous: str) -> tuple[bytes, str]:
    """Returns a line with its newline, and its hash, which covers the line and the hash of the line before."""
    body: dict[str, Json] = {"format": FORMAT, **line.to_json(), "previous": previous}
    digest = hashlib.sha256(_canonical(body)).hexdigest()
    return _canonical({**body, "hash": digest}) + b"\n", digest


def decode(data: bytes) -> Contents:
    """Returns what the bytes of a ledger hold.

    A piece that is no JSON was cut off while being written, and is a torn one; it counts as many releases as its bytes
    can have been. A line that is JSON but does not fit its hash, or the line before, was changed later.

    Raises:
        LedgerError: A line was changed, is missing or out of place, or a torn piece in the middle is not marked.
    """
    pieces = data.split(b"\n")
    ended = pieces[-1] == b""
    entries: list[Entry] = []
    head, torn, sealed, shortest = FIRST_HASH, list[bytes](), None, _SHORTEST_LINE
    num_torn = at_last_entry = 0
    for number, raw in enumerate(pieces[:-1] if ended else pieces, start=1):
        if not _is_whole(raw):
            torn.append(raw)
            continue
        line = _parse(raw, head)
        if isinstance(line, Entry) and not torn and sealed is None:
            entries.append(line)
            at_last_entry = num_torn
            shortest = len(raw) if len(entries) == 1 else min(shortest, len(raw))
        elif isinstance(line, Torn) and torn and line.digest == digest_of(b"\n".join(torn)):
            num_torn, torn = num_torn + _num_possible(torn, shortest), []
        elif isinstance(line, Seal) and not torn and sealed is None:
            sealed = line.adapter
        else:
            raise LedgerError(f"line {number} of the ledger was changed, or a line before it is missing")
        head = _hash_of(raw)
    num_unmarked = _num_possible(torn, shortest)
    num_torn += num_unmarked
    at_end = num_torn - at_last_entry
    return Contents(tuple(entries), num_torn, b"\n".join(torn), ended, head, sealed, at_end, num_unmarked)


def _num_possible(pieces: list[bytes], shortest: int) -> int:
    """How many releases unreadable pieces can have been at most: newlines can be damaged too.

    A piece that begins as marks and seals do, and is shorter than a release, is none.

    Args:
        pieces: Bytes of each.
        shortest: Least length of a line of this ledger, without its newline.
    """
    return sum(len(piece) // shortest + (not piece.startswith(NO_RELEASE)) for piece in pieces)


def between(release: Release, first: int, last: int) -> Release:
    """Returns what the rounds from `first` to `last` of a run release, as lines have it.

    Without amplification, that is the run with its declared cap, once.
    """
    inner = _inner(release)
    if isinstance(inner, NoAmplification):
        return release
    if not isinstance(inner, PoissonGroups):
        return release.first(last - first + 1)
    return _with_inner(release, inner.between(first, last))


def digest_of(raw: bytes) -> str:
    """Returns the sha256 of bytes, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def count(counts: Counts, entry: Entry) -> None:
    """Adds an entry to the counts of single releases."""
    for release, times in _singles(entry.release):
        kind = release, _kin(entry)
        counts[kind] = counts.get(kind, 0) + times


def total(counts: Counts, num_torn: int, num_repeated: int = 0) -> Composed | None:
    """Returns everything that was released, or None if there is nothing.

    A torn piece is counted as one more of *each* kind of release in the ledger, since it was one of them. Releases
    without amplification are capped at the declared participations of a user in each schedule, the costliest first; a
    round that was released twice, or may have been, is a participation that nobody declared.

    The groups of PoissonGroups are the same users in all releases of a run, which are one part; a torn piece counts as
    one round with each group's largest probability and weight. Groups of different runs are different parts.

    Args:
        counts: Single releases and how often each was made, as `count` makes them.
        num_torn: Number of torn pieces.
        num_repeated: Number of releases of a round that had been released before.

    Raises:
        ValueError: Releases of different neighbouring relations, of different caps on participations, or of one run
            and different numbers of groups.
    """
    parts: list[Release] = []
    times: dict[Release, int] = {}
    for kin in dict.fromkeys(kin for _, kin in counts):
        of_kin = {release: number for (release, one), number in counts.items() if one == kin}
        if of_groups := {release: n for release, n in of_kin.items() if isinstance(release, PoissonGroups)}:
            parts.append(_joined(of_groups, num_torn))
        found: dict[Release, int] = {
            release: n + num_torn for release, n in of_kin.items() if not isinstance(release, PoissonGroups)
        }
        if found and kin is not None:
            found = _capped(found, num_torn + num_repeated, may_be_whole=bool(kin))
        for release, number in found.items():
            times[release] = times.get(release, 0) + number
    parts += [release.first(times[release]) for release in sorted(times, key=lambda kind: kind.noise_multiplier)]
    return Composed(tuple(parts)) if parts else None


def _singles(release: Release) -> Sequence[tuple[Release, int]]:
    """The distinct single releases of a release, and how often each is made; without amplification, itself."""
    inner = _inner(release)
    if isinstance(inner, PoissonGroups):
        return inner.singles()
    return [(release, 1)] if isinstance(inner, NoAmplification) else [(release.first(1), release.num_releases)]


def _joined(rounds: dict[PoissonGroups, int], num_torn: int) -> PoissonGroups:
    """Single rounds of one run, so many of each, as one description with the least of their noise multipliers."""
    numbers = {len(release.groups) for release in rounds}
    if len(numbers) > 1:
        raise ValueError(f"releases of one run must have the same number of groups, got {sorted(numbers)}")
    noise = min(release.noise_multiplier for release in rounds)
    groups = []
    for number in range(numbers.pop()):
        steps = [_step(release, number, noise, times) for release, times in rounds.items()]
        torn = [(*highest_round(steps), num_torn)] if num_torn else []
        groups.append((*steps, *torn))
    relations = {release.adjacency for release in rounds}
    if len(relations) > 1:
        raise ValueError(f"releases of one run must have one neighbouring relation, got {sorted(map(str, relations))}")
    return PoissonGroups(noise, tuple(groups), relations.pop())


def _step(release: PoissonGroups, group: int, noise: float, times: int) -> tuple[float, float, int]:
    """A group's part of a single round, made so many times, with another noise multiplier and the weight for it."""
    ((prob, weight, _),) = release.groups[group]
    if release.noise_multiplier != noise:
        weight *= noise / release.noise_multiplier * (1.0 + _ROUNDING)
    return prob, weight, times


def _kin(entry: Entry) -> str | None:
    """Names the releases that are accounted for together: groups of one run, rounds of one schedule; else None."""
    inner = _inner(entry.release)
    if isinstance(inner, PoissonGroups):
        return entry.run
    return _schedule(entry) if isinstance(inner, NoAmplification) else None


def _schedule(entry: Entry) -> str:
    """Names the rounds among which a user's participations are capped: the run.

    Empty for the whole ledger: marks of cohorts chain its rounds to one schedule, which was held to its cap.
    """
    return "" if entry.cohorts else entry.run


def _capped(counts: dict[Release, int], num_undeclared: int, *, may_be_whole: bool) -> dict[Release, int]:
    """How often a user is in each release of one schedule at most.

    Args:
        counts: Releases without amplification, and how often each was made.
        num_undeclared: Participations beyond the cap that there may have been.
        may_be_whole: Whether a line may stand for a whole run, so that the cap is counted at once.
    """
    caps = {inner.max_participations for inner in map(_inner, counts) if isinstance(inner, NoAmplification)}
    if len(caps) > 1:
        raise ValueError(f"releases must declare one max_participations, got {sorted(caps)}")
    costliest_first = sorted(counts, key=lambda kind: kind.noise_multiplier)
    left = min(caps) + num_undeclared
    if may_be_whole:
        lacking = max(left - sum(counts.values()), 0)
        counts = {**counts, costliest_first[0]: counts[costliest_first[0]] + lacking}
    found: dict[Release, int] = {}
    for release in costliest_first:
        if (number := min(counts[release], left)) > 0:
            found[release] = number
            left -= number
    return found


def _inner(release: Release) -> Release:
    """The run inside of signals and adaptive clipping."""
    return inner_run(release)


def _with_inner(release: Release, run: PoissonGroups) -> Release:
    """The same signals and adaptive clipping around another run."""
    if isinstance(release, AdaptiveClipping | PaidSignals):
        return dataclasses.replace(release, run=_with_inner(release.run, run))  # type: ignore[arg-type]
    return run


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
        marks = (str(body[name]) for name in ("answers", "draw", "cohorts"))
        return Entry(check_count("round", body["round"], 0), release, str(body["run"]), source, *marks)
    except (ValueError, KeyError, TypeError, RecursionError):  # sound by its hash, but nothing that a ledger writes
        return None


def _hash_of(raw: bytes) -> str:
    """The hash that a sound line carries."""
    return str(json.loads(raw)["hash"])


def _canonical(body: dict[str, Json]) -> bytes:
    """JSON with one spelling."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


# Length of the shortest line of any ledger, newline not counted.
_SHORTEST_LINE = len(encode(Entry(0, PoissonUsers(1.0, 1.0, 1), "r", "os"), FIRST_HASH)[0]) - 1
