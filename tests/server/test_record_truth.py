"""`record_truth` in clients of every kind: what lies on the client's side afterwards, and that nothing else changes."""

from __future__ import annotations

import logging
import os
import random
import re
import stat
import threading

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fl_precode.flower.truth as recording
from attacker.audit.truth.recorded import RecordedTruth
from fl_precode.flower import record_truth
from fl_precode.recorded_truth import read_head
from fl_precode.tape import Tape
from tests.local_grid import FIRST_NODE, LocalGrid
from tests.server.own_app import client_app, flat, network, part, run, train


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    monkeypatch.delenv("FL_PRECODE_TRUTH", raising=False)
    monkeypatch.setattr(recording, "_said", set())
    monkeypatch.setattr(recording, "_RECORDS", recording._Records())


def number_of(node: str) -> int:
    return int(node) - FIRST_NODE


def check_all(tape, each, rounds=2, nodes=3):
    """Every update's truth is what its client used in its round."""
    source = RecordedTruth(tape.with_name("tape.truth"), {})
    entries = Tape(tape).entries
    assert len(entries) == rounds * nodes
    for entry in entries:
        images, labels = part(number_of(entry.node), entry.round, each)
        found = source.truth(entry)
        assert torch.allclose(found.images, images, atol=1e-6)
        assert torch.equal(found.labels, labels)
        assert source.classes(entry) == tuple(sorted(set(labels.tolist())))
    return source


def test_one_line_in_a_client_of_the_message_api(tmp_path):
    check_all(run(tmp_path, client_app(record_truth)), 1)
    folder = tmp_path / "tape.truth"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = sorted(folder.iterdir())
    assert len(files) == 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    for path in files:
        head = read_head(path)
        assert head.answered.message
        assert path.name.startswith(head.answered.message)


def test_a_batch_at_a_time_keeps_the_batches_and_each_image_once(tmp_path):
    def twice(images, labels):
        record_truth(images, labels)
        record_truth(images.flip(0), labels.flip(0))  # a second epoch, say

    tape = run(tmp_path, client_app(twice, each=6, batch=2), each=6, batch=2)
    source = RecordedTruth(tmp_path / "tape.truth", {})
    for entry in Tape(tape).entries:
        images, labels = part(number_of(entry.node), entry.round, 6)
        assert flat(source.truth(entry).images) == flat(images)
        steps = source.steps(entry)
        assert [len(one.labels) for one in steps] == [2] * 6
        assert torch.equal(steps[1].images, images[:2].flip(0))
        assert torch.equal(steps[4].labels, labels[4:])
    bytes_of_images = 6 * 6 * 64 * 4
    assert sum(path.stat().st_size for path in (tmp_path / "tape.truth").iterdir()) < 2.5 * bytes_of_images + 36 * 600


def test_normalisation_is_undone(tmp_path):
    def line(images, labels):
        record_truth(images, labels, mean=(0.5,), std=0.5)

    check_all(run(tmp_path, client_app(line, shift=0.5, scale=0.5)), 1)


def test_normalised_images_without_the_numbers_are_refused_with_what_to_do(tmp_path, caplog):
    run(tmp_path, client_app(record_truth, shift=0.5, scale=0.5))
    assert not (tmp_path / "tape.truth").exists() or not list((tmp_path / "tape.truth").iterdir())
    (said,) = [one.getMessage() for one in caplog.records if "record_truth" in one.getMessage()]
    assert re.search(r"got values from -1 to [\d.]+; if they are normalised", said)
    assert "mean=(0.5, 0.5, 0.5)" in said
    assert len(Tape(tmp_path / "tape").entries) == 6, "training went on"


def test_the_federation_does_not_change(tmp_path):
    """Neither the replies nor the tape's folder know of it."""
    for name, line in (("with", record_truth), ("without", lambda _images, _labels: None)):
        (tmp_path / name).mkdir()
        random.seed(0)  # Flower samples nodes from the global state, and adds them up in this order
        run(tmp_path / name, client_app(line))
    listed = [sorted(p.relative_to(tmp_path / n / "tape") for p in (tmp_path / n / "tape").rglob("*"))
              for n in ("with", "without")]  # fmt: skip
    assert listed[0] == listed[1]
    seen = [Tape(tmp_path / name / "tape") for name in ("with", "without")]
    for one, other in zip(*(tape.observations() for tape in seen), strict=True):
        assert all(torch.equal(value, other.update[name]) for name, value in one.update.items())
    grid = LocalGrid(client_app(record_truth), 1, {"truth": str(tmp_path / "aside")})
    content = RecordDict({"arrays": ArrayRecord(network().state_dict()), "config": ConfigRecord({"server-round": 1})})
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE, "train")])
    assert set(reply.content) == {"arrays", "metrics"}
    assert set(reply.content["metrics"]) == {"num-examples"}
    assert len(list((tmp_path / "aside").iterdir())) == 1


