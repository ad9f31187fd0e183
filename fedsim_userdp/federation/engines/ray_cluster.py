"""A Ray cluster for Flower's Simulation Runtime: one of this run's own, or one that is there already."""

import logging
import math
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import ray
from flwr.simulation.ray_transport.ray_actor import pool_size_from_resources

from fedsim_userdp.federation.engines.ray_folders import temporary_folder

# Variables by which workers behave as this process does; none of them is a secret, since Ray shows them.
_PASSED_ON = (
    "FEDSIM_CACHE_DIR",
    "FLWR_TELEMETRY_ENABLED",
    "GOMP_SPINCOUNT",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_OFFLINE",
    "MALLOC_MMAP_MAX_",
    "MALLOC_TOP_PAD_",
    "MALLOC_TRIM_THRESHOLD_",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
    "RAY_USAGE_STATS_ENABLED",
)


@dataclass(frozen=True)
class WorkerResources:
    """What each worker process is given.

    Attributes:
        num_cpus: CPU cores, above 0.
        num_gpus: GPUs, or a fraction of one, at least 0.
    """

    num_cpus: float
    num_gpus: float

    def to_actor_options(self) -> dict[str, int | float]:
        """Returns them as Ray's actor options; a worker that dies is started again, however often."""
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "max_restarts": -1}


@contextmanager
def connected_to_ray(address: str | None, num_cpus: int | None) -> Iterator[None]:
    """Connects this process to Ray for the duration of the block.

    Args:
        address: an existing cluster's, as `ray.init` takes it; None starts one on this machine for this run alone: its
            files and ports are its own, so that several runs at once do not meet.
        num_cpus: how many CPUs an own cluster says it has; None for those there are.

    Raises:
        ValueError: when `address` is neither "auto" nor HOST:PORT.
        ConnectionError: when there is no cluster at `address`.
    """
    if address is not None:
        _check_address(address)
    with ExitStack() as stack:
        where: dict[str, object] = {"address": address}
        if address is None:
            folder = str(stack.enter_context(temporary_folder()))
            where = {"address": "local", "num_cpus": num_cpus, "_temp_dir": folder, "include_dashboard": False}
        stack.callback(ray.shutdown)
        with _signals_kept():
            _initialise(where)
        yield


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keeps signals that ask this process to stop for the end of the block, and undoes what Ray does to them.

    While Ray starts it can swallow what a handler raises; its own handlers exit with another code, or print a stack.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda number, frame: asked.append(number))
    set_handler = getattr(ray._private.utils, "set_sigterm_handler", None)
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = set_handler
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for one in asked[:1]:
            signal.raise_signal(one)


def _initialise(where: Mapping[str, object]) -> None:
    """Connects to the cluster that is `where`, or starts it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about what Ray will change one day
        try:
            ray.init(
                **where,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": _environment()},
            )
        except ConnectionError as error:
            raise ConnectionError(f"engine.address={where['address']}: {str(error).splitlines()[0]}") from error


def _check_address(address: str) -> None:
    """Raises unless something listens at HOST:PORT; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError(f"engine.address={address} must be auto or HOST:PORT, such as 127.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=10.0).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"engine.address={address}: nothing answers there ({error})") from error


def share_of_gpu(num_workers: int | None) -> float:
    """Returns the GPUs of each worker when the connected cluster's are shared out evenly, at most 1.

    Args:
        num_workers: how many workers there will be; None for one to each GPU.
    """
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if not num_gpus:
        return 0.0
    to_each = 1 if num_workers is None else math.ceil(num_workers / num_gpus)
    return math.floor(1e4 / to_each) / 1e4  # Ray counts in ten thousandths


def check_room(resources: WorkerResources, num_workers: int | None, address: str | None) -> None:
    """Raises ValueError unless that many workers (None for at least one) fit into the connected cluster."""
    wanted = num_workers or 1
    try:
        room = pool_size_from_resources(dict(resources.to_actor_options()))
    except ValueError:
        room = 0
    if room < wanted:
        where = "this machine" if address is None else f"the cluster at {address}"
        raise ValueError(
            f"engine.num_cpus={resources.num_cpus:g} and engine.num_gpus={resources.num_gpus:g} leave {where} room for "
            f"{room} of {wanted} workers"
        )


def _environment() -> dict[str, str]:
    """The environment of worker processes: this one's modules and settings."""
    paths = [*sys.path, *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return settings | {"PYTHONPATH": os.pathsep.join(paths)}
