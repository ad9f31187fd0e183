"""The client half of user-level privacy in a Flower app of one's own: mods that answer with one user's clipped update.

The server half is `fedsim_userdp.strategies.user_level_fedavg`; docs/extending.md shows both in an ordinary app.
"""

from collections.abc import Mapping

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from torch import Tensor

from fedsim_userdp.errors import NodeRefusal
from fedsim_userdp.federation.messages import TrainRequest, from_arrays, read_request, write_refusal, write_reply
from fedsim_userdp.privacy.clipping import ClippedSum, clip_and_sum
from fedsim_userdp.training.cohort import CohortUpdate

REQUEST = "user-level"  # the record of a train message that the mod takes out, beside those that the app reads
_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def clipped_update(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answers a train message with the update of the app's model, clipped as a whole; a mod, the first of an app's.

    The update is what was sent minus what the app answered, over all arrays together.  Whatever else the app answers,
    such as its number of examples or its loss, goes nowhere.

    Guarantee: the answer is of L2 norm at most the bound that the server asks for, and an exact zero where the update
        is not finite.  An app that raises gives no answer, and counts as zero.
    Assumes: a node holds the records of one user, and those of nobody else.

    Args:
        message: from the server; all but train messages are passed on as they are.
        context: the node's.
        call_next: the app, or the next mod.

    Raises:
        ValueError: when the server asks for no clipped update, or the app answers with other arrays than it was sent.
    """
    if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
        return call_next(message, context)
    try:
        request = _request_in(message.content)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        content = write_reply(CohortUpdate(_clipped(request, reply.content), 0.0, 0), request.run)
    except NodeRefusal as refusal:
        content = write_refusal(refusal)
    return Message(content, reply_to=message)


def numpy_client(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Lets a `NumPyClient`, made by a `client_fn`, answer the train messages of today's Flower; a mod, after
    `clipped_update`.

    Args:
        message: from the server; all but train messages are passed on as they are.
        context: the node's.
        call_next: the app, or the next mod.

    Raises:
        ValueError: when the client answers with another number of arrays than it was sent.
    """
    if message.metadata.message_type != MessageType.TRAIN:
        return call_next(message, context)
    arrays, config = message.content.array_records["arrays"], message.content.config_records["config"]
    message.content = RecordDict(
        {"fitins.parameters": ArrayRecord(arrays.to_numpy_ndarrays()), "fitins.config": ConfigRecord({**config})}
    )
    reply = call_next(message, context)
    if reply.has_error():
        return reply
    fitted = reply.content.array_records["fitres.parameters"].values()
    named = ArrayRecord(dict(zip(arrays, fitted, strict=True)))
    return Message(RecordDict({"arrays": named}), reply_to=message)


def check_weights(arrays: ArrayRecord) -> None:
    """Checks that a model has nothing but weights, which a user may move a little.

    Raises:
        ValueError: when there is none, or one is a counter or a running statistic, as those of BatchNorm are.
    """
    if not arrays:
        raise ValueError("the model has no arrays: send its state as `ArrayRecord(model.state_dict())`")
    for name, array in arrays.items():
        if name.rpartition(".")[2] in _RUNNING or np.dtype(array.dtype).kind != "f":
            raise ValueError(
                f"the model's {name} ({array.dtype}) is no weight but a counter or a running statistic, which cannot "
                "be clipped and averaged as an update: use GroupNorm or LayerNorm instead of BatchNorm, or leave "
                "buffers out of what is sent"
            )


def _request_in(content: RecordDict) -> TrainRequest:
    """The server's request, which is taken out of a train message.

    Raises:
        NodeRefusal: it is not for one user, not of this version, or of a model with more than weights.
        ValueError: there is none.
    """
    if REQUEST not in content.config_records:
        raise ValueError(
            "the server asks for no clipped update: use `clipped_update` with the strategy UserLevelFedAvg only"
        )
    arrays = content.array_records["arrays"]
    try:
        check_weights(arrays)
    except ValueError as error:
        raise NodeRefusal(str(error)) from error
    request = read_request(RecordDict({"arrays": arrays, "config": content.config_records.pop(REQUEST)}))
    if len(request.users) != 1:
        raise NodeRefusal(
            f"a node was asked for {len(request.users)} users, and holds one: num_users must be the number of nodes"
        )
    return request


def _clipped(request: TrainRequest, answered: RecordDict) -> ClippedSum:
    """The clipped update of the node's user."""
    update = _update(request.state, _arrays_of(answered))
    return clip_and_sum({name: tensor.unsqueeze(0) for name, tensor in update.items()}, request.clip_norm)


def _update(sent: Mapping[str, Tensor], answered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was sent minus what was answered: the direction that the server's optimizer steps against."""
    if {name: tensor.shape for name, tensor in sent.items()} != {n: tensor.shape for n, tensor in answered.items()}:
        raise ValueError("the app answered with arrays of other names or shapes than it was sent")
    return {name: sent[name] - answered[name] for name in sent}


def _arrays_of(content: RecordDict) -> dict[str, Tensor]:
    """The one record of arrays of an app's answer."""
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ValueError(f"the app answered with {len(records)} records of arrays instead of one")
    return from_arrays(records[0])
