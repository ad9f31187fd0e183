"""The ledger: an append-only file of what a run has released, written before each release.

One JSON object a line. Each carries a hash over itself and the hash of the line before, so that a changed, missing or
reordered line is noticed. (Whole lines cut off the end are not: keep `head` with the checkpoints and pass it to
`Ledger.open` as `must_contain`.)

Guarantee: after any crash, the epsilon that a ledger gives is at least that of the releases made. A line is on disk
    before its release, so a crash can only leave a line too many. A last line that was cut off while being written
    belongs to a release that was not made, if the file system kept its word; it is counted nevertheless, as one more
    of each kind of release in the ledger (several, where its length has room for several lines), because a disk that
    lost half a line may have lost it later. With seeded noise, where the piece is the beginning of the very line that
    is recorded next, that round is the same release again: its line is completed, and counted once.
Assumes: every release is recorded first, by `record`, and the caller waits for it to return.
"""

import dataclasses
import fcntl
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from fedsim_userdp import plain_files
from fedsim_userdp.errors import AccountingError, BudgetExceeded, LedgerError, ReleasedOtherwise
from fedsim_userdp.privacy.accounting import accountants
from fedsim_userdp.privacy.accounting.descriptions import Composed
from fedsim_userdp.privacy.ledger import entries
from fedsim_userdp.privacy.ledger.entries import Contents, Entry, NoiseSource, Release, Seal, Torn
from fedsim_userdp.privacy.validation import check_count, check_delta, check_epsilon

_PREFERRED = ("pld", "tight", "rdp", "group")


