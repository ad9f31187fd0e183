"""The nodes' answers of a round, checked and added up (DESIGN rules 3 and 5)."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from torch import Tensor

from fedsim_userdp.federation.messages import read_reply
from fedsim_userdp.training.cohort import CohortUpdate, add, zero_update

# A sum of n updates of norm clip_norm, each rounded to float32, may pass n * clip_norm by this factor.
_SUM_TOLERANCE = 1 + 1e-5


@dataclass(frozen=True)
class RoundReplies:
    """What came back in a round; only `update.clipped.total` is released, with noise.

    Attributes:
        update: the sum over the nodes; exact zeros stand for whatever failed.
        num_sampled: users that the selector drew.
        num_failed: users of nodes that raised, answered nothing, twice, late or something unusable.
        errors: one sentence for each failed node.
    """

    update: CohortUpdate
    num_sampled: int
    num_failed: int
    errors: tuple[str, ...]

    def counts(self) -> dict[str, int | float | list[int] | list[float]]:
        """Returns the counts as plain numbers; they are diagnostics, not private."""
        return {
            "num_sampled": self.num_sampled,
            "num_failed": self.num_failed,
            "num_nonfinite": self.update.clipped.num_nonfinite,
            "num_clipped": self.update.clipped.num_clipped,
        }


def add_replies(
    replies: Iterable[Message], state: Mapping[str, Tensor], asked: Mapping[int, int], clip_norm: float
) -> RoundReplies:
    """Returns the sum of the nodes' answers, in the order of `asked`, whatever order they came in.

    Guarantee: each user counts at most once, and a node that was asked for n users adds at most n * clip_norm
    in L2 norm: an answer beyond that, not finite or of wrong shapes is dropped whole and its users fail.

    Args:
        replies: the answers; error messages and repeated answers among them.
        state: the adapter, for names and shapes.
        asked: node to number of users that it was asked for.
        clip_norm: the bound that the nodes were given.
    """
    first: dict[int, Message] = {}
    for reply in replies:
        first.setdefault(reply.metadata.src_node_id, reply)
    total, failed, errors = zero_update(state), 0, []
    for node, num_users in asked.items():
        update = _checked(first.get(node), state, num_users * clip_norm)
        if isinstance(update, str):
            failed += num_users
            errors.append(update)
        else:
            total = add(total, update)
    return RoundReplies(total, sum(asked.values()), failed, tuple(errors))


def _checked(reply: Message | None, state: Mapping[str, Tensor], bound: float) -> CohortUpdate | str:
    """The node's answer, or why it cannot be used."""
    if reply is None:
        return "no answer"
    if reply.has_error():
        return f"the node failed: {reply.error.reason}"
    try:
        update = read_reply(reply.content)
    except (KeyError, TypeError, ValueError) as error:
        return f"unreadable answer: {error!r}"
    total = update.clipped.total
    if {n: t.shape for n, t in total.items()} != {n: t.shape for n, t in state.items()}:
        return "the answer's names or shapes are not the adapter's"
    norm = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in total.values()))
    if not norm <= bound * _SUM_TOLERANCE or not math.isfinite(norm):
        return f"the answer's norm {norm:.3g} passes its bound {bound:.3g}"
    return update
