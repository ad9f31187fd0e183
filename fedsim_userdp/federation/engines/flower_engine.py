"""Flower's Simulation Runtime as an engine."""

import logging
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.engines import check_whole, nodes_of_users
from fedsim_userdp.federation.messages import to_arrays
from fedsim_userdp.federation.rounds import RetryingStrategy, RetryPolicy, Rounds, run_rounds
from fedsim_userdp.federation.worker import Worker, WorkerRecipe


@dataclass(frozen=True)
class FlowerEngine:
    """Nodes of Flower's Simulation Runtime, in worker processes that Ray runs.

    With one node per worker (`num_nodes`), each worker process loads the model once and keeps it, and a round's users
    are dealt to the nodes by size.  A worker that dies is started again.

    Attributes:
        num_nodes: SuperNodes, at least 1, each on a worker process of its own; None for one per user on as many
            processes as fit.
        num_cpus: CPU cores of each worker process, above 0.
        num_gpus: GPUs (or a fraction of one) of each, at least 0; None shares those there are out evenly when the model
            runs on one, and is 0 otherwise.
        threads: CPU threads of torch in each, at least 1; None for `num_cpus` of them.
        address: of an existing Ray cluster ("auto" or HOST:PORT); None for one of the run's own.
        max_retries: how often (0 or more) in a round users whose node failed are done again by other nodes; with 0 they
            count as zero, and users live on the node that a hash of their id names instead of being dealt by size.
            With one node per user, users are done again on their own, and those whose retries fail count as zero
            (docs/decisions/0007).
        round_timeout: seconds, above 0, that a round, and each retry, waits for answers, the first round 300 more; None
            for no limit.  A worker that takes longer is ended and started again.

    Raises:
        ValueError: when a number is out of range.
    """

    num_nodes: int | None = None
    num_cpus: float = 1
    num_gpus: float | None = None
    threads: int | None = None
    address: str | None = None
    max_retries: int = 3
    round_timeout: float | None = None

    def __post_init__(self) -> None:
        check_whole("num_nodes", self.num_nodes)
        check_whole("threads", self.threads)
        if not isinstance(self.num_cpus, int | float) or not 0 < self.num_cpus < math.inf:
            raise ValueError(f"num_cpus={self.num_cpus} must be a number above 0")
        num_gpus = 0 if self.num_gpus is None else self.num_gpus
        if not isinstance(num_gpus, int | float) or not 0 <= num_gpus < math.inf:
            raise ValueError(f"num_gpus={self.num_gpus} must be a number of at least 0, or null")
        self.retry_policy  # noqa: B018 - checks its settings

    @property
    def retry_policy(self) -> RetryPolicy:
        """What is done about nodes that fail."""
        return RetryPolicy(self.max_retries, self.round_timeout, pause=1.0)

    def num_nodes_for(self, num_users: int) -> int:
        """Returns `num_nodes`, or `num_users` where that is None; raises ValueError where nodes are more than users."""
        return nodes_of_users(self.num_nodes, num_users)

    def deals_by_size(self, num_users: int) -> bool:
        """Returns whether users share nodes and a failed node's users are done again."""
        return self.max_retries > 0 and self.num_nodes is not None

    def run(
        self,
        strategy: RetryingStrategy,
        recipe: WorkerRecipe,
        worker: Worker,
        state: Mapping[str, Tensor],
        rounds: Rounds,
    ) -> None:
        """Starts the runtime, runs the rounds in its ServerApp and stops it.

        Raises:
            RoundError: when a round cannot be finished.
            TimeoutError: when fewer nodes come up than the strategy waits for.
            ValueError: when `address` is neither "auto" nor HOST:PORT, there is no room for the workers, or a selector
                does not keep to what it declared.
            ConnectionError: when there is no cluster at `address`.
        """
        switch_off_usage_reports()
        from flwr.simulation import run_simulation

        from fedsim_userdp.federation.engines import ray_cluster

        stopped, server_app = threading.Event(), ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            """Runs the rounds."""
            run_rounds(strategy, grid, to_arrays(state), rounds, self.retry_policy, stopped)

        logical_cpus = None if self.num_nodes is None else math.ceil(self.num_nodes * self.num_cpus)
        own = replace(recipe, threads=self.threads or max(1, int(self.num_cpus)), time_limit=self.round_timeout)
        try:
            with ray_cluster.connected_to_ray(self.address, logical_cpus), _quiet("flwr"):
                resources = ray_cluster.WorkerResources(self.num_cpus, self._gpus_of_a_worker(worker))
                ray_cluster.check_room(resources, self.num_nodes, self.address)
                run_simulation(
                    server_app,
                    make_client_app(own.train),
                    num_supernodes=self.num_nodes_for(len(worker.users)),
                    backend_config={"client_resources": {**resources.to_actor_options()}},
                )
        finally:
            stopped.set()  # or the server's thread would wait on when the runtime breaks down

    def _gpus_of_a_worker(self, worker: Worker) -> float:
        """`num_gpus`, or a share of the connected cluster's where this process's own model runs on a GPU."""
        from fedsim_userdp.federation.engines import ray_cluster

        if self.num_gpus is not None:
            return self.num_gpus
        device = next(worker.gradients.model.parameters()).device
        return ray_cluster.share_of_gpu(self.num_nodes) if device.type == "cuda" else 0.0


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps a logger from printing tracebacks of failed nodes: they are counted, and said in one line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except KeyboardInterrupt:
        level = logging.CRITICAL  # Flower's threads have yet to end, and would say so
        raise
    finally:
        logger.setLevel(level)


def switch_off_usage_reports() -> None:
    """Keeps Flower, Ray and the Hub client from reporting usage to their makers, unless the user set otherwise."""
    for name, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ):
        os.environ.setdefault(name, value)
