"""What a refused command leaves behind: nothing."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedsim_userdp.simulations.arguments import override_key, override_value
from fedsim_userdp.simulations.job_folder import USED

_DEFAULT = "runs"  # holds the folders of runs for which `output_dir` names none
_SWEEP_FILE = "multirun.yaml"  # which Hydra writes before the first job of a sweep starts


@contextmanager
def nothing_left(arguments: Sequence[str]) -> Iterator[None]:
    """Removes, at the end of the block, folders that it made for `output_dir` and in which there is nothing.

    A sweep's folder in which Hydra's list of jobs is all that there is counts as empty.

    Args:
        arguments: the command line for Hydra.
    """
    named = [override_value(one) for one in arguments if override_key(one) == "output_dir" and "=" in one]
    place = Path(os.path.abspath(str(named[-1] if named else _DEFAULT).partition("${")[0] or "."))
    before = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    USED.clear()
    try:
        yield
    finally:
        for folder in (*reversed(USED), place):
            for made in (folder, *folder.parents):
                if before not in made.parents:
                    break
                with contextlib.suppress(OSError):
                    _remove_if_empty(made)


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder that holds nothing, or nothing but the list of a sweep's jobs."""
    if not folder.is_symlink() and [one.name for one in folder.iterdir()] == [_SWEEP_FILE]:
        (folder / _SWEEP_FILE).unlink()
    folder.rmdir()
