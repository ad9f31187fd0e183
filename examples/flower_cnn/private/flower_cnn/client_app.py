"""What a node does: it trains the model that it is sent on its own images."""

from typing import cast

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsim_userdp.federation.user_level import clipped_update  # DP
from flower_cnn.task import Net, images_of, train

app = ClientApp(mods=[clipped_update])  # DP


@app.train()
def train_on_own_images(message: Message, context: Context) -> Message:
    """Answers with the trained model."""
    net = Net()
    net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    images, classes = images_of(int(context.node_config["partition-id"]))
    learning_rate = cast(float, message.content.config_records["config"]["learning-rate"])
    loss = train(net, images, classes, learning_rate)
    metrics = MetricRecord({"loss": loss, "num-examples": len(images)})
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=message)