class Ledger:
    """An open ledger with its lock. Make one with `Ledger.open`, and use it as a context manager.

    Attributes:
        path: The file.
        delta: Delta that epsilon is asked at, unless said otherwise.
        budget_epsilon: Epsilon that no release may exceed, or None.
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        contents: Contents,
        *,
        delta: float,
        budget_epsilon: float | None,
        run: str,
        noise_source: NoiseSource,
        method: str | None,
        draw: str,
    ) -> None:
        """Not to be called directly; see `open`."""
        self.path, self.delta, self.budget_epsilon = path, delta, budget_epsilon
        self._descriptor, self._run, self._noise_source = descriptor, run, noise_source
        self._method, self._draw = method, draw
        self._num_torn, self._num_repeated, self._head = contents.num_torn, 0, contents.head
        self._pending, self._num_pending, self._sealed = contents.unmarked, contents.num_unmarked, contents.sealed
        self._num_torn_at_end = contents.num_torn_at_end
        self._fitting: tuple[entries.Counts, int, int] | None = None
        self._entries: list[Entry] = []
        self._by_round: dict[int, list[Entry]] = {}
        self._counts: entries.Counts = {}
        self._known: tuple[Composed, float, str, float] | None = None
        for entry in contents.entries:
            self._add(entry)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        delta: float,
        run: str,
        budget_epsilon: float | None = None,
        noise_source: NoiseSource = "seeded",
        method: str | None = None,
        must_contain: str | None = None,
        draw: str = "",
    ) -> Self:
        """Returns the ledger at `path`, made anew if there is none, locked against other writers.

        Args:
            path: A file in a folder that exists.
            delta: In (0, 1).
            run: Digest of everything that decides the releases of this run, under a secret of its folder.
            budget_epsilon: Epsilon at `delta` that no release may exceed, in (0, inf), or None for no limit.
            noise_source: "seeded" if a repeated round gives the same release again, "os" if it gives a new one.
            method: Accountant of the budget and of `epsilon`; by default the tightest at user level that fits. "record"
                makes both of them record-level.
            must_contain: `head` at an earlier time, to notice that lines at the end are gone; or None.
            draw: Stands for the key that cohorts and noise follow from; see `Entry`.

        Raises:
            ValueError: An argument is out of range.
            LedgerError: The ledger is damaged, lacks `must_contain`, or is open elsewhere.
        """
        check_delta("delta", delta)
        if budget_epsilon is not None:
            check_epsilon("budget_epsilon", budget_epsilon)
        if noise_source not in ("seeded", "os"):
            raise ValueError(f"noise_source must be 'seeded' or 'os', got {noise_source!r}")
        if not isinstance(run, str) or not run:
            raise ValueError(f"run must be a text that is not empty, got {run!r}")
        file = Path(path)
        descriptor = _open_locked(file)
        try:
            contents = check_ledger(file, must_contain)
            may_be_completed = noise_source == "seeded" or contents.unmarked.startswith(entries.NO_RELEASE)
            if contents.ended or not contents.unmarked or not may_be_completed:
                contents = _mark_torn(descriptor, contents)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(
            file,
            descriptor,
            contents,
            delta=delta,
            budget_epsilon=budget_epsilon,
            run=run,
            noise_source=noise_source,
            method=method,
            draw=draw,
        )

    def record(self, round: int, release: Release, answers: str = "", cohorts: str = "") -> None:
        """Writes a release to the disk; to be called, and to return, before the release is made.

        The last round may be recorded again after a crash, and so may earlier ones in order: with seeded noise the
        same round of the same run with the same answers is the same release, counted once. With noise from the
        operating system it is a new release, and counted again.

        Args:
            round: Number of the round, in [0, 1e9]; not below the last one unless repeated.
            release: What the round releases: a description with `rounds` or `steps` of 1 (or as many as are meant); of
                PoissonGroups the round itself, its groups being the same users in all rounds of the run. One without
                amplification is one round, with the cap of the whole run, which is counted at once unless `cohorts`
                shows which rounds a user was in.
            answers: Digest of whose updates are in the release; empty where that cannot vary.
            cohorts: Digest of the users of every round so far, of one schedule over the whole ledger; empty where these
                do not count, so that each run has a cap of its own.

        Raises:
            ValueError: The round is out of range, or the release has no epsilon together with the earlier ones.
            BudgetExceeded: The epsilon including this release would exceed the budget. Nothing was written.
            ReleasedOtherwise: The round was, or may have been, released with other answers: with the same noise, both
                together would tell the difference. It must not be released; the run goes on with the next round.
            LedgerError: The round was recorded before with another release, by another run or after other cohorts, or
                comes too late, or the run has ended.
        """
        number, marks = check_count("round", round, 0), (answers, self._draw, cohorts)
        entry = Entry(number, _checked(release), self._run, self._noise_source, *marks)
        if self._is_repeated(entry):
            return
        if self._sealed is not None:
            raise LedgerError(f"{self.path} is sealed: its run has ended, and nothing more can be released")
        line, head = entries.encode(entry, self._head)
        if self._pending:
            self._settle(entry, line, head)
            return
        counts = dict(self._counts)
        entries.count(counts, entry)
        repeated = self._num_repeated + (entry.round in self._by_round)
        if not _is_within((counts, self._num_torn, repeated), self._fitting):
            self._check_budget(round, entries.total(counts, self._num_torn, repeated))
        if self._descriptor < 0:
            raise LedgerError(f"{self.path} is closed")
        try:
            _write(self._descriptor, line)
        except OSError:
            self.close()  # what was written of the line is a torn piece now: the next `open` marks and counts it
            raise
        self._head = head
        self._add(entry)

    def expect(self, release: Release, num_releases: int = 1) -> None:
        """Accounts at once for `num_releases` >= 1 more of a release, so that recording each of them is cheap.

        Where rounds differ (PoissonGroups), `release` is all that is to come, once: recording its rounds is cheap.
        Nothing is recorded. Where they exceed the budget, or cannot be accounted for, each is looked at by itself.
        """
        counts: entries.Counts = dict(self._counts)
        single: entries.Counts = {}
        cohorts = "" if self.last is None else self.last.cohorts
        entries.count(single, Entry(0, release, self._run, self._noise_source, cohorts=cohorts))
        for kind, times in single.items():
            counts[kind] = counts.get(kind, 0) + times * num_releases
        try:
            after = entries.total(counts, self._num_torn, self._num_repeated)
            spent = self._epsilon(after, self.delta, _choose(after, self._method))
        except ValueError:
            return
        if self.budget_epsilon is not None and spent <= self.budget_epsilon:
            self._fitting = counts, self._num_torn, self._num_repeated

    def epsilon(self, delta: float | None = None, method: str | None = None) -> float:
        """Returns the epsilon of everything recorded so far.

        Args:
            delta: In (0, 1); that of the ledger by default.
            method: Accountant; by default the tightest of those that fit all releases.

        Returns:
            Epsilon in [0, inf); 0 for an empty ledger; infinity while its only line is torn, so that it is not known
            what was released.

        Raises:
            ValueError: An argument is out of range or does not fit.
        """
        at = self.delta if delta is None else check_delta("delta", delta)
        released = self.released
        if released is None:
            return math.inf if self._num_torn else 0.0
        return self._epsilon(released, at, _choose(released, method or self._method))

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds recorded so far, in order."""
        return tuple(entry.round for entry in self._entries)

    @property
    def last(self) -> Entry | None:
        """The last release recorded so far, or None."""
        return self._entries[-1] if self._entries else None

    @property
    def num_torn(self) -> int:
        """Number of releases that lines which were cut off by crashes can have been at most; each is counted."""
        return self._num_torn

    @property
    def num_torn_at_end(self) -> int:
        """Number of releases, of `num_torn`, that torn lines after the last sound one can have been."""
        return self._num_torn_at_end

    @property
    def num_unfinished(self) -> int:
        """Number of releases, of `num_torn_at_end`, of a line that the same seeded release would complete."""
        return self._num_pending if self._pending else 0

    @property
    def num_releases(self) -> int:
        """Number of releases recorded, or that torn lines can have been."""
        return len(self._entries) + self._num_torn

    def is_of_this_run(self, after: int) -> bool:
        """Returns whether all entries of rounds later than `after` are of the run that the ledger was opened for."""
        return all(entry.run == self._run for entry in self._entries if entry.round > after)

    @property
    def is_sealed(self) -> bool:
        """Whether the run has ended."""
        return self._sealed is not None

    @property
    def head(self) -> str:
        """Hash of the last line; it stands for the whole ledger so far."""
        return self._head

    @property
    def released(self) -> Composed | None:
        """Everything recorded so far as one description, or None."""
        return entries.total(self._counts, self._num_torn, self._num_repeated)

    def close(self) -> None:
        """Gives the lock back; the ledger cannot be written any more."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        """Returns the ledger."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the ledger."""
        self.close()

    def _is_repeated(self, entry: Entry) -> bool:
        """Whether the entry repeats a release that is already counted; raises where it contradicts one."""
        same_round = [dataclasses.replace(known, draw=entry.draw) for known in self._by_round.get(entry.round, [])]
        if entry.noise_source == "os" and all(known.noise_source == "os" for known in same_round):
            return False
        if entry in same_round:
            return True
        if any(dataclasses.replace(known, answers=entry.answers) == entry for known in same_round):
            raise ReleasedOtherwise(f"round {entry.round} was released before, with other users' answers")
        if same_round:
            raise LedgerError(
                f"round {entry.round} was recorded before, with another release, run, noise source or cohort"
            )
        if self._entries and entry.round < self._entries[-1].round:
            raise LedgerError(f"round {entry.round} comes after round {self._entries[-1].round}")
        return False

    def _check_budget(self, round: int, after: Composed | None) -> None:
        """Raises where everything released up to and including a round has no epsilon, or one above the budget."""
        name = _choose(after, self._method)
        if self.budget_epsilon is None:
            return
        spent = self._epsilon(after, self.delta, name)
        if spent > self.budget_epsilon:
            raise BudgetExceeded(
                f"round {round} would bring epsilon to {spent:.4g} at delta = {self.delta:g}, "
                f"above the budget of {self.budget_epsilon:g}: it was not taken"
            )

    def _settle(self, entry: Entry, line: bytes, head: str) -> None:
        """Completes the unfinished last line where it is the beginning of this one; else marks it torn and raises."""
        if self._descriptor < 0:
            raise LedgerError(f"{self.path} is closed")
        piece, self._pending = self._pending, b""
        if line.startswith(piece):
            _write(self._descriptor, line[len(piece) :])
            self._num_torn -= self._num_pending
            self._num_torn_at_end -= self._num_pending
            self._head = head
            self._add(entry)
            return
        self._head = _mark(self._descriptor, piece, self._head, ended=False)
        if not self._num_pending:  # of a seal that was not finished: no release
            self.record(entry.round, entry.release, entry.answers, entry.cohorts)
            return
        raise ReleasedOtherwise(f"round {entry.round} may have been released before its line in {self.path} was torn")

    def _add(self, entry: Entry) -> None:
        """Takes an entry that is on the disk into account."""
        self._num_repeated += entry.round in self._by_round
        self._entries.append(entry)
        self._by_round.setdefault(entry.round, []).append(entry)
        entries.count(self._counts, entry)

    def _epsilon(self, released: Composed | None, delta: float, method: str) -> float:
        """Epsilon, remembered for the case that the same is asked again."""
        if released is None:
            return 0.0
        if self._known is None or self._known[:3] != (released, delta, method):
            spent = accountants.curve(released, method).epsilon(math.log(delta))
            self._known = (released, delta, method, spent)
        return self._known[3]


