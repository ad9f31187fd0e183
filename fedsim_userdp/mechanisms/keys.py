"""The secret of a run on disk while the run can be resumed: its run key, and the key of its ledger's digests."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsim_userdp.data.layout import sync_folder
from fedsim_userdp.errors import CheckpointError
from fedsim_userdp.naming import naming
from fedsim_userdp.plain_files import make_folder, move, open_file, open_folder, read_file, remove
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.report.files import NOT_PRIVATE

FILE, DRAWS_FILE = "secret.json", "draws.json"


@dataclass(frozen=True)
class RunKeys:
    """What of a run nobody else may know.

    Attributes:
        run: all random numbers derive from it; from the operating system for a release, else from the seed.
        marks: digests in the ledger are made with it, so that they are no test of a guess of somebody's data; always
            from the operating system.
        is_stored: whether they are those of an earlier part of the run.
    """

    run: RunKey
    marks: RunKey
    is_stored: bool = False

    @classmethod
    def of(cls, run: RunKey) -> "RunKeys":
        """Returns the keys of a new run."""
        return cls(run, RunKey.drawn())

    def write(self, folder: Path) -> None:
        """Writes the keys to a folder, readable by this user only; a run key that follows from the seed is left out.

        Raises:
            OSError: when they cannot be written.
        """
        content = {"run": None if self.run.is_seeded else self.run.secret.hex(), "marks": self.marks.secret.hex()}
        with naming(folder / FILE), _alone(folder):
            _write(folder / FILE, content)


def stored_keys(folder: Path, seeded: RunKey | None) -> RunKeys | None:
    """Returns the keys of the run that is to be gone on with; None where it has ended or never begun.

    Args:
        folder: where `RunKeys.write` wrote them.
        seeded: the key that follows from the seed; None for a run whose key is the operating system's.

    Raises:
        CheckpointError: when the file is damaged, or of a run with another source of randomness.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        content = json.loads(read_file(file))
        run, marks = _key(content, "run"), _key(content, "marks")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: the run cannot be continued") from error
    if (run is None) == (seeded is None) or marks is None:
        raise CheckpointError(f"{file} is of a run with another noise.source, which cannot change within a run")
    return RunKeys(run or seeded or marks, marks, is_stored=True)


def remove_keys(folder: Path) -> None:
    """Removes the keys of a run that has ended."""
    remove(folder / FILE)


def mark_of_draw(root: Path, run: RunKey) -> str:
    """Returns what two runs below `root` have in common where they have one key: the same settings, data and seed, or a
    folder that was copied while a run was under way.

    Of a seeded run it is made with a secret of `root`, so that whoever reads it cannot test a guess of the key, or of
    the data that it follows from.  What is before its colon stands for that secret: only marks of one secret compare.

    Args:
        root: the run folder, or the folder of the sweep whose job it is.
        run: the run's key.

    Raises:
        OSError: when the secret cannot be written.
        CheckpointError: when it is damaged.
    """
    if not run.is_seeded:  # 256 random bits, which no guess can be tested against
        return f"os:{run.mark('draw', '')}"
    folder = root / NOT_PRIVATE
    file = folder / DRAWS_FILE
    with naming(file), _alone(folder):
        if not file.exists():  # by now another job of the sweep may have written it
            _write(file, {"marks": RunKey.drawn().secret.hex()})
    try:
        marks = _key(json.loads(read_file(file)), "marks")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: it tells which runs have the same noise") from error
    if marks is None:
        raise CheckpointError(f"{file} is damaged: it tells which runs have the same noise")
    return f"{marks.mark('secret', '')[:12]}:{marks.mark('draw', run.secret.hex())}"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a folder if need be, and keeps other processes that write here waiting for the duration of the block."""
    make_folder(folder)
    descriptor = open_folder(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, content: Mapping[str, str | None]) -> None:
    """Writes a file to the disk, whole or not at all, readable by this user only."""
    temporary = file.with_name(f".new.{file.name}")
    remove(temporary)  # left by a process that was killed
    with os.fdopen(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        json.dump(content, opened)
        opened.flush()
        os.fsync(opened.fileno())
    move(temporary, file)
    sync_folder(file.parent)


def _key(content: Mapping[str, str | None], name: str) -> RunKey | None:
    """A key of the file, or None where there is none."""
    value = content[name]
    return None if value is None else RunKey(bytes.fromhex(value), is_seeded=False)
