"""Asking a grid's nodes for a cohort's updates, and asking again for those of nodes that failed."""

from collections.abc import Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from torch import Tensor

from fedsim_userdp.errors import RoundError
from fedsim_userdp.federation.hosting import Hosts, SizesFn, deal_by_size, wait_for_nodes
from fedsim_userdp.federation.messages import RunDescription, write_request
from fedsim_userdp.federation.replies import RoundAnswers, RoundReplies
from fedsim_userdp.signals import Query


class Exchange:
    """The questions and answers of one round after the other.

    Guarantee: see `RoundAnswers`; and what must not be released raises.  Users whose node failed count as zero where
    their id alone decided where they live.  Where they were dealt by size, everybody's size decided who shared that
    node, so that their absence would not be one user's matter: then the round is not released (docs/decisions/0007).

    Args:
        num_nodes: nodes to wait for before the first round.
        hosts: where users live.
        sizes_fn: the work of each user of a cohort, by which they are dealt to nodes instead; None where they are not.
        run: what every request says of the run.
    """

    def __init__(self, num_nodes: int, hosts: Hosts, sizes_fn: SizesFn | None, run: RunDescription) -> None:
        self._num_nodes, self._hosts, self._sizes_fn, self._run = num_nodes, hosts, sizes_fn, run
        self._nodes: list[int] = []
        self._failed: set[int] = set()
        self._round, self._arrays, self._answers = 0, ArrayRecord(), RoundAnswers([], {}, 1.0)

    def begin(
        self,
        round: int,
        cohort: Sequence[int],
        clip_norm: float,
        arrays: ArrayRecord,
        state: Mapping[str, Tensor],
        grid: Grid,
        weights: Sequence[float] | None = None,
        query: Query | None = None,
    ) -> list[Message]:
        """Returns one message to each node that a user of the cohort lives on or is dealt to, naming those users.

        Args:
            round: the round, from 1.
            cohort: the round's users, distinct.
            clip_norm: the bound that the nodes are given.
            arrays: the encoded adapter.
            state: the adapter, for names and shapes.
            grid: the nodes.
            weights: what each user's clipped update is multiplied by, public; None for 1.
            query: what the users send besides; None for nothing.
        """
        self._nodes = self._nodes or wait_for_nodes(grid, self._num_nodes)
        self._round, self._arrays, self._failed = round, arrays, set()
        self._answers = RoundAnswers(cohort, state, clip_norm, self._run, weights, query)
        return self._ask(self._nodes, grid)

    def ask_again(self, replies: Iterable[Message], grid: Grid) -> list[Message]:
        """Takes an attempt's replies; returns messages for users still missing.

        They go to nodes that did not fail in the round, if there are any.  A user with a node of their own stays on it:
        on another node two users could meet, and whether they do would depend on how many users there are.  Users who
        live on a shared node by a hash of their ids are not asked for again: one user whose node fails would then
        change the second node of everybody else (docs/decisions/0007).

        Raises:
            RoundError: when a node refused what it was asked.
        """
        self._failed |= self._answers.take(replies)
        if self._sizes_fn is None and not self._hosts.has_node_per_user:
            return []
        usable = [node for node in self._nodes if self._sizes_fn is None or node not in self._failed]
        return self._ask(usable or self._nodes, grid) if self._answers.missing else []

    def finish(self, replies: Iterable[Message]) -> RoundReplies:
        """Takes the last attempt's replies and returns the round's sum and counts.

        Raises:
            RoundError: when users that were dealt by size have no answer, everybody failed (two users or more), or a
                node refused what it was asked.
        """
        self._answers.take(replies)
        collected = self._answers.result()
        missing = 0 if self._sizes_fn is None else len(self._answers.missing)
        if missing or collected.num_failed == collected.num_sampled > 1:
            raise RoundError(
                f"round {self._round}: {missing or collected.num_failed} of {collected.num_sampled} users have no "
                f"update ({collected.errors[0]}); nothing of the round was released, and the run can be resumed"
            )
        return collected

    def _ask(self, nodes: Sequence[int], grid: Grid) -> list[Message]:
        """Asks those of `nodes` that are there for the users still missing."""
        users, present = self._answers.missing, set(grid.get_node_ids())
        if self._sizes_fn is None:
            hosted = self._hosts.group(users, nodes)
        else:
            there = [node for node in nodes if node in present] or wait_for_nodes(grid, 1)
            hosted = deal_by_size(users, self._sizes_fn(users, self._round), there)
        questions = [(self._question(node, share), share) for node, share in hosted.items() if node in present]
        self._answers.ask(questions)
        return [message for message, _ in questions]

    def _question(self, node: int, users: Sequence[int]) -> Message:
        """Asks a node for the sum of these users' clipped updates."""
        answers = self._answers
        weights = answers.weights_of(users)
        request = write_request(self._arrays, self._round, users, answers.clip_norm, self._run, weights, answers.query)
        return Message(request, node, MessageType.TRAIN, group_id=str(self._round))
