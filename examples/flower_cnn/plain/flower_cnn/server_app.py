"""What the server does: it averages what the nodes answer and tests the result on images of nobody."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flower_cnn.task import Net, accuracy, images_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Trains over all nodes."""
    torch.manual_seed(0)
    config = context.run_config
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=int(config["num-rounds"]),
        train_config=ConfigRecord({"learning-rate": float(config["learning-rate"])}),
        evaluate_fn=evaluate,
    )


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Returns the accuracy of the averaged model."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    return MetricRecord({"accuracy": accuracy(net, *images_of(10**6, 500))})
