"""`fedsim run`: one mechanism."""

import hydra
from omegaconf import DictConfig

from simulations.arguments import begin_folder, check_types
from simulations.occupied import occupied_folder
from simulations.process import without_garbage_collection


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="run")
def main(config: DictConfig) -> None:
    """Runs the configured mechanism and writes the run folder."""
    check_types(config, "run")
    with occupied_folder():
        begin_folder(config, "run")
        with without_garbage_collection():
            from simulations.folder import RunFolder  # here, so that --help need not load torch
            from simulations.session import run_mechanism

        folder = RunFolder.of_this_job(config)
        with folder.progress() as progress:
            folder.add(run_mechanism(config, progress, folder.path))
        folder.finish()
