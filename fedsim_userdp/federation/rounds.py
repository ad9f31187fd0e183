"""Running a strategy's rounds over a grid: ask, wait, ask again for what is missing, aggregate."""

import math
import threading
import time
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedsim_userdp.errors import RoundError
from fedsim_userdp.federation.messages import GRACE_SECONDS

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.25  # seconds between two looks for answers


@dataclass(frozen=True)
class Rounds:
    """Which rounds to run: `first` to `last`, both included.

    Attributes:
        first: at least 1.
        last: where it is below `first`, no round is run.
    """

    first: int
    last: int


@dataclass(frozen=True)
class RetryPolicy:
    """What is done about nodes that fail.

    Attributes:
        max_retries: how often, in one round, users whose node failed are asked for again, at least 0.
        timeout: seconds that an attempt waits for answers, above 0; None for as long as it takes.
        start_up: seconds that the first round of a run gets in addition, since workers start and load their model.
        pause: seconds to wait after a failure, twice as long after each further one of the round: Ray takes a moment
            to notice that a worker has died, and meanwhile fails whatever is sent to it.

    Raises:
        ValueError: when `max_retries` or `timeout` is out of range.
    """

    max_retries: int = 0
    timeout: float | None = None
    pause: float = 0.0
    start_up: float = 300.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise ValueError(f"max_retries={self.max_retries} must be a whole number of at least 0")
        if self.timeout is not None and (not isinstance(self.timeout, int | float) or not 0 < self.timeout < math.inf):
            raise ValueError(f"round_timeout={self.timeout} must be a number of seconds above 0, or null")

    def timeout_of(self, *, is_first: bool) -> float | None:
        """Returns the seconds that each attempt of a round waits."""
        return None if self.timeout is None else self.timeout + (self.start_up if is_first else 0.0)


class RetryingStrategy(Strategy):
    """A strategy that can ask again, within a round, for users whose node failed."""

    @abstractmethod
    def configure_retry(self, server_round: int, replies: Iterable[Message], grid: Grid) -> Sequence[Message]:
        """Takes an attempt's replies and returns messages for what is missing; none when nothing is.

        Args:
            server_round: the round.
            replies: the replies to the messages of the attempt before.
            grid: the nodes.
        """


def run_rounds(
    strategy: RetryingStrategy,
    grid: Grid,
    arrays: ArrayRecord,
    rounds: Rounds,
    policy: RetryPolicy | None = None,
    stopped: threading.Event | None = None,
) -> ArrayRecord:
    """Returns the arrays after the rounds.

    Flower's own `Strategy.start` starts from round 1 only, does not ask again and logs each step; this one can resume.

    Args:
        strategy: the server's strategy.
        grid: the nodes.
        arrays: the arrays before the first of the rounds.
        rounds: which rounds.
        policy: what is done about nodes that fail; None for no retries and no limit.
        stopped: when set from elsewhere, waiting for answers ends in a RoundError.

    Raises:
        RoundError: when the strategy cannot finish a round, or `stopped` is set while answers are waited for.
        TimeoutError: when fewer nodes come up than the strategy waits for.
    """
    policy, stopped = policy or RetryPolicy(), stopped or threading.Event()
    for number in range(rounds.first, rounds.last + 1):
        messages = list(strategy.configure_train(number, arrays, ConfigRecord(), grid))
        timeout = policy.timeout_of(is_first=number == rounds.first)
        replies = send_and_receive(grid, messages, timeout, stopped)
        pause = policy.pause
        for _ in range(policy.max_retries):
            pause *= _wait_for_recovery(messages, replies, pause, stopped)
            messages = list(strategy.configure_retry(number, replies, grid))
            replies = send_and_receive(grid, messages, timeout, stopped)
            if not messages:
                break
        _wait_for_recovery(messages, replies, pause, stopped)
        aggregated, _ = strategy.aggregate_train(number, replies)
        arrays = arrays if aggregated is None else aggregated
    return arrays


def _wait_for_recovery(
    messages: Sequence[Message], replies: Sequence[Message], pause: float, stopped: threading.Event
) -> int:
    """Waits when a message was not answered, or with an error; returns the factor by which to wait longer next time."""
    if len(replies) >= len(messages) and not any(reply.has_error() for reply in replies):
        return 1
    stopped.wait(pause)
    return 2


def send_and_receive(
    grid: Grid, messages: Sequence[Message], timeout: float | None, stopped: threading.Event
) -> list[Message]:
    """Returns the replies that have come when all are there or `timeout` seconds have passed.

    The grids' own method looks for replies every 0.1 to 3 seconds and cannot be interrupted.  Messages expire a little
    after the timeout, so that a grid forgets answers that nobody waits for any more.

    Raises:
        RoundError: when `stopped` is set meanwhile.
    """
    deadline = None
    if timeout is not None:
        deadline = time.monotonic() + timeout
        for message in messages:
            message.metadata.ttl = timeout + GRACE_SECONDS
    pending = {message_id for message_id in grid.push_messages(messages) if message_id} if messages else set()
    replies: list[Message] = []
    pause = _FIRST_PAUSE
    while pending:
        found = list(grid.pull_messages(pending))
        replies += found
        pending -= {reply.metadata.reply_to_message_id for reply in found}
        if not pending or (deadline is not None and time.monotonic() > deadline):
            break
        if stopped.wait(pause):
            raise RoundError("the run was stopped while it waited for nodes")
        pause = min(1.2 * pause, _LONGEST_PAUSE)
    return replies
