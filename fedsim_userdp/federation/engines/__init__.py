"""What runs the nodes: this process, Flower's Simulation Runtime, or a deployment's own; app and strategy are one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import to_arrays
from fedsim_userdp.federation.rounds import RetryingStrategy, Rounds, run_rounds
from fedsim_userdp.federation.worker import Worker, WorkerRecipe


class Engine(Protocol):
    """Runs a strategy's rounds on some nodes."""

    def num_nodes_for(self, num_users: int) -> int:
        """Returns how many nodes there will be for a population of `num_users`."""
        ...

    def deals_by_size(self, num_users: int) -> bool:
        """Returns whether users are dealt to nodes by size, or live where their id says (see `Hosts`).

        It must not depend on the number of users: a user more may change nothing but what that user adds.
        """
        ...

    def run(
        self,
        strategy: RetryingStrategy,
        recipe: WorkerRecipe,
        worker: Worker,
        state: Mapping[str, Tensor],
        rounds: Rounds,
    ) -> None:
        """Runs the rounds; results reach the caller through the strategy.

        Args:
            strategy: the server's strategy.
            recipe: builds a worker in another process.
            worker: this process's worker.
            state: the adapter before the first of the rounds.
            rounds: which rounds.

        Raises:
            RoundError: when a round cannot be finished.
            TimeoutError: when fewer nodes come up than the strategy waits for.
            ValueError: when the engine's settings do not fit what is there, or a selector does not keep to what it
                declared.
            ConnectionError: when there is no cluster at the engine's address.
        """
        ...


def has_node_per_user(engine: Engine, num_users: int) -> bool:
    """Returns whether the engine has a node for each user however many users there are, not just for so many."""
    return all(engine.num_nodes_for(number) == number for number in (num_users, num_users + 1))


def check_whole(name: str, value: object) -> None:
    """Raises ValueError unless a setting of an engine is None or a whole number of at least 1."""
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}={value} must be a whole number of at least 1, or null")


def nodes_of_users(num_nodes: int | None, num_users: int) -> int:
    """Returns the nodes that share users, one for each user where that is None.

    Raises:
        ValueError: there are more nodes than users.
    """
    if num_nodes is not None and num_nodes > num_users:
        raise ValueError(f"engine.num_nodes={num_nodes} must be at most the {num_users} training users, or null")
    return num_users if num_nodes is None else num_nodes


@dataclass(frozen=True)
class InProcessEngine:
    """Nodes in this process, one after the other, sharing one model.

    Attributes:
        num_nodes: nodes that share the users between them, at least 1; None for one node per user.
    """

    num_nodes: int | None = 1

    def __post_init__(self) -> None:
        check_whole("num_nodes", self.num_nodes)

    def num_nodes_for(self, num_users: int) -> int:
        """Returns `num_nodes`, or `num_users` where that is None; raises ValueError where nodes are more than users."""
        return nodes_of_users(self.num_nodes, num_users)

    def deals_by_size(self, num_users: int) -> bool:
        """Returns False: nodes in turn have no load to balance."""
        return False

    def run(
        self,
        strategy: RetryingStrategy,
        recipe: WorkerRecipe,
        worker: Worker,
        state: Mapping[str, Tensor],
        rounds: Rounds,
    ) -> None:
        """Runs the rounds with this process's worker.

        Raises:
            RoundError: when a round cannot be finished.
            ValueError: when `num_nodes` is below 1 or above the number of training users, or a selector does not keep
                to what it declared.
        """
        grid = InProcessGrid(make_client_app(worker.train), self.num_nodes_for(len(worker.users)))
        run_rounds(strategy, grid, to_arrays(state), rounds)
