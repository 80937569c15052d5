"""The clients."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from several_numbers.task import criterion, load_client, load_inputs, network

app = ClientApp()


@app.train()
def train(msg: Message, context: Context):
    """One step of SGD for each batch of local images."""
    cfg = context.run_config
    inputs = load_inputs(cfg["images"])
    model = network(inputs)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=cfg["learning-rate"])
    images, rows = load_client(cfg["images"], context.node_config["partition-id"], cfg["images-per-client"])
    record_truth(images, rows)
    for _ in range(cfg["local-epochs"]):
        for some, wanted in zip(images.split(cfg["batch-size"]), rows.split(cfg["batch-size"]), strict=True):
            optimizer.zero_grad()
            criterion(model(inputs.normalise(some)), wanted).backward()
            optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(images)})}
    return Message(RecordDict(content), reply_to=msg)
