"""`fedsim compare`: every mechanism at one user-level budget."""

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from simulations.errors import ConfigError
from simulations.folder import RunFolder
from simulations.session import run_mechanism


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="compare")
def main(config: DictConfig) -> None:
    """Runs the mechanisms one after the other and writes table, plot and adapters."""
    folder = RunFolder.of_this_job(config)
    configs = mechanism_configs(config)
    with folder.progress() as progress:
        for one in configs:
            folder.add(run_mechanism(one, progress))
    folder.finish()


def mechanism_configs(config: DictConfig) -> list[DictConfig]:
    """Returns the configuration of each run: this command's own overrides, with another mechanism and seed.

    Raises:
        ConfigError: when there is no mechanism to compare.
    """
    names = list(config.compare.mechanisms or [])
    if not names:
        raise ConfigError("compare.mechanisms is empty: name at least one mechanism")
    seeds = [config.seed] if config.compare.seeds is None else list(config.compare.seeds)
    return [compose_again("compare", [f"mechanism={name}", f"seed={seed}"]) for seed in seeds for name in names]


def compose_again(config_name: str, changes: list[str]) -> DictConfig:
    """Returns the running job's configuration with `changes`; overrides that a mechanism does not have are dropped."""
    changed = {change.split("=")[0] for change in changes}
    own = [o for o in HydraConfig.get().overrides.task if o.split("=")[0].lstrip("+~") not in changed]
    zero_shot = "mechanism=zero_shot" in changes
    kept = [o for o in own if not (zero_shot and o.lstrip("+~").startswith("mechanism."))]
    return hydra.compose(config_name, overrides=[*kept, *changes], return_hydra_config=False)