class Legacy:
    """A NumPyClient as Flower's older examples have it: no message in sight."""

    def __new__(cls, number: int):
        from flwr.client import NumPyClient

        class FlowerClient(NumPyClient):
            def fit(self, parameters, config):
                model = network()
                names = list(model.state_dict())
                model.load_state_dict({n: torch.tensor(v) for n, v in zip(names, parameters, strict=True)})
                images, labels = part(number, config["round"], 2)
                train(model, images, labels, 2, lambda x, y: record_truth(x.numpy(), y.numpy()))
                return [value.numpy() for value in model.state_dict().values()], 2, {}

        return FlowerClient()


def test_a_numpy_client_under_a_legacy_strategy(tmp_path):
    from flwr.common import ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow

    app = ClientApp(client_fn=lambda context: Legacy(context.node_config["partition-id"]).to_client())
    grid = LocalGrid(app, 2, {"truth": str(tmp_path / "kept")})
    initial = ndarrays_to_parameters([value.numpy() for value in network().state_dict().values()])
    strategy = FedAvg(
        fraction_evaluate=0.0, initial_parameters=initial, on_fit_config_fn=lambda number: {"round": number}
    )
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context, config=ServerConfig(num_rounds=2), strategy=strategy)
    DefaultWorkflow()(grid, legacy)

    heads = [read_head(path).answered for path in (tmp_path / "kept").iterdir()]
    assert sorted((head.node, head.round) for head in heads) == [
        (str(FIRST_NODE + number), str(server_round)) for number in (0, 1) for server_round in (1, 2)
    ]
    source = RecordedTruth(tmp_path / "kept", {})
    for head in heads:
        found = source.truth(Place(head.node, int(head.round), head.message))
        images, labels = part(number_of(head.node), int(head.round), 2)
        assert torch.allclose(found.images, images)
        assert torch.equal(found.labels, labels)


class Place:
    def __init__(self, node: str, server_round: int, message: str = "") -> None:
        self.node, self.round, self.message = node, server_round, message


def asked(app: ClientApp, config: dict, kind: str = "train") -> Message:
    grid = LocalGrid(app, 1, config)
    content = RecordDict({"config": ConfigRecord({"server-round": 3})})
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE, kind)])
    return reply


