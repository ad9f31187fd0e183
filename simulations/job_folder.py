"""The folder of the running Hydra job."""

from contextlib import AbstractContextManager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from fedsim_userdp.mechanisms.own_folder import own_folder


def folder_of_job(*, is_resumed: bool = False) -> AbstractContextManager[Path]:
    """Gives the running job's folder, kept from other processes for the duration of the block; see `own_folder`."""
    return own_folder(Path(HydraConfig.get().runtime.output_dir), is_resumed=is_resumed)
