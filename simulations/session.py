"""Running one configured mechanism."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from fedsim_userdp.report.progress import RunProgress
from simulations.diary import Outcome
from simulations.mechanisms import Mechanism
from simulations.task import build_task


def run_mechanism(config: DictConfig, progress: RunProgress, folder: Path) -> Outcome:
    """Returns the outcome of the configuration's mechanism; settings are checked before any training."""
    mechanism: Mechanism = instantiate(config.mechanism)
    return mechanism.run(build_task(config, folder), progress)
