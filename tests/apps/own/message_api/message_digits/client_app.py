"""The clients."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from message_digits.task import Net, load_data
from message_digits.task import train as train_fn

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """Train on local data."""
    model = Net()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    cfg = context.run_config
    trainloader = load_data(context.node_config["partition-id"], cfg["images-per-client"], cfg["batch-size"])
    record_truth(*trainloader.dataset.tensors, mean=0.5, std=0.5)
    train_loss = train_fn(model, trainloader, cfg["local-epochs"], msg.content["config"]["lr"])
    metrics = MetricRecord({"train_loss": train_loss, "num-examples": len(trainloader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)
