"""The clients."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from vit_digits.task import get_model, load_data, train

app = ClientApp()


@app.train()
def train_message(msg: Message, context: Context):
    """Train on local data."""
    model = get_model(10)
    model.heads.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    images, labels = load_data(context.node_config["partition-id"], context.run_config["images-per-client"])
    record_truth(images, labels)
    train(model, images, labels, context.run_config["learning-rate"])
    metrics = MetricRecord({"num-examples": len(images)})
    return Message(RecordDict({"arrays": ArrayRecord(model.heads.state_dict()), "metrics": metrics}), reply_to=msg)
