"""The interceptor copies at once, changes nothing and is never noticed."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAdam, FedAvg, FedMedian

from fl_precode import Protocol
from fl_precode.flower.interceptor import Interceptor
from fl_precode.tape import Tape, TapeHeader, TapeWriter
from tests.local_grid import LocalGrid

SENT = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn.running_mean": np.zeros(3, np.float32),
    "bn.num_batches_tracked": np.array(5),
}


def client(change=1.0, shape=None, records=1):
    """Replies with the arrays it got plus a change that grows with its partition."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        scale = change * (1 + context.node_config["partition-id"])
        values = {
            k: np.asarray(v.numpy() + np.asarray(scale, v.numpy().dtype)) for k, v in message.content["arrays"].items()
        }
        content = {f"arrays{i or ''}": ArrayRecord({k: Array(v) for k, v in values.items()}) for i in range(records)}
        content["metrics"] = MetricRecord({"num-examples": 3})
        return Message(RecordDict(content), reply_to=message)

    return app


def counting_client():
    """Replies with a list of numbers among its metrics, and one that is not finite."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 3, "labels": [1, 0, 2], "odd": [float("inf")]})
        content = {"arrays": message.content["arrays"], "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


def test_lists_of_numbers_are_kept(tmp_path):
    start(Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "tape"), counting_client(), rounds=1)
    for entry in Tape(tmp_path / "tape").entries:
        assert entry.lists == {"metrics": {"labels": (1.0, 0.0, 2.0)}}
        assert entry.metrics == {"metrics": {"num-examples": 3}}


def start(strategy, app, rounds=3):
    grid = LocalGrid(app, 3, {})
    return strategy.start(grid, ArrayRecord({k: Array(v) for k, v in SENT.items()}), num_rounds=rounds)


@pytest.mark.parametrize("inner", [FedAvg, FedMedian, FedAdam])
def test_other_strategies_are_wrapped_without_a_change(tmp_path, inner):
    options = {"fraction_evaluate": 0.0}
    floats = {k: v for k, v in SENT.items() if v.dtype == np.float32}
    initial = ArrayRecord({k: Array(v) for k, v in floats.items()})
    import random

    finals = []
    for wrap in (False, True):
        random.seed(0)  # Flower samples nodes from the global state
        strategy = inner(**options)
        if wrap:
            strategy = Interceptor(strategy, tmp_path / "tape")
        finals.append(strategy.start(LocalGrid(client(), 3, {}), initial, num_rounds=3).arrays)
    for name in floats:
        assert np.array_equal(finals[0][name].numpy(), finals[1][name].numpy())
    assert len(Tape(tmp_path / "tape").entries) == 9


def test_what_is_on_the_tape(tmp_path):
    start(Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "tape"), client(), rounds=1)
    observations = Tape(tmp_path / "tape").observations()
    assert len(observations) == 3
    for one in observations:
        assert set(one.parameters) == {"w"}, "buffers are told from parameters by name and type"
        assert set(one.buffers) == {"bn.running_mean", "bn.num_batches_tracked"}
        assert one.batch_size is None, "num-examples of local training is no batch size"
        assert np.array_equal(one.parameters["w"].numpy(), SENT["w"])
    assert sorted(float(one.update["w"][0, 0]) for one in observations) == [1.0, 2.0, 3.0]


def test_outside_a_defence_that_works_in_place_the_raw_update_is_recorded(tmp_path):
    def private(strategy):
        return DifferentialPrivacyServerSideFixedClipping(
            strategy, noise_multiplier=0.0, clipping_norm=0.001, num_sampled_clients=3
        )

    floats = {"w": SENT["w"]}
    for name, strategy in (
        ("raw", Interceptor(private(FedAvg(fraction_evaluate=0.0)), tmp_path / "raw")),
        ("clipped", private(Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "clipped"))),
    ):
        strategy.start(LocalGrid(client(), 3, {}), ArrayRecord({k: Array(v) for k, v in floats.items()}), num_rounds=1)
        norms = [float(one.update["w"].norm()) for one in Tape(tmp_path / name).observations()]
        assert (min(norms) > 1) == (name == "raw"), norms


def test_gradients_take_their_batch_size_from_the_reply(tmp_path):
    tape = TapeWriter(tmp_path / "tape", TapeHeader(kind="gradient"))
    start(
        Interceptor(FedAvg(fraction_evaluate=0.0), tape, batch_size=7, buffers=["bn.running_mean"]), client(), rounds=1
    )
    for one in Tape(tmp_path / "tape").observations():
        assert one.batch_size == 3
        assert "bn.num_batches_tracked" in one.parameters, "buffers were named, so nothing is guessed"
        assert float(one.update["w"][0, 0]) in (1.0, 2.0, 3.0), "a gradient is what was sent, not a difference"


def test_the_declared_batch_size_is_kept_for_weights(tmp_path):
    start(Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "tape", batch_size=7), client(), rounds=1)
    assert {one.batch_size for one in Tape(tmp_path / "tape").observations()} == {7}


@pytest.mark.parametrize(
    ("protocol", "images"),
    [
        (Protocol(local_epochs=2), 3),
        (Protocol(local_steps=1, batch_size=2), 2),
        (Protocol(local_steps=4, batch_size=5), 3),
        (Protocol(local_steps=4, batch_size=2), 7),  # not certain: what was declared
        (Protocol(local_steps=4), 7),
    ],
)
def test_images_behind_local_training_follow_from_the_reply_and_what_was_announced(tmp_path, protocol, images):
    tape = TapeWriter(tmp_path / "tape", TapeHeader(kind="weights", protocol=protocol))
    start(Interceptor(FedAvg(fraction_evaluate=0.0), tape, batch_size=7), client(), rounds=1)
    assert {one.batch_size for one in Tape(tmp_path / "tape").observations()} == {images}


def test_further_records_of_a_reply_are_kept_beside_the_weights(tmp_path):
    class Odd(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, MetricRecord({"replies": len(list(replies))})

    wrapped = Interceptor(Odd(fraction_evaluate=0.0), tmp_path / "tape")
    result = start(wrapped, client(records=2), rounds=1)
    assert result.train_metrics_clientapp[1]["replies"] == 3
    tape = Tape(tmp_path / "tape")
    assert [(one.record, [more.record for more in one.extras]) for one in tape.entries] == [("arrays", ["arrays1"])] * 3
    assert sorted(float(one.update["w"][0, 0]) for one in tape.observations()) == [1.0, 2.0, 3.0]
    assert tape.verify() == []


def test_an_evaluation_round_passes_through(tmp_path):
    app = client()

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "x": 2.0})}), reply_to=message)

    result = Interceptor(FedAvg(), tmp_path / "tape").start(
        LocalGrid(app, 3, {}), ArrayRecord({"w": Array(SENT["w"])}), num_rounds=1, evaluate_config=ConfigRecord()
    )
    assert result.evaluate_metrics_clientapp[1]["x"] == 2.0


def test_a_new_tape_says_what_an_audit_needs(tmp_path):
    config = {"learning-rate": 0.1, "local-epochs": 2, "batch-size": 4, "num-server-rounds": 3, "data-root": "/private"}
    strategy = Interceptor(
        FedAvg(fraction_evaluate=0.0), tmp_path / "tape", model="my_app.task:Net", inputs="1x2x3", classes=4,
        run_config=config,
    )  # fmt: skip
    start(strategy, client(), rounds=1)
    tape = Tape(tmp_path / "tape")
    assert (tape.header.model, tape.header.inputs.shape, tape.header.inputs.classes) == (
        "my_app.task:Net",
        (1, 2, 3),
        4,
    )
    assert tape.header.protocol == Protocol(learning_rate=0.1, local_epochs=2, batch_size=4)
    assert {one.batch_size for one in tape.observations()} == {3}, "num-examples, because epochs were announced"
    assert "private" not in (tmp_path / "tape" / "tape.json").read_text() + (tmp_path / "tape.toml").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"inputs": "1x2x3"}, "needs classes"),
        ({"inputs": "many", "classes": 2}, "expected channels x height x width"),
        ({"classes": 2}, "belongs to a shape"),
    ],
)
def test_wrong_descriptions_of_a_new_tape_are_refused(tmp_path, arguments, says):
    with pytest.raises(ValueError, match=says):
        Interceptor(FedAvg(), tmp_path / "tape", **arguments)


def test_a_writer_has_its_own_header(tmp_path):
    with pytest.raises(ValueError, match="a writer's header"):
        Interceptor(FedAvg(), TapeWriter(tmp_path / "tape", TapeHeader()), model="my_app.task:Net")
    Interceptor(FedAvg(), TapeWriter(tmp_path / "other", TapeHeader()))
    assert not (tmp_path / "other.toml").exists()


def test_trouble_with_the_notes_does_not_stop_the_federation(tmp_path, caplog):
    (tmp_path / "tape.toml").write_text('model = "earlier"')
    start(Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "tape", model="later"), client(), rounds=1)
    assert (tmp_path / "tape.toml").read_text() == 'model = "earlier"'
    assert "left as it is" in caplog.text
