"""Rounds under somebody else's clock: run one at a time, or watched while a runtime runs them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from torch import Tensor

from fedsim_userdp.federation.client_app import make_client_app
from fedsim_userdp.federation.engines.in_process import InProcessGrid
from fedsim_userdp.federation.messages import to_arrays
from fedsim_userdp.federation.rounds import RetryingStrategy, Rounds, run_rounds
from fedsim_userdp.federation.worker import Worker

GridFn = Callable[[], Grid]


class Laps(Protocol):
    """What is told of rounds."""

    def begin(self) -> None:
        """A round begins."""
        ...

    def lap(self) -> None:
        """The round is over."""
        ...


class StepwiseRounds:
    """A strategy's rounds on a grid, the next one at each call.

    Args:
        strategy: the server's strategy.
        state: the adapter before the first round.
        grid_of: returns the nodes; asked in every round.
    """

    def __init__(self, strategy: RetryingStrategy, state: Mapping[str, Tensor], grid_of: GridFn) -> None:
        self._strategy, self._arrays, self._grid_of, self._round = strategy, to_arrays(state), grid_of, 0

    def __call__(self) -> None:
        """Runs the next round."""
        self._round += 1
        self._arrays = run_rounds(self._strategy, self._grid_of(), self._arrays, Rounds(self._round, self._round))


def nodes_in_this_process(worker: Worker, num_nodes: int = 1) -> InProcessGrid:
    """Returns nodes that share the worker, as engine=in_process has them."""
    return InProcessGrid(make_client_app(worker.train), num_nodes)


class WatchedStrategy(RetryingStrategy):
    """A strategy that says when each of its rounds begins and when its new adapter is there.

    Args:
        inner: the strategy.
        laps: what is told.
    """

    def __init__(self, inner: RetryingStrategy, laps: Laps) -> None:
        self._inner, self._laps = inner, laps
        self._grid: Grid | None = None

    @property
    def first_node(self) -> Grid:
        """The runtime's nodes as if only the first of them were there.

        Raises:
            RuntimeError: before the first round.
        """
        if self._grid is None:
            raise RuntimeError("there are no nodes before the first round")
        return _FirstNode(self._grid)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns the round's messages."""
        self._grid = grid
        self._laps.begin()
        return self._inner.configure_train(server_round, arrays, config, grid)

    def configure_retry(self, server_round: int, replies: Iterable[Message], grid: Grid) -> Sequence[Message]:
        """Returns messages for what is missing."""
        return self._inner.configure_retry(server_round, replies, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Returns the adapter after the round."""
        result = self._inner.aggregate_train(server_round, replies)
        self._laps.lap()
        return result

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns nothing."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> None:
        """Does nothing."""

    def summary(self) -> None:
        """Prints nothing."""


class _FirstNode(Grid):
    """A grid of which only the first node is there."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Run) -> None:
        """Sets the run that messages belong to."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message to a node."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the least of the grid's node ids."""
        return [min(self._grid.get_node_ids())]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that have come."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies to `messages`."""
        return self._grid.send_and_receive(messages, timeout=timeout)