def check_ledger(path: Path, must_contain: str | None = None) -> Contents:
    """Returns what a ledger holds; nothing is written.

    Args:
        path: The ledger.
        must_contain: Hash of a line that it must hold, such as `head` at the last checkpoint; None for none.

    Raises:
        LedgerError: It is damaged, or lacks that line.
    """
    data = plain_files.read_file(path)
    contents = entries.decode(data)
    if must_contain not in (None, entries.FIRST_HASH) and str(must_contain).encode() not in data:
        raise LedgerError(f"{path} lacks the line {must_contain}: its end was cut off")
    return contents


def seal(path: str | os.PathLike[str], adapter: str) -> None:
    """Closes the ledger of a run that has ended, naming what came of it; does nothing where that line is there already.

    Args:
        path: The ledger.
        adapter: sha256, in hexadecimal, of the file with the released adapter; empty where there is none.

    Raises:
        LedgerError: The ledger is damaged, open elsewhere, or was sealed with another adapter.
    """
    file = Path(path)
    descriptor = _open_locked(file)
    try:
        contents = entries.decode(plain_files.read_file(file))
        line, _ = entries.encode(Seal(adapter), contents.head)
        if contents.unmarked and not contents.ended and line.startswith(contents.unmarked):
            _write(descriptor, line[len(contents.unmarked) :])
            return
        contents = _mark_torn(descriptor, contents)
        if contents.sealed not in (None, adapter):
            raise LedgerError(
                f"{file} was sealed with another adapter: {contents.sealed[:12]}..., not {adapter[:12]}..."
            )
        if contents.sealed is None:
            _write(descriptor, entries.encode(Seal(adapter), contents.head)[0])
    finally:
        os.close(descriptor)


