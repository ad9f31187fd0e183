"""What runs the nodes: this process, or Flower's Simulation Runtime.  Both run the same app and strategy."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.in_process import InProcessGrid
from fedsim_userdp.federation.messages import to_arrays
from fedsim_userdp.federation.worker import Worker, WorkerRecipe


@dataclass(frozen=True)
class Rounds:
    """Which rounds to run: `first` to `last`, both included."""

    first: int
    last: int


class Engine(Protocol):
    """Runs a strategy's rounds on some nodes."""

    def num_nodes_for(self, num_users: int) -> int:
        """Returns how many nodes there will be for a population of `num_users`."""
        ...

    def run(
        self, strategy: Strategy, recipe: WorkerRecipe, worker: Worker, state: Mapping[str, Tensor], rounds: Rounds
    ) -> None:
        """Runs the rounds; results reach the caller through the strategy.

        Args:
            strategy: the server's strategy.
            recipe: builds a worker in another process.
            worker: this process's worker.
            state: the adapter before the first of the rounds.
            rounds: which rounds.
        """
        ...


@dataclass(frozen=True)
class InProcessEngine:
    """Nodes in this process, one after the other, sharing one model.

    Attributes:
        num_nodes: nodes that share the users between them, at least 1; None for one node per user.
    """

    num_nodes: int | None = 1

    def num_nodes_for(self, num_users: int) -> int:
        """Returns `num_nodes`, or `num_users` where that is None."""
        return num_users if self.num_nodes is None else self.num_nodes

    def run(
        self, strategy: Strategy, recipe: WorkerRecipe, worker: Worker, state: Mapping[str, Tensor], rounds: Rounds
    ) -> None:
        """Runs the rounds with this process's worker."""
        app = make_client_app(worker.train)
        grid = InProcessGrid(app, self.num_nodes_for(len(worker.users)))
        run_rounds(strategy, grid, to_arrays(state), rounds)


@dataclass(frozen=True)
class FlowerEngine:
    """Flower's Simulation Runtime on Ray.

    Attributes:
        num_nodes: SuperNodes; None for one per user.
        num_cpus: CPU cores of each Ray worker process; as many run at once as fit.
        num_gpus: GPUs (or a fraction of one) of each.
    """

    num_nodes: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0.0

    def num_nodes_for(self, num_users: int) -> int:
        """Returns `num_nodes`, or `num_users` where that is None."""
        return num_users if self.num_nodes is None else self.num_nodes

    def run(
        self, strategy: Strategy, recipe: WorkerRecipe, worker: Worker, state: Mapping[str, Tensor], rounds: Rounds
    ) -> None:
        """Starts the runtime, runs the rounds in its ServerApp and stops it."""
        switch_off_usage_reports()
        from flwr.simulation import run_simulation

        server_app = ServerApp()

        @server_app.main()
        def main(grid: Grid, context: Context) -> None:
            """Runs the rounds."""
            run_rounds(strategy, grid, to_arrays(state), rounds)

        run_simulation(
            server_app,
            make_client_app(recipe.train),
            num_supernodes=self.num_nodes_for(len(worker.users)),
            backend_config={"client_resources": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus}},
        )


def run_rounds(
    strategy: Strategy, grid: Grid, arrays: ArrayRecord, rounds: Rounds, timeout: float | None = None
) -> ArrayRecord:
    """Returns the arrays after the rounds: configure, send, receive, aggregate.

    Flower's own `Strategy.start` does the same from round 1 only and logs each step; this one can resume.
    """
    for number in range(rounds.first, rounds.last + 1):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = grid.send_and_receive(messages, timeout=timeout)
        aggregated, _ = strategy.aggregate_train(number, replies)
        arrays = arrays if aggregated is None else aggregated
    return arrays


def switch_off_usage_reports() -> None:
    """Keeps Flower, Ray and the Hub client from reporting usage to their makers, unless the user set otherwise."""
    for name, value in (
        ("FLWR_TELEMETRY_ENABLED", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ):
        os.environ.setdefault(name, value)
