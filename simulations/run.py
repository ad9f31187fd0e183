"""`fedsim run`: one mechanism."""

import hydra
from omegaconf import DictConfig

from fedsim_userdp.simulations.jobs import run_job


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="run")
def main(config: DictConfig) -> None:
    """Runs the configured mechanism and writes the run folder."""
    run_job(config, "run", lambda: [config])
