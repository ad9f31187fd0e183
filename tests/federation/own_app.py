"""Ordinary Flower apps whose clients answer as a test wants, with the mod of user-level privacy."""

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from fedsim_userdp.federation.user_level import clipped_update

Arrays = dict[str, np.ndarray]
# The arrays that a node was sent and its number to the arrays that it answers with.
Training = Callable[[Arrays, int], Arrays]


def record(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def arrays_of(record: ArrayRecord) -> Arrays:
    return {name: array.numpy() for name, array in record.items()}


def ordinary_app(training: Training, num_examples: int = 1, mods: tuple[Mod, ...] = (clipped_update,)) -> ClientApp:
    """An app that knows nothing of privacy but for its mods."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert set(message.content) == {"arrays", "config"}
        node = int(context.node_config["partition-id"])
        answered = record(training(arrays_of(message.content.array_records["arrays"]), node))
        metrics = MetricRecord({"num-examples": num_examples, "loss": 1.5})
        return Message(RecordDict({"arrays": answered, "metrics": metrics}), reply_to=message)

    return app


def moved_by(step: float) -> Training:
    """Every weight falls by `step`, on every node."""
    return lambda sent, node: {name: array - np.float32(step) for name, array in sent.items()}
