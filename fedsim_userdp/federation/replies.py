"""The nodes' answers of a round, checked and added up (docs/design.md, rules 3 and 5)."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import torch
from flwr.app import ArrayRecord, Message
from torch import Tensor

from fedsim_userdp.errors import RoundError
from fedsim_userdp.federation.messages import RunDescription, read_mark, read_refusal, read_reply
from fedsim_userdp.signals import Query
from fedsim_userdp.training.cohort import CohortUpdate, add, in_float32, zero_update

# A sum of n updates of norm clip_norm, each rounded to float32, may pass n * clip_norm by this factor.
_SUM_TOLERANCE = 1 + 1e-5
_HEADER_BYTES = 1024  # more than numpy writes before an array's values
# What decoding bytes from elsewhere can raise: numpy's and Flower's own errors, and an array too large to hold.
_UNREADABLE = (KeyError, TypeError, ValueError, OverflowError, EOFError, MemoryError, BadZipFile)


@dataclass(frozen=True)
class RoundReplies:
    """What came back in a round; only `update.clipped.total` is released, with noise.

    Attributes:
        update: the sum over the nodes; exact zeros stand for whatever failed.
        clip_norm: the bound that the nodes were given and their sums are checked against.
        num_sampled: users that the selector drew.
        num_failed: users without a usable update: their node raised, answered nothing, late or something unusable, or
            their own update could not be computed.
        num_retried: users whose node failed and whose update another node then computed.
        errors: one sentence for each failed node; where users failed, at least one.
        missing: users without an answer of a node, ascending.
        cohort: the users that the selector drew.
    """

    update: CohortUpdate
    clip_norm: float
    num_sampled: int
    num_failed: int
    num_retried: int
    errors: tuple[str, ...]
    missing: tuple[int, ...] = ()
    cohort: tuple[int, ...] = ()

    def answers(self) -> str:
        """Returns whose updates are in the sum, as text: another cohort, or another user who failed, gives another."""
        clipped = self.update.clipped
        failed = (self.missing, tuple(sorted(self.update.failed)))
        return repr((self.cohort, *failed, clipped.num_units, clipped.num_nonfinite))

    def counts(self) -> dict[str, int | float | list[int] | list[float]]:
        """Returns the counts as plain numbers; they are diagnostics, not private."""
        return {
            "num_sampled": self.num_sampled,
            "num_failed": self.num_failed,
            "num_retried": self.num_retried,
            "num_nonfinite": self.update.clipped.num_nonfinite,
            "num_clipped": self.update.clipped.num_clipped,
        }


class RoundAnswers:
    """Asks for a round's users, over several attempts if need be, and adds up what comes back.

    Guarantee: each user counts at most once, whatever the nodes answer and however often they are asked: the users of
    an attempt are those still missing, each in one question; a question takes its first answer only; and an answer
    for n users of more than n * clip_norm in L2 norm (where they have weights, of more than their sum times clip_norm),
    not finite, with counts or signals that n users cannot have, or not of the
    adapter's names, shapes and dtype is dropped whole.

    Args:
        cohort: the round's users, distinct.
        state: the adapter, for names and shapes.
        clip_norm: the bound that the nodes are given.
        run: what the nodes are told of the run; their answers repeat its mark.
        weights: what each user's clipped update is multiplied by; None for 1.
        query: what the users send besides; None for nothing.
    """

    def __init__(
        self,
        cohort: Sequence[int],
        state: Mapping[str, Tensor],
        clip_norm: float,
        run: RunDescription | None = None,
        weights: Sequence[float] | None = None,
        query: Query | None = None,
    ) -> None:
        self.missing, self.query = list(cohort), query
        self.errors: list[str] = []
        self._cohort, self._num_retried = tuple(sorted(cohort)), 0
        self._state, self.clip_norm = state, clip_norm
        self._weights = None if weights is None else dict(zip(cohort, weights, strict=True))
        self._mark = "" if run is None else run.mark
        self._total = zero_update(state, torch.float64)
        self._asked: list[tuple[Message, Sequence[int]]] = []
        self._num_attempts = 0

    def weights_of(self, users: Sequence[int]) -> list[float]:
        """Returns the weights of some of the users; empty where all are 1."""
        return [] if self._weights is None else [self._weights[user] for user in users]

    def ask(self, questions: Sequence[tuple[Message, Sequence[int]]]) -> None:
        """Begins an attempt with these messages and the users that each asks for, all of them missing so far."""
        self._asked, self._num_attempts = list(questions), self._num_attempts + 1

    def take(self, replies: Iterable[Message]) -> set[int]:
        """Adds the attempt's answers, in the order of its questions; returns the nodes that gave none to be used.

        Raises:
            RoundError: when a node refused what it was asked, or answers for another run, as versions do that know
                no refusal; nothing of the round may be released.
        """
        first: dict[str, Message] = {}
        for reply in replies:
            first.setdefault(reply.metadata.reply_to_message_id, reply)
        failed, answered = set[int](), set[int]()
        for question, users in self._asked:
            node = question.metadata.dst_node_id
            update = self._checked(first.get(question.metadata.message_id), node, users)
            if isinstance(update, str):
                self.errors.append(update)
                failed.add(node)
                continue
            answered.update(users)
            self._total = add(self._total, update)
        self._num_retried += len(answered) if self._num_attempts > 1 else 0
        self.missing = [user for user in self.missing if user not in answered]
        self._asked = []
        return failed

    def result(self) -> RoundReplies:
        """Returns the sum and the counts; users still missing have failed."""
        failed = len(self.missing) + self._total.num_failed
        reason = one_line(self._total.reason) if self._total.reason else "no node was there"
        nobody_said = [reason] if failed else []
        errors = tuple(self.errors or nobody_said)
        missing = tuple(sorted(self.missing))
        counts = len(self._cohort), failed, self._num_retried
        return RoundReplies(in_float32(self._total), self.clip_norm, *counts, errors, missing, self._cohort)

    def _checked(self, reply: Message | None, node: int, users: Sequence[int]) -> CohortUpdate | str:
        """The answer to a question, or why it cannot be used."""
        if reply is None:
            return "no answer"
        if reply.has_error():
            return f"the node failed: {one_line(reply.error.reason or '')}"
        if reply.metadata.src_node_id != node:
            return "another node answered than was asked"
        try:
            if refusal := read_refusal(reply.content):
                raise RoundError(
                    f"{one_line(refusal)}; nothing of the round was released, and the run can be resumed once "
                    "that is mended"
                )
            if problem := self._misfit(reply.content.array_records["arrays"]):
                return problem
            update, mark = read_reply(reply.content), read_mark(reply.content)
        except _UNREADABLE as error:
            return f"unreadable answer: {error!r}"
        if mark != self._mark:
            raise RoundError(
                "a node answered without saying that it trains this run, as other versions of fedsim_userdp do: give "
                "every node the server's version; nothing of the round was released"
            )
        weights = self.weights_of(users)
        most = math.fsum(weights) if weights else len(users)
        total, bound = update.clipped.total, most * self.clip_norm if most else 0.0
        if any(tensor.shape != self._state[name].shape for name, tensor in total.items()):
            return "the answer's shapes are not the adapter's"
        if problem := _impossible_counts(update, users):
            return problem
        if problem := self._signals_misfit(update, users, weights or None):
            return problem
        norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in total.values()))
        if not norm <= bound * _SUM_TOLERANCE or not math.isfinite(norm):
            return f"the answer's norm {norm:.3g} passes its bound {bound:.3g}"
        return update

    def _signals_misfit(
        self, update: CohortUpdate, users: Sequence[int], weights: Sequence[float] | None
    ) -> str | None:
        """What of an answer's signals cannot be these users'."""
        if self.query is not None:
            return self.query.misfit(update.signals, users, weights)
        return "the answer holds signals, and none was asked for" if update.signals.any() else None

    def _misfit(self, arrays: ArrayRecord) -> str | None:
        """What of an answer's arrays is not the adapter's, before anything is decoded."""
        if set(arrays) != set(self._state):
            return "the answer's names are not the adapter's"
        for name, array in arrays.items():
            expected = self._state[name]
            if array.dtype != "float32":
                return f"the answer holds {array.dtype} instead of float32"
            if tuple(array.shape) != tuple(expected.shape) or len(array.data) > 4 * expected.numel() + _HEADER_BYTES:
                return "the answer's shapes are not the adapter's"
        return None


def _impossible_counts(update: CohortUpdate, users: Sequence[int]) -> str | None:
    """What is wrong with an answer's counts, for these users; adaptive clipping rests on them."""
    clipped, num_users = update.clipped, len(users)
    if len(set(update.failed)) < update.num_failed or not set(update.failed) <= set(users):
        return f"the answer names users {str(update.failed)[:80]} as failed, not among the {num_users} asked for"
    if not 0 <= clipped.num_units <= num_users - update.num_failed:
        return f"the answer counts {clipped.num_units} updates and {update.num_failed} failed of {num_users} users"
    if min(clipped.num_nonfinite, clipped.num_clipped) < 0:
        return "the answer counts a negative number of users"
    if clipped.num_nonfinite + clipped.num_clipped > clipped.num_units:
        return f"the answer counts more than its {clipped.num_units} updates as clipped or not finite"
    return None


_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # and other codes for terminals
_OF_RAY = re.compile(r"\s*<class '[^']*'>:<'(.*)'>\s*", re.S)  # as Flower passes on what Ray raises
_TRACE = "ray::"  # begins what Ray says of an exception in a worker: its traceback, the exception at the end
_RAISED = re.compile(r"(?:[\w.]*ClientAppException: )?(?:Exception \w+ occurred\. Message: )?")


def one_line(reason: str) -> str:
    """Returns what a runtime says about a failure as one line of at most 300 characters, without codes for terminals.

    It is the first line, and the last one of a traceback.
    """
    text = _COLOURS.sub("", reason)
    text = found[1] if (found := _OF_RAY.fullmatch(text)) else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return "no reason given"
    line = _RAISED.sub("", lines[-1], count=1) if lines[0].startswith(_TRACE) else lines[0]
    return line[:300] or "no reason given"
