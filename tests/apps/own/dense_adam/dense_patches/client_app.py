"""The clients."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dense_patches.task import load_data, load_model, train
from fl_precode.flower import record_truth

app = ClientApp()


@app.train()
def train_message(msg: Message, context: Context):
    """Train on local data."""
    model = load_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    cfg = context.run_config
    loader = load_data(context.node_config["partition-id"], cfg["images-per-client"], cfg["batch-size"])
    record_truth(*loader.dataset.tensors)
    train(model, loader, epoch_num=1)
    metrics = MetricRecord({"num-examples": len(loader)})  # batches, as the example counts
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)
