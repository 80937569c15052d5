"""Models with buffers in a federation: the buffers travel, are averaged, keep their types and stand on the tape."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load_file

from fl_precode.flower.aggregate import in_sent_types
from fl_precode.flower.fedsgd import FedSgd
from fl_precode.flower.screening import ScreenedReplies
from fl_precode.tape import Tape
from tests.local_grid import LocalGrid

COUNT = "norm1.num_batches_tracked"
FEDAVG = {"protocol": "fedavg", "local_steps": 2}


def losses(out):
    rounds = json.loads((out / "result.json").read_text())["rounds"]
    assert [one["usable"] for one in rounds[1:]] == [3] * (len(rounds) - 1)
    return [one["loss"] for one in rounds]


@pytest.mark.parametrize("spec", ["resnet20", "resnet20:norm=group"])
@pytest.mark.parametrize("protocol", [{"protocol": "fedsgd"}, FEDAVG], ids=["fedsgd", "fedavg"])
def test_deep_models_train_for_more_than_one_round(run_locally, spec, protocol):
    _, out = run_locally(model=spec, batch_size=16, learning_rate=0.02, num_server_rounds=3, **protocol)
    found = losses(out)
    assert all(after < before for before, after in zip(found, found[1:], strict=False)), found


@pytest.mark.parametrize(("protocol", "steps"), [({"protocol": "fedsgd"}, 1), (FEDAVG, 2)], ids=["fedsgd", "fedavg"])
def test_buffers_go_out_are_returned_averaged_and_stand_on_the_tape(run_locally, tmp_path, protocol, steps):
    run_locally(model="resnet20", batch_size=4, learning_rate=0.01, tape=str(tmp_path / "tape"), **protocol)
    tape = Tape(tmp_path / "tape")
    assert tape.problems == []
    sent, replied = {1: {}, 2: {}}, {1: [], 2: []}
    for entry, one in zip(tape.entries, tape.observations(), strict=True):
        assert {name.rpartition(".")[2] for name in one.buffers} == {
            "running_mean",
            "running_var",
            "num_batches_tracked",
        }
        assert not any("running" in name or "tracked" in name for name in one.update)
        assert one.buffers[COUNT].dtype == torch.int64
        sent[one.round] = one.buffers
        replied[one.round].append(load_file(tmp_path / "tape" / entry.file))
    assert [sent[number][COUNT].item() for number in (1, 2)] == [0, steps]
    assert not sent[1]["norm1.running_mean"].any()
    assert [reply[COUNT].item() for reply in replied[1]] == [steps] * 3
    # FedSGD's clients have equal batches; FedAvg's weights are the sizes of their partitions, which differ by one.
    for name in ("norm1.running_mean", "stage3.block3.norm2.running_var"):
        mean = torch.stack([reply[name] for reply in replied[1]]).mean(0)
        torch.testing.assert_close(sent[2][name], mean, rtol=0.01, atol=1e-4)
        assert not torch.equal(replied[1][0][name], replied[1][1][name])


@pytest.mark.parametrize(
    ("weights", "counts", "mean"), [((1, 1, 1), (7, 7, 7), 7), ((1, 2, 7), (10, 10, 10), 10), ((1, 1, 1), (1, 2, 2), 2)]
)
@pytest.mark.parametrize("strategy", ["screened", "fedsgd"])
def test_means_of_counts_are_rounded_and_keep_their_type(strategy, weights, counts, mean):
    seen = []
    app = ClientApp()

    @app.train()
    def train(message, context):
        partition = context.node_config["partition-id"]
        arrays = message.content["arrays"]
        seen.append({name: array.dtype for name, array in arrays.items()})
        values = {"w": arrays["w"].numpy(), COUNT: np.array(counts[partition])}
        content = {
            "arrays": ArrayRecord({name: Array(value) for name, value in values.items()}),
            "metrics": MetricRecord({"num-examples": weights[partition]}),
        }
        return Message(RecordDict(content), reply_to=message)

    chosen = {
        "screened": lambda: ScreenedReplies(FedAvg(fraction_evaluate=0.0)),
        "fedsgd": lambda: FedSgd(learning_rate=0.1, buffers=[COUNT]),
    }[strategy]()
    start = ArrayRecord({"w": Array(np.ones(2, np.float32)), COUNT: Array(np.array(0))})
    final = chosen.start(LocalGrid(app, 3, {}), start, num_rounds=2).arrays
    assert final[COUNT].numpy() == mean
    assert [{name: array.dtype for name, array in final.items()}, *seen] == [{"w": "float32", COUNT: "int64"}] * 7


def test_arrays_of_the_right_type_are_left_as_they_are():
    arrays = ArrayRecord({"w": Array(np.ones(2, np.float32)), "extra": Array(np.ones(1))})
    cast = in_sent_types(arrays, {"w": "float32"})
    assert cast["w"].data == arrays["w"].data
    assert cast["extra"].dtype == "float64"
