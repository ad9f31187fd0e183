"""One folder, one run: a command's folder is locked, holds no other run, and is gone again if nothing was written."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from simulations.errors import ConfigError

# What only a run, comparison or audit writes to its folder.
MARKS = (
    *("run.json", "config.yaml", "privacy.json", "PRIVACY.md", "results.json", "results.csv", "audit.json"),
    *("ledger", "adapters", "not_private/checkpoints", "multirun.yaml"),
)


@contextmanager
def folder_of_job(*, is_resumed: bool = False) -> Iterator[Path]:
    """Gives the running job's folder, kept from other processes for the duration of the block.

    Where the block ends in an error before anything was written, the folder is removed again.

    Args:
        is_resumed: whether the run that the folder holds is to be gone on with.

    Raises:
        ConfigError: when another process is at work in it, or it holds a run that is not to be gone on with.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with locked(folder, "output_dir"):
            if not is_resumed and (mark := mark_of_a_run(folder)):
                raise ConfigError(
                    f"output_dir={folder} holds a run already ({mark}): go on with it by resume={folder}, or choose "
                    "another folder"
                )
            yield folder
    except BaseException:
        _remove_if_empty(folder)
        raise


def mark_of_a_run(folder: Path) -> str:
    """Returns the name of something in a folder that only a run writes; empty where there is none."""
    return next((name for name in MARKS if os.path.lexists(folder / name)), "")


@contextmanager
def locked(folder: Path, setting: str) -> Iterator[None]:
    """Keeps other processes out of a folder for the duration of the block; nothing is written for it.

    Args:
        folder: the folder.
        setting: what names it, for the message.

    Raises:
        ConfigError: when another process is at work in it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{setting}={folder} is in use by another run: wait for it, or name another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    """Removes a folder where nothing is in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
