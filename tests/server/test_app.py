"""The reference server and client, through real messages in one process."""

from __future__ import annotations

import json
import stat

import pytest
import torch

from clients.app import app as client_app
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import prepare
from fl_precode.flower.screening import NoUsableReplies
from fl_precode.tape import Tape
from server.app import wait_for_nodes
from tests.faulty_client import faulty
from tests.local_grid import LocalGrid

WORDS = {
    "raises": "out of order",
    "nan": "not finite",
    "huge-values": "beyond 1e+10",
    "other-type": "float64",
    "ten-times-the-size": "expected shape and type",
    "other-keys": "invented",
    "other-shapes": "shape",
    "nothing": "empty",
    "no-metrics": "num-examples",
    "foreign-code": "other code",
}
"""What may be wrong with a client's reply, and a word of the reason that the server gives."""


def result_of(out):
    return json.loads((out / "result.json").read_text())


def test_fedsgd_takes_the_step_that_plain_sgd_takes(run_locally, tmp_path):
    one_step = {"num_server_rounds": 1, "num_clients": 1, "batch_size": 4}
    _, out = run_locally(model="mlp", learning_rate=0.5, **one_step, tape=str(tmp_path / "t"))
    (observation,) = Tape(tmp_path / "t").observations()
    federation = prepare(Settings(**{**settings_of(out), "tape": str(tmp_path / "t")}))
    model = federation.model()
    images, labels = federation.data.train.batch(federation.batches(0, 1)[0])
    loss = torch.nn.functional.cross_entropy(model(federation.data.inputs.normalise(images)), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for (name, _), expected in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(observation.update[name], expected)
    assert observation.kind == "gradient"
    assert observation.batch_size == 4


def settings_of(out):
    return {key.replace("-", "_"): value for key, value in result_of(out)["settings"].items()}


def test_fedavg_sends_the_weights_of_local_sgd(run_locally, tmp_path):
    _, out = run_locally(
        model="lenet", protocol="fedavg", local_steps=3, num_server_rounds=1, num_clients=1, batch_size=2,
        tape=str(tmp_path / "t"), momentum=0.9, weight_decay=0.01,
    )  # fmt: skip
    (observation,) = Tape(tmp_path / "t").observations()
    federation = prepare(Settings(**settings_of(out)))
    model = federation.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for indices in federation.batches(0, 1):
        images, labels = federation.data.train.batch(indices)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(federation.data.inputs.normalise(images)), labels).backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(observation.update[name], value - before[name])
    assert observation.kind == "weights"
    assert observation.batch_size == 6, "three local steps of two images"
    assert (observation.protocol.momentum, observation.protocol.weight_decay) == (0.9, 0.01)


@pytest.mark.parametrize(
    "settings",
    [
        {"protocol": "fedsgd", "defence": "precode", "seeded_noise": True},
        {"protocol": "fedavg", "local_epochs": 1, "batch_size": 64, "defence": "precode", "seeded_noise": True},
    ],
)
def test_the_model_is_bit_identical_with_the_interceptor_on_and_off_and_again(run_locally, tmp_path, settings):
    runs = [
        run_locally(**settings, num_server_rounds=3, out="on", tape=str(tmp_path / "tape")),
        run_locally(**settings, num_server_rounds=3, out="off"),
        run_locally(**settings, num_server_rounds=3, out="again"),
    ]
    hashes = [[one["model_sha256"] for one in result_of(out)["rounds"]] for _, out in runs]
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[0])) == 4, "every round changes the model"
    assert len(Tape(tmp_path / "tape").observations()) == 9


def test_training_learns(run_locally):
    _, out = run_locally(protocol="fedavg", model="mlp", local_epochs=2, batch_size=16, num_server_rounds=2)
    rounds = result_of(out)["rounds"]
    assert rounds[0]["accuracy"] < 0.3
    assert rounds[-1]["accuracy"] > 0.7
    assert rounds[-1]["loss"] < rounds[0]["loss"]


def test_the_seed_changes_the_run(run_locally):
    first, second = (result_of(run_locally(seed=seed, out=str(seed))[1]) for seed in (0, 1))
    assert first["rounds"][0]["model_sha256"] != second["rounds"][0]["model_sha256"]


def test_results_are_private_and_say_what_the_defence_costs(run_locally):
    plain, defended = (result_of(run_locally(defence=name, out=name)[1]) for name in ("none", "precode"))
    assert plain["finished"]
    assert defended["parameters"] > plain["parameters"]
    assert defended["payload_bytes"] == 4 * defended["parameters"]
    _, out = run_locally(out="modes")
    for name in ("result.json", "evaluation.json"):
        assert stat.S_IMODE((out / name).stat().st_mode) == 0o600
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert sorted(evaluation["nodes"].values()) == [0, 1, 2]


@pytest.mark.parametrize("fault", WORDS)
def test_one_faulty_client_is_named_and_left_out(run_locally, tmp_path, fault):
    _, out = run_locally(client=faulty(fault, partitions={1}), tape=str(tmp_path / "tape"))
    for one in result_of(out)["rounds"][1:]:
        assert one["usable"] == 2
        (left_out,) = one["left_out"]
        assert left_out["reason"]
        assert left_out["node"].isdigit()
    assert result_of(out)["finished"]
    assert len(Tape(tmp_path / "tape").entries) >= 4, "the sound clients' updates are on the tape"


def test_what_is_wrong_is_said(run_locally):
    for fault, words in WORDS.items():
        _, out = run_locally(client=faulty(fault, partitions={0}), out=fault, num_server_rounds=1)
        assert words in result_of(out)["rounds"][1]["left_out"][0]["reason"], fault


@pytest.mark.parametrize("fault", ["raises", "nan", "nothing"])
def test_a_round_without_a_usable_reply_fails_the_run(run_locally, fault, tmp_path):
    with pytest.raises(NoUsableReplies, match="round 1 has no usable reply"):
        run_locally(client=faulty(fault, partitions={0, 1, 2}))
    assert not result_of(tmp_path / "out")["finished"]


def test_clients_that_do_not_come_are_an_error_not_a_wait(run_locally):
    grid = LocalGrid(client_app, 2, {})
    with pytest.raises(RuntimeError, match="expected 3 clients.*2 connected.*num-supernodes=3"):
        wait_for_nodes(grid, 3, seconds=0.2)


def test_more_supernodes_than_clients_is_refused_by_the_clients(tmp_path):
    settings = Settings(num_clients=2, dataset="digits", output_dir=str(tmp_path / "out"))
    grid = LocalGrid(client_app, 3, settings.to_run_config())
    from flwr.app import Context, RecordDict

    from server.app import app as server_app

    context = Context(1, 1, {}, RecordDict(), settings.to_run_config())
    with pytest.raises(NoUsableReplies, match="Flower started 3 nodes"):
        server_app(grid, context)


def test_a_tape_that_cannot_be_written_leaves_training_untouched(run_locally, tmp_path):
    (tmp_path / "file").write_text("in the way")
    on, off = (
        result_of(run_locally(tape=tape, out=name)[1])
        for name, tape in (("on", str(tmp_path / "file" / "tape")), ("off", ""))
    )
    assert [one["model_sha256"] for one in on["rounds"]] == [one["model_sha256"] for one in off["rounds"]]
    assert on["tape_lost"] >= 6, "three clients in two rounds"
    assert off["tape_lost"] is None
