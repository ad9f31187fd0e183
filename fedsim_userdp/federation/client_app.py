"""The Flower ClientApp of every node, whether it hosts one user or all of them."""

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim_userdp.federation.messages import TrainRequest, read_request, write_reply
from fedsim_userdp.training.cohort import CohortUpdate

TrainFn = Callable[[TrainRequest], CohortUpdate]


def make_client_app(train_fn: TrainFn) -> ClientApp:
    """Returns an app whose train handler answers with the sum of its sampled users' clipped updates.

    Args:
        train_fn: request to update; picklable where nodes run in other processes.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Answers a train message."""
        return Message(write_reply(train_fn(read_request(message.content))), reply_to=message)

    return app
