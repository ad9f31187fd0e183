"""The Flower ClientApp of every node, whether it hosts one user or all of them."""

import time
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim_userdp.errors import NodeRefusal
from fedsim_userdp.federation.messages import GRACE_SECONDS, TrainRequest, read_request, write_refusal, write_reply
from fedsim_userdp.training.cohort import CohortUpdate

TrainFn = Callable[[TrainRequest], CohortUpdate]


def make_client_app(train_fn: TrainFn) -> ClientApp:
    """Returns an app whose train handler answers with the sum of its sampled users' clipped updates.

    Args:
        train_fn: request to update; picklable where nodes run in other processes.
    """
    return make_configured_client_app(lambda overrides: train_fn)


def make_configured_client_app(train_fn_of: Callable[[str], TrainFn]) -> ClientApp:
    """Returns the app of a node that has to learn the run's settings from Flower's run configuration.

    Args:
        train_fn_of: the run configuration's `overrides` to a train function; cheap when called again for the same.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Answers a train message, unless nobody waits for the answer any more."""
        if time.time() > message.metadata.created_at + message.metadata.ttl - GRACE_SECONDS:
            raise TimeoutError("the message was too old when its turn came")
        try:
            request = read_request(message.content)
            train_fn = train_fn_of(str(context.run_config.get("overrides", "")))
            content = write_reply(train_fn(request), request.run)
        except NodeRefusal as refusal:
            content = write_refusal(refusal)
        return Message(content, reply_to=message)

    return app
