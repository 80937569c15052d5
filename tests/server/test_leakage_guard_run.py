"""A site with a guard in a real `flwr run`, beside one without: SuperLink, Ray, and a strategy that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deploy.simulation.submission import Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from fl_precode.recorded_truth import SUFFIX
from fl_precode.tape import Tape

pytestmark = pytest.mark.federation

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, JUDGED = (1, 2, 3), (1, 3)

PROJECT = """
[project]
name = "siteapp"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "siteapp.server:app"
clientapp = "siteapp.client:app"

[tool.flwr.app.config]
tape = ""
guard = ""
noise = 0.0
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

from fl_precode.flower import Interceptor
from siteapp.task import network

app = ServerApp()


@app.main()
def main(grid, context):
    strategy = Interceptor(FedAvg(fraction_evaluate=0.0), context.run_config["tape"], model="siteapp.task:network",
                           inputs="1x8x8", classes=4, run_config=context.run_config)
    strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=3)
"""

CLIENT = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import gradient_defence_mod, leakage_guard_mod, record_truth
from siteapp.task import images_of, network

app = ClientApp()


def guard(message, context, call_next):
    # One app for both sites here; a real site changes its own.
    if context.node_config["partition-id"] != 0:
        return call_next(message, context)
    guarded = leakage_guard_mod(context.run_config["guard"], model="siteapp.task:network", inputs="1x8x8", classes=4,
                                every=2)
    return guarded(message, context, call_next)


def noise(message, context, call_next):
    std = context.run_config["noise"]
    return gradient_defence_mod(f"noise:std={std}")(message, context, call_next) if std else call_next(message, context)


@app.train(mods=[guard, noise])
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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run as it is, and one with strong noise behind the guard: (folder, log) of each."""
    folder = tmp_path_factory.mktemp("site")
    app = folder / "app"
    (app / "siteapp").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    for name, text in {"__init__": "", "task": TASK, "server": SERVER, "client": CLIENT}.items():
        (app / "siteapp" / f"{name}.py").write_text(text)
    found = []
    with OwnedSuperLink(environment={"PYTHONPATH": str(ROOT)}) as superlink:
        for name, std in (("bare", 0.0), ("noisy", 10.0)):
            place = folder / name
            place.mkdir()
            config = place / "run.toml"
            config.write_text(to_toml({"tape": str(place / "tape"), "guard": str(place / "guard"), "noise": std}))
            outcome = Submission(superlink.flwr, CONNECTION).run(app, config, federation="num-supernodes=2")
            assert outcome.completed, outcome.log
            found.append((place, outcome.log))
    return found


def images() -> list[bytes]:
    made: dict[str, object] = {}
    exec(TASK, made)
    return [made["images_of"](0, number)[0].numpy().tobytes() for number in ROUNDS]


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_strategy_gets_one_update_and_one_failure_and_goes_on(runs):
    (place, log), _ = runs
    assert log.count("Received 1 results and 1 failures") == len(JUDGED)
    assert log.count("Received 2 results and 0 failures") == 1, "every second message is judged, whatever process works"
    tape = Tape(place / "tape")
    assert sorted(entry.round for entry in tape.entries) == [1, 2, 2, 3]
    assert [(one.round, one.reason) for one in tape.failures] == [
        (number, "This site withheld its update of this round. Its own log says why.") for number in JUDGED
    ]
    others = {entry.node for entry in tape.entries if entry.round in JUDGED}
    assert len(others) == 1
    assert others.isdisjoint(one.node for one in tape.failures)
    sent = {one.round: one.parameters for one in tape.observations()}
    assert any(not torch.equal(value, sent[3][name]) for name, value in sent[1].items()), "the model is trained"


def test_each_judged_round_leaves_its_page_at_the_site(runs):
    (place, log), _ = runs
    assert sorted(path.name for path in (place / "guard").iterdir()) == [f"round-{number:04d}" for number in JUDGED]
    for number in JUDGED:
        folder = place / "guard" / f"round-{number:04d}"
        record = json.loads((folder / "audit.json").read_text())
        assert [one["verdict"] for one in record["verdicts"]] == ["leaks"]
        assert (folder / "report" / "index.html").exists()
        assert f"Leakage guard, round {number}: the update is withheld; 1 of 1 image was reconstructed, by" in log
    assert not list((place / "guard").rglob(f"*{SUFFIX}")), "neither true images nor updates are left"


def test_no_true_image_is_on_the_servers_tape(runs):
    (place, _), _ = runs
    held = bytes_below(place / "tape")
    assert len(held) > 1000
    assert not any(image in held for image in images())


def test_with_strong_noise_behind_the_guard_every_update_arrives(runs):
    _, (place, log) = runs
    assert log.count("Received 2 results and 0 failures") == len(ROUNDS)
    tape = Tape(place / "tape")
    assert len(tape.entries) == 2 * len(ROUNDS)
    assert not tape.failures
    for number in JUDGED:
        record = json.loads((place / "guard" / f"round-{number:04d}" / "audit.json").read_text())
        assert record["verdicts"][0]["verdict"] == "not shown to leak"