def small_app(work) -> ClientApp:
    """Calls ``work(message, context)`` in training and in evaluation."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        work(message, context)
        return Message(RecordDict({"metrics": MetricRecord({"n": 1})}), reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    return app


IMAGE, LABEL = torch.rand(1, 1, 4, 4), torch.tensor([1])


def test_code_in_another_thread_says_what_it_answers(tmp_path, caplog):
    def elsewhere(**known):
        def work(message, context):
            known_now = {name: {"message": message, "context": context}[name] for name in known}
            thread = threading.Thread(target=lambda: record_truth(IMAGE, LABEL, **known_now))
            thread.start()
            thread.join()

        return small_app(work)

    asked(elsewhere(), {"truth": str(tmp_path / "none")})
    assert not (tmp_path / "none").exists()
    assert "it is not known where to write; give folder=" in caplog.text
    asked(elsewhere(message=None, context=None), {"truth": str(tmp_path / "some")})
    (path,) = (tmp_path / "some").iterdir()
    assert read_head(path).answered.round == "3"


def test_where_it_writes(tmp_path, monkeypatch, caplog):
    def work(_message, _context, **more):
        record_truth(IMAGE, LABEL, **more)

    config = {"truth": str(tmp_path / "named"), "tape": str(tmp_path / "tape")}
    asked(small_app(work), {"tape": str(tmp_path / "tape")})
    assert len(list((tmp_path / "tape.truth").iterdir())) == 1
    asked(small_app(work), config)
    assert len(list((tmp_path / "named").iterdir())) == 1
    monkeypatch.setenv("FL_PRECODE_TRUTH", str(tmp_path / "environment"))
    asked(small_app(work), config)
    assert len(list((tmp_path / "environment").iterdir())) == 1
    asked(small_app(lambda m, c: work(m, c, folder=tmp_path / "argument")), config)
    assert len(list((tmp_path / "argument").iterdir())) == 1
    monkeypatch.delenv("FL_PRECODE_TRUTH")
    assert not caplog.records
    for _ in range(3):
        assert not asked(small_app(work), {}).has_error()
    assert [one.levelno for one in caplog.records] == [logging.WARNING]
    assert "FL_PRECODE_TRUTH" in caplog.text


def test_evaluation_is_no_training(tmp_path):
    asked(small_app(lambda _m, _c: record_truth(IMAGE, LABEL)), {"truth": str(tmp_path / "kept")}, "evaluate")
    assert not (tmp_path / "kept").exists()


def test_a_tape_is_no_place_for_it(tmp_path, caplog):
    tape = run(tmp_path, client_app(lambda _x, _y: None), rounds=1)
    before = sorted(tape.rglob("*"))
    asked(small_app(lambda _m, _c: record_truth(IMAGE, LABEL, folder=tape)), {})
    assert sorted(tape.rglob("*")) == before
    assert "is a tape, which the attacker reads" in caplog.text


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (torch.rand(2, 1, 4, 4), torch.tensor([1]), "with one label each, got (2, 1, 4, 4) and 1 label"),
        (np.random.rand(2, 8, 8, 3), [0, 1], "channels seem to be last"),
        (torch.rand(1, 1, 4, 4) * 255, torch.tensor([1]), "divide them by 255"),
        (torch.full((1, 1, 4, 4), float("nan")), torch.tensor([1]), "infinite or not a number"),
        (torch.rand(1, 1, 4, 4), torch.tensor([0.5]), "class numbers, whole"),
        (torch.rand(1, 1, 4, 4), None, "labels as a tensor or an array"),
        ("a.png", torch.tensor([1]), "images as a tensor or an array"),
        (torch.rand(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), "at least one"),
        (torch.rand(1, 1, 4, 4) * 2 - 1, torch.tensor([1]), "if they are normalised"),
    ],
)
def test_bad_input_is_said_once_and_training_goes_on(tmp_path, caplog, images, labels, text):
    for _ in range(2):
        reply = asked(small_app(lambda _m, _c: record_truth(images, labels)), {"truth": str(tmp_path / "kept")})
        assert not reply.has_error()
    (said,) = [one.getMessage() for one in caplog.records]
    assert text in said
    assert "training goes on" in said
    assert not (tmp_path / "kept").exists()


def test_a_disk_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    reply = asked(small_app(lambda _m, _c: record_truth(IMAGE, LABEL)), {"truth": str(tmp_path / "file" / "kept")})
    assert not reply.has_error()
    assert "training goes on" in caplog.text


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (IMAGE[0], 1),
        (IMAGE[0, 0].numpy(), np.array(1)),
        (IMAGE[:, 0], [1]),
        (IMAGE.requires_grad_(True), LABEL[:, None]),
        ((IMAGE * 255).round().to(torch.uint8), LABEL),
        (IMAGE.double().detach().numpy(), torch.eye(3)[1:2]),
        ([IMAGE[0]], LABEL.to(torch.float32)),
    ],
)
def test_forms_of_images_and_labels(tmp_path, images, labels):
    asked(small_app(lambda _m, _c: record_truth(images, labels)), {"truth": str(tmp_path / "kept")})
    found = RecordedTruth(tmp_path / "kept", {}).truth(Place(str(FIRST_NODE), 3))
    assert found.images.shape == (1, 1, 4, 4)
    assert torch.allclose(found.images, IMAGE.detach(), atol=1 / 255)
    assert found.labels.tolist() == [1]


def test_more_than_an_audit_could_compare_is_not_kept(tmp_path):
    def work(_message, _context):
        for _ in range(4):
            record_truth(torch.rand(200, 1, 4, 4), torch.zeros(200))

    asked(small_app(work), {"truth": str(tmp_path / "kept")})
    assert len(list((tmp_path / "kept").iterdir())) == 3
    source = RecordedTruth(tmp_path / "kept", {})
    with pytest.raises(ValueError, match="more images than record_truth keeps"):
        source.truth(Place(str(FIRST_NODE), 3))


def test_two_processes_that_answer_one_message_do_not_overwrite_each_other(tmp_path, monkeypatch):
    def work(_message, _context):
        record_truth(IMAGE, LABEL)
        monkeypatch.setattr(recording, "_RECORDS", recording._Records())
        record_truth(IMAGE * 0.5, LABEL)

    asked(small_app(work), {"truth": str(tmp_path / "kept")})
    assert len(RecordedTruth(tmp_path / "kept", {}).truth(Place(str(FIRST_NODE), 3)).labels) == 2


def test_damaged_files_are_passed_over(tmp_path, caplog):
    tape = run(tmp_path, client_app(record_truth), rounds=1)
    folder = tmp_path / "tape.truth"
    first, second, _ = sorted(folder.iterdir())
    first.write_bytes(first.read_bytes()[:50])
    os.remove(second)
    source = RecordedTruth(folder, {})
    assert sum(source.knows(entry) for entry in Tape(tape).entries) == 1
    assert "was it cut off?" in caplog.text
