"""The folder of the running Hydra job."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from fedsim_userdp.mechanisms.own_folder import own_folder

USED: list[Path] = []  # folders of this process's jobs and of their sweep


def folder_of_job(*, is_resumed: bool = False, holds_a_run: bool = False) -> AbstractContextManager[Path]:
    """Gives the running job's folder, kept from other processes for the duration of the block; see `own_folder`."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    if settings.mode == RunMode.MULTIRUN:
        USED.append(Path(os.path.abspath(str(settings.sweep.dir))))
    USED.append(Path(os.path.abspath(folder)))
    return own_folder(folder, is_resumed=is_resumed, holds_a_run=holds_a_run)
