"""The truth of an own app in a real `flwr run`: SuperLink, Ray's actors, and files written by many processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.truth.recorded import RecordedTruth
from deploy.simulation.submission import Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from fl_precode.recorded_truth import read_head
from fl_precode.tape import Tape
from tests.attacker.audits import audit_tapes

pytestmark = pytest.mark.federation

ROOT = Path(__file__).resolve().parents[2]

PROJECT = """
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

SERVER = """
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_precode.flower.interceptor import Interceptor
from ownapp.task import network

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = Interceptor(FedAvg(fraction_evaluate=0.0), context.run_config["tape"], model="ownapp.task:network",
                           inputs="1x8x8", classes=4, run_config=context.run_config)
    strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=2)
"""

CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import record_truth
from ownapp.task import images_of, network

app = ClientApp()


@app.train()
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


def test_the_clients_of_a_simulation_record_and_an_audit_finds_it(tmp_path, monkeypatch):
    app, tape = tmp_path / "app", tmp_path / "runs" / "tape"
    (app / "ownapp").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "task": TASK, "server": SERVER, "client": CLIENT}.items():
        (app / "ownapp" / f"{name}.py").write_text(text)
    config = tmp_path / "run.toml"
    config.write_text(to_toml({"tape": str(tape)}))
    with OwnedSuperLink(environment={"PYTHONPATH": str(ROOT)}) as superlink:
        outcome = Submission(superlink.flwr, CONNECTION).run(app, config, federation="num-supernodes=2")
    assert outcome.completed, outcome.log

    entries = Tape(tape).entries
    heads = [read_head(path).answered for path in (tmp_path / "runs" / "tape.truth").iterdir()]
    assert len(entries) == len(heads) == 4
    assert {(head.node, int(head.round)) for head in heads} == {(entry.node, entry.round) for entry in entries}
    assert len({head.message for head in heads}) == 4, "a message has an id in the simulation, too"
    source = RecordedTruth(tmp_path / "runs" / "tape.truth", {})
    for entry in entries:
        assert source.truth(entry).images.shape == (1, 1, 8, 8)

    monkeypatch.syspath_prepend(str(app))
    record = audit_tapes([TapeSource(tape=tape)], out=tmp_path / "out", attacks=["first-layer"], victims=4)
    assert record.federations[0].truth_note == ""
    assert all(row.ssim > 0.99 for row in record.results)
    assert len({round(float(torch.tensor(row.psnr)), 3) for row in record.results}) > 1
