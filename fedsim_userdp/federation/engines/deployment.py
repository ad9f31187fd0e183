"""Nodes that Flower runs for itself: `flwr run`, in simulation or on the SuperNodes of a SuperLink."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedsim_userdp.federation.hosting import wait_for_nodes
from fedsim_userdp.federation.messages import to_arrays
from fedsim_userdp.federation.rounds import RetryingStrategy, RetryPolicy, Rounds, run_rounds
from fedsim_userdp.federation.worker import Worker, WorkerRecipe

_GRID: ContextVar[Grid | None] = ContextVar("grid", default=None)


@contextmanager
def nodes_of(grid: Grid) -> Iterator[None]:
    """Within the block, a `DeploymentEngine` uses the nodes of `grid`."""
    token = _GRID.set(grid)
    try:
        yield
    finally:
        _GRID.reset(token)


def make_server_app(run_fn: Callable[[str], None]) -> ServerApp:
    """Returns an app that calls `run_fn` with the run configuration's `overrides`, Flower's nodes at hand."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Runs the configured training on the grid's nodes."""
        with nodes_of(grid):
            run_fn(str(context.run_config.get("overrides", "")))

    return app


@dataclass(frozen=True)
class DeploymentEngine:
    """The nodes of the Flower runtime that this process is a ServerApp of.

    Attributes:
        num_nodes: nodes to wait for, at least 1; None for those that are there, at least one.
        max_retries: how often (0 or more) in a round users whose node failed are done again by other nodes, which must
            hold their records as well; with 0 they count as zero, and users live on the node that a hash of their id
            names (docs/decisions/0007).
        round_timeout: seconds, above 0, that a round, and each retry, waits for answers, the first round 300 more; None
            for no limit.

    Raises:
        ValueError: when a number is out of range.
    """

    num_nodes: int | None = None
    max_retries: int = 3
    round_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.num_nodes is not None and (not isinstance(self.num_nodes, int) or self.num_nodes < 1):
            raise ValueError(f"num_nodes={self.num_nodes} must be a whole number of at least 1, or null")
        self.retry_policy  # noqa: B018 - checks its settings

    @property
    def retry_policy(self) -> RetryPolicy:
        """What is done about nodes that fail."""
        return RetryPolicy(self.max_retries, self.round_timeout, pause=1.0)

    def num_nodes_for(self, num_users: int) -> int:
        """Returns `num_nodes`, or how many nodes are there."""
        return len(wait_for_nodes(_grid(), 1)) if self.num_nodes is None else self.num_nodes

    def deals_by_size(self, num_users: int) -> bool:
        """Returns whether a failed node's users are done again."""
        return self.max_retries > 0

    def run(
        self,
        strategy: RetryingStrategy,
        recipe: WorkerRecipe,
        worker: Worker,
        state: Mapping[str, Tensor],
        rounds: Rounds,
    ) -> None:
        """Runs the rounds on Flower's nodes; these build their workers themselves."""
        run_rounds(strategy, _grid(), to_arrays(state), rounds, self.retry_policy)


def _grid() -> Grid:
    """The nodes at hand.

    Raises:
        ValueError: when this process is no ServerApp.
    """
    grid = _GRID.get()
    if grid is None:
        raise ValueError("engine=deployment runs under `flwr run` only, see docs/scaling.md; here use engine=flower")
    return grid
