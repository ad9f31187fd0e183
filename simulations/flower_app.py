"""The ClientApp and ServerApp of Flower's own command, `flwr run`; see docs/scaling.md.

The server reads the run configuration's `overrides`, the settings of `fedsim run` as one text, trains with them on
Flower's nodes and writes a normal run folder.  Every request carries the settings as the server resolved them, and a
fingerprint of data, split, model and version: a node builds its worker from these, and refuses where it has another.
"""

import json
import shlex
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from fedsim_userdp.errors import NodeRefusal
from fedsim_userdp.federation.client_app import TrainFn, make_configured_client_app
from fedsim_userdp.federation.engines.deployment import make_server_app
from fedsim_userdp.federation.messages import TrainRequest
from fedsim_userdp.federation.worker import LastWorker, Worker
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.simulations.process import prepare_process
from fedsim_userdp.training.cohort import CohortUpdate

ENGINE = "engine=deployment"


def run_on_nodes(overrides: str) -> None:
    """Trains as `fedsim run` does, on the nodes at hand.

    Args:
        overrides: settings separated by blanks, quoted as in a shell.

    Raises:
        RuntimeError: when the settings are refused or the run stops; the sentence that says why is in Flower's log.
    """
    from fedsim_userdp.simulations.cli import run_command

    try:
        code = run_command("run", [ENGINE, *shlex.split(overrides)])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    if code:
        raise RuntimeError(f"fedsim run ended with exit code {code}: what it said is in the log")


def train_fn_of(overrides: str) -> TrainFn:
    """Returns the train function of a node: its worker is built from the settings that the server resolved.

    Args:
        overrides: of the run configuration; they say which code of one's own a node may run.
    """

    def train(request: TrainRequest) -> CohortUpdate:
        """Answers with the worker of the request's run."""
        run = request.run
        if run.key is None:
            raise NodeRefusal("the server sent no key for choices of records and dropout masks")
        build_fn = partial(_build_or_refuse, run.settings, run.key, overrides)
        worker = _LAST.worker((run.settings, run.key, overrides), build_fn)
        with _LAST.forgotten_when_it_refuses():
            return worker.train(request)

    return train


def _build_or_refuse(settings: str, key: RunKey, overrides: str) -> Worker:
    """`_build`, where what the server has and this node has not is no failure of the node, but to be mended.

    Raises:
        NodeRefusal: as `_build`, or when data, model or code that the settings name are not there.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fedsim_userdp.simulations.sentences import sentence

    try:
        return _build(settings, key, overrides)
    except (HydraException, OmegaConfBaseException, ValueError, FileNotFoundError, PermissionError) as error:
        raise NodeRefusal(f"a node cannot have what the server has: {sentence(error)}") from error


def _build(settings: str, key: RunKey, overrides: str) -> Worker:
    """This node's worker, with the model loaded once and the records of its own store.

    Raises:
        NodeRefusal: when the settings are none, are not resolved, or name code that is neither this package's nor the
            run configuration's.
    """
    from omegaconf import DictConfig, OmegaConf

    from fedsim_userdp.simulations.arguments import foreign_targets
    from fedsim_userdp.simulations.configured import configured_run
    from fedsim_userdp.simulations.names import made

    prepare_process()
    plain = json.loads(settings or "{}")
    if "${" in json.dumps(plain):  # it would be resolved here: to a variable of this process, for instance
        raise NodeRefusal("a setting of the server holds ${, which nodes do not resolve")
    config = OmegaConf.create(plain)
    if not isinstance(config, DictConfig) or "mechanism" not in config:
        raise NodeRefusal("the server sent no settings")
    config.resume = None  # the server has gone on with the run; a node has no part of it on disk
    config.metrics = {}  # the server alone scores
    if strange := foreign_targets(config, shlex.split(overrides)):
        raise NodeRefusal(f"{strange[0]} is code that the run configuration of this node does not name")
    with tempfile.TemporaryDirectory(prefix="fedsim-node-") as folder:
        mechanism = made("mechanism", config.mechanism)
        clipping = mechanism.clipping() if hasattr(mechanism, "clipping") else None
        worker = configured_run(config, Path(folder)).worker(mechanism.records_per_user, clipping)
        return replace(worker, users=replace(worker.users, key=key))


_LAST = LastWorker()
prepare_process()
client_app = make_configured_client_app(train_fn_of)
server_app = make_server_app(run_on_nodes)
