"""`fedsim run`: one mechanism."""

import hydra
from omegaconf import DictConfig

from fedsim_userdp.simulations.jobs import check_used, run_job


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="run")
def main(config: DictConfig) -> None:
    """Runs the configured mechanism and writes the run folder."""
    run_job(config, "run", lambda: _used(config))


def _used(config: DictConfig) -> list[DictConfig]:
    """The configuration, every setting of mechanisms on the command line being one of its mechanism."""
    check_used([(config, {})])
    return [config]