def _checked(release: Release) -> Release:
    """A release that a ledger can hold."""
    if not isinstance(release, Release):
        raise ValueError(f"release must be the description of a single run, got {release!r}")
    return release


def _choose(released: Composed | None, method: str | None) -> str:
    """The accountant asked for, if it fits everything released, or the tightest at user level that does."""
    if released is None:
        raise AccountingError("nothing was released")
    if method is not None:
        return accountants.check_method(released, method)
    return next(name for name in _PREFERRED if name in accountants.methods(released))


def _open_locked(path: Path) -> int:
    """A descriptor that appends to the file, with an exclusive lock; the file's name is on the disk too."""
    is_new = not path.exists()
    descriptor = plain_files.open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_new:
            plain_files.sync_entry(path)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            message = f"{path} is open in another process or ledger: a ledger has one writer at a time"
            raise LedgerError(message) from error
        raise
    return descriptor


def _is_within(released: tuple[entries.Counts, int, int], fitting: tuple[entries.Counts, int, int] | None) -> bool:
    """Whether everything released is part of what is known to fit the budget: epsilon never falls with a release.

    Both are counts of releases, of torn pieces and of repeated rounds, as `entries.total` takes them.
    """
    if fitting is None or released[1] > fitting[1] or released[2] > fitting[2]:
        return False
    known = fitting[0]
    return all(times <= known.get(release, 0) for release, times in released[0].items())


def _mark_torn(descriptor: int, contents: Contents) -> Contents:
    """The contents after an unfinished last line was ended, and marked where it is not sound."""
    if contents.ended and not contents.unmarked:
        return contents
    if not contents.unmarked:
        _write(descriptor, b"\n")
        return contents
    head = _mark(descriptor, contents.unmarked, contents.head, ended=contents.ended)
    return dataclasses.replace(contents, unmarked=b"", ended=True, head=head, num_unmarked=0)


def _mark(descriptor: int, piece: bytes, head: str, *, ended: bool) -> str:
    """Writes the mark of a torn piece, after a newline where it has none; returns the mark's hash."""
    mark, digest = entries.encode(Torn(entries.digest_of(piece)), head)
    _write(descriptor, mark if ended else b"\n" + mark)
    return digest


def _write(descriptor: int, data: bytes) -> None:
    """Appends bytes and waits until they are on the disk."""
    while data:
        data = data[os.write(descriptor, data) :]
    os.fsync(descriptor)
