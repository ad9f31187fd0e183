"""Hydra's list of a sweep's jobs (`multirun.yaml`), which it is gone on with: what nothing ran with is not kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedsim_userdp.mechanisms.started import RUN_FILE
from fedsim_userdp.report.files import write_text

FILE = "multirun.yaml"


@contextmanager
def kept_where_jobs_begin(sweep: Path) -> Iterator[None]:
    """Puts the list back as it was before, at the end of the block, where no job began or went on within it.

    Hydra writes the list anew before the first job starts, whatever becomes of the jobs.

    Args:
        sweep: the folder of the sweep.
    """
    file = sweep / FILE
    # `isfile` is false where the folder cannot be made, which is then said by who makes it.
    before, begun = file.read_text(encoding="utf-8") if os.path.isfile(file) else None, _begun(sweep)
    try:
        yield
    finally:
        now = _begun(sweep)
        if now == begun and before is not None and os.path.isfile(file):
            write_text(file, before)
        elif before is None and not now and os.path.lexists(file):
            file.unlink()


def _begun(sweep: Path) -> dict[Path, tuple[int, int]]:
    """When the jobs below a sweep's folder wrote down what they were started with, as each does when it goes on."""
    found = {file: file.stat() for file in sweep.rglob(RUN_FILE) if file.is_file()}
    return {file: (state.st_ino, state.st_mtime_ns) for file, state in found.items()}
