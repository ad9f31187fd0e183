"""One run folder, one run: two that were started with the same `output_dir` do not mix their files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from simulations.arguments import check_subdir
from simulations.errors import ConfigError

LOCK_FILE = ".lock"


@contextmanager
def occupied_folder() -> Iterator[Path]:
    """Gives the running job's folder, kept from other processes for the duration of the block.

    Raises:
        ConfigError: when another process is at work in it, or it is that of a sweep's job and not in the sweep's.
    """
    settings = HydraConfig.get()
    if settings.mode == RunMode.MULTIRUN:
        check_subdir(str(settings.sweep.subdir))
    folder = Path(settings.runtime.output_dir)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"output_dir={folder} is in use by another run: wait for it, or name another folder"
        ) from error
    try:
        yield folder
    finally:
        lock.release()
