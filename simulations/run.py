"""`fedsim run`: one mechanism."""

import hydra
from omegaconf import DictConfig

from simulations.arguments import beginning, check_types
from simulations.occupied import folder_of_job
from simulations.process import without_garbage_collection


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="run")
def main(config: DictConfig) -> None:
    """Runs the configured mechanism and writes the run folder."""
    check_types(config, "run")
    with folder_of_job(is_resumed=config.resume is not None) as path:
        begin = beginning(config, "run")
        with without_garbage_collection():
            from simulations.folder import RunFolder  # here, so that --help need not load torch
            from simulations.session import Session

        session = Session([config], path, begin)
        folder = RunFolder.of_this_job()
        with folder.progress() as progress:
            for outcome in session.outcomes(progress):
                folder.add(outcome)
        folder.finish()
