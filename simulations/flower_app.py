"""The ClientApp and ServerApp of Flower's own command, `flwr run`; see docs/scaling.md.

Both read the run configuration's `overrides`, the settings of `fedsim run` as one text: the server trains with them on
Flower's nodes and writes a normal run folder, and every node builds the same worker from them.
"""

import shlex
import tempfile
from functools import lru_cache
from pathlib import Path

from fedsim_userdp.federation.client_app import TrainFn, make_configured_client_app
from fedsim_userdp.federation.deployment import make_server_app
from simulations.process import prepare_process

ENGINE = "engine=deployment"


def run_on_nodes(overrides: str) -> None:
    """Trains as `fedsim run` does, on the nodes at hand.

    Args:
        overrides: settings separated by blanks, quoted as in a shell.

    Raises:
        RuntimeError: when the settings are refused or the run stops; the sentence that says why is in Flower's log.
    """
    from simulations.cli import run_command

    try:
        code = run_command("run", [ENGINE, *shlex.split(overrides)])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    if code:
        raise RuntimeError(f"fedsim run ended with exit code {code}: what it said is in the log")


@lru_cache(maxsize=1)
def train_fn_of(overrides: str) -> TrainFn:
    """Returns the train function of a node: its worker, with the model loaded once and the records of its own store."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.utils import instantiate

    from simulations.arguments import complete_arguments
    from simulations.task import build_task

    prepare_process()
    GlobalHydra.instance().clear()
    with tempfile.TemporaryDirectory(prefix="fedsim-node-") as folder:
        settings = complete_arguments("run", [*without_output(shlex.split(overrides)), f"output_dir={folder}"])
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("run", overrides=settings)
        mechanism = instantiate(config.mechanism)
        return build_task(config, Path(folder)).worker(mechanism.records_per_user).train


def without_output(overrides: list[str]) -> list[str]:
    """Returns the settings without the run folder: only the server writes one."""
    return [override for override in overrides if not override.startswith(("output_dir=", "resume="))]


prepare_process()
client_app = make_configured_client_app(train_fn_of)
server_app = make_server_app(run_on_nodes)
