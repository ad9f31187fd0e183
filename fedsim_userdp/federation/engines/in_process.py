"""A Flower `Grid` whose nodes run in this very process: the same ClientApp and Strategy, no runtime to start."""

import itertools
import math
from collections.abc import Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedsim_userdp.federation.engines.identity import RUN_ID, ensure_identity

CLIENT_APP_RAISED = 2  # Flower's own code for a ClientApp that raised an exception


class InProcessGrid(Grid):
    """Runs `client_app` for each message, one after the other, in node order.

    Args:
        client_app: the app of every node.
        num_nodes: number of nodes, at least 1; node n has `partition-id` n of `num-partitions`.

    Raises:
        ValueError: when `num_nodes` is below 1.
    """

    def __init__(self, client_app: ClientApp, num_nodes: int = 1) -> None:
        if num_nodes < 1:
            raise ValueError(f"num_nodes={num_nodes} must be at least 1")
        ensure_identity()
        self._client_app = client_app
        self._contexts = {
            node + 1: Context(
                run_id=RUN_ID,
                node_id=node + 1,
                node_config={"partition-id": node, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in range(num_nodes)
        }
        self._run = Run.create_empty(RUN_ID)
        self._replies: dict[str, Message] = {}
        self._message_numbers = itertools.count(1)

    def set_run(self, run: Run) -> None:
        """Sets the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Returns a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes' ids, in the order of their partitions."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs the ClientApp on each message and keeps the replies; returns the messages' ids."""
        ids = []
        for message in messages:
            message_id = f"in-process-{next(self._message_numbers)}"
            message.metadata.__dict__["_message_id"] = message_id
            message.metadata.ttl = math.inf  # nothing can be late here, however the machine's clock jumps
            self._replies[message_id] = self._answer(message)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies to those messages; each can be pulled once."""
        return [self._replies.pop(message_id) for message_id in message_ids if message_id in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Returns the replies to `messages`; nothing is ever late, so `timeout` has no effect."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        """The app's reply, or an error reply when it raises: a node's failure is not the server's."""
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - whatever a node raises becomes an error reply, as in Flower
            return Message(Error(CLIENT_APP_RAISED, f"{type(error).__name__}: {error}"), reply_to=message)
