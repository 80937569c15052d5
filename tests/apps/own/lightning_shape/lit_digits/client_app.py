"""The clients."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from lit_digits.task import LitClassifier, fit, load_data

app = ClientApp()


@app.train()
def train_message(msg: Message, context: Context):
    """Train on local data."""
    model = LitClassifier()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loader = load_data(context.node_config["partition-id"], context.run_config["images-per-client"])
    record_truth(*loader.dataset.tensors)
    fit(model, loader, context.run_config["max-epochs"])
    metrics = MetricRecord({"num-examples": len(loader.dataset)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)
