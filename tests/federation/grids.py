"""In-process grids whose nodes answer in ways that they should not."""

from collections.abc import Callable, Iterable

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsim_userdp.federation.engines.in_process import InProcessGrid

# The replies that should arrive and the number of the attempt (from 1) to the replies that do arrive.
Meddling = Callable[[list[Message], int], list[Message]]


class MeddledGrid(InProcessGrid):
    """Delivers, for each attempt, what `meddle` makes of the replies, and stays silent about the rest."""

    def __init__(self, client_app: ClientApp, num_nodes: int, meddle: Meddling) -> None:
        super().__init__(client_app, num_nodes)
        self._meddle, self.num_attempts = meddle, 0
        self._held: list[Message] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Runs the nodes and keeps what is to be delivered."""
        ids = list(super().push_messages(messages))
        self.num_attempts += 1
        self._held = self._meddle(list(super().pull_messages(ids)), self.num_attempts)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns everything at once, whatever is asked for."""
        held, self._held = self._held, []
        return held
