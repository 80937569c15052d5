"""What replies hold beside the update: found on the tape, measured with the truth, shown."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.scoring.channels import reply_channels
from attacker.audit.settings import AuditSettings
from attacker.gradients.replay import Replay
from fl_precode.tape import Tape
from tests.attacker.taped_federation import tape_federation

SETTINGS = AuditSettings(attacks=("first-layer",), victims=4, control=False)


def with_metrics(taped, say):
    """The tape with what ``say`` adds to each reply, by its line and its true labels."""
    manifest = taped.tape / "manifest.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        if line["type"] == "observation":
            line.update(say(line, taped.used[line["node"], line["round"]][1]))
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))


def channels(taped, tmp_path):
    (own,) = open_federations([TapeSource(tape=taped.tape)], SETTINGS, tmp_path / "controls")
    return {one.name: one for one in reply_channels(own)}, own


def test_a_reply_of_the_update_alone_has_one_channel(tmp_path):
    taped = tape_federation(tmp_path, rounds=1)
    (found,) = channels(taped, tmp_path)[0].values()
    assert (found.channel, found.name, found.replies, found.of) == ("update", "the gradient", 2, 2)


def test_metrics_are_named_and_measured(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, batch_size=4)

    def say(line, labels):
        counts = Counter(labels.tolist())
        return {
            "metrics": {"m": {"num-examples": len(labels), "train_accuracy": 0.75, "train-loss": 2.5, "age": 3.0}},
            "lists": {"m": {"histogram": [counts[label] for label in range(10)], "other": [1.0, 2.0]}},
            "configs": {"c": {"device": "cpu", "seed": 3}},
        }

    with_metrics(taped, say)
    found, _ = channels(taped, tmp_path)
    kinds = {name: one.channel for name, one in found.items()}
    assert kinds == {
        "the gradient": "update", "num-examples": "examples", "train_accuracy": "accuracy", "train-loss": "loss",
        "age": "metric", "device": "setting", "seed": "setting", "histogram": "label-counts", "other": "metric",
    }  # fmt: skip
    assert (found["num-examples"].exact, found["num-examples"].compared) == (2, 2)
    assert (found["train_accuracy"].exact, found["train_accuracy"].compared) == (2, 2)
    assert (found["histogram"].exact, found["histogram"].compared) == (2, 2)
    assert "exactly in 2 of 2" in found["histogram"].gave_away
    assert (found["train-loss"].exact, found["train-loss"].compared) == (0, 2), "2.5 is not the loss of these images"
    assert found["device"].held == "1 text"


def test_a_loss_is_known_for_that_of_the_clients_images(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, batch_size=4)
    _, own = channels(taped, tmp_path)
    losses = {}
    for entry in own.entries:
        seen, truth = own.subject.tape.load(entry), own.truth(entry)
        replay = Replay(own.subject.victim, seen.parameters, seen.buffers)
        inputs = own.subject.victim.inputs.normalise(truth.images)
        with torch.no_grad():
            losses[entry.node] = float(replay.loss(seen.parameters, inputs, truth.labels, ()))
    with_metrics(taped, lambda line, labels: {"metrics": {"m": {"loss": losses[line["node"]]}}})
    found, _ = channels(taped, tmp_path)
    assert (found["loss"].exact, found["loss"].compared) == (2, 2)


def test_running_statistics_are_those_of_the_true_images(tmp_path):
    local = {"local_steps": 1, "learning_rate": 0.1}
    taped = tape_federation(tmp_path, model="resnet20", rounds=1, batch_size=2, local=local)
    found, _ = channels(taped, tmp_path)
    statistics = found["running means and variances"]
    assert (statistics.channel, statistics.exact, statistics.compared) == ("statistics", 2, 2)
    assert "the exact mean and variance of one batch" in statistics.gave_away
    assert found["num_batches_tracked"].held == "1"


@pytest.mark.parametrize("lists", [{"m": {"a": [1, "x"], "b": [True], "c": "no list"}}, {}])
def test_lists_on_a_tape_are_numbers_or_none(tmp_path, lists):
    taped = tape_federation(tmp_path, rounds=1)
    with_metrics(taped, lambda line, labels: {"lists": lists})
    tape = Tape(taped.tape)
    assert not tape.problems
    assert all(not values for entry in tape.entries for values in entry.lists.values())
