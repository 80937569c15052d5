"""A small Flower app of somebody's own, as files: its clients record their true images; a test may put mods on them."""

from __future__ import annotations

from pathlib import Path

PACKAGE = "ownapp"

_PROJECT = """
[project]
name = "ownapp"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "ownapp.server:app"
clientapp = "ownapp.client:app"

[tool.flwr.app.config]
tape = ""
guard = ""
noise = 0.0
rounds = 2
lr = 0.1
local-epochs = 1
batch-size = 1
"""

TASK = """
import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def images_of(partition, server_round):
    generator = torch.Generator().manual_seed(100 * partition + server_round)
    return torch.rand(1, 1, 8, 8, generator=generator), torch.tensor([(partition + server_round) % 4])
"""

_SERVER = """
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_precode.flower import Interceptor
from ownapp.task import network

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = Interceptor(FedAvg(fraction_evaluate=0.0), context.run_config["tape"], model="ownapp.task:network",
                           inputs="1x8x8", classes=4, run_config=context.run_config)
    strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=context.run_config["rounds"])
"""

_CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from ownapp.mods import MODS
from ownapp.task import images_of, network

app = ClientApp()


@app.train(mods=MODS)
def train(message, context):
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = images_of(context.node_config["partition-id"], message.content["config"]["server-round"])
    record_truth(images, labels)
    steps = torch.optim.SGD(model.parameters(), lr=context.run_config["lr"])
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    steps.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
"""


def write_app(folder: Path, mods: str = "MODS = []\n") -> Path:
    """Write the app into a new folder.

    Args:
        folder: The folder.
        mods: Code of a module that says the clients' ``MODS``.
    """
    (folder / PACKAGE).mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT)
    for name, text in {"__init__": "", "task": TASK, "server": _SERVER, "client": _CLIENT, "mods": mods}.items():
        (folder / PACKAGE / f"{name}.py").write_text(text)
    return folder
