"""The view from the wire: custom server apps, weights of each client's own, secure aggregation; nothing is changed."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fl_precode.flower.interceptor import Interceptor
from fl_precode.flower.wire import ListeningGrid
from fl_precode.tape import Tape
from tests.local_grid import LocalGrid

SENT = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def record(scale=1.0):
    return ArrayRecord({name: Array(scale * value) for name, value in SENT.items()})


def client():
    """Adds to what it got 1, 2, 3 by its partition."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        change = 1 + context.node_config["partition-id"]
        arrays = {k: Array(v.numpy() + np.float32(change)) for k, v in message.content["arrays"].items()}
        return Message(
            RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 3})}), reply_to=message
        )

    @app.query()
    def query(message, context):
        return Message(RecordDict({"arrays": record()}), reply_to=message)

    return app


def grid(tmp_path, app=None):
    return ListeningGrid(LocalGrid(app or client(), 3, {}), tmp_path / "wire")


def changes(tape):
    return sorted((one.round, float(one.update["w"][0, 0])) for one in tape.observations())


def test_under_a_strategy_it_has_what_the_interceptor_has_and_changes_nothing(tmp_path):
    finals = []
    for listens in (False, True):
        random.seed(0)
        strategy = FedAvg(fraction_evaluate=0.0)
        inner = LocalGrid(client(), 3, {})
        if listens:
            strategy, inner = Interceptor(strategy, tmp_path / "strategy"), ListeningGrid(inner, tmp_path / "wire")
        finals.append(strategy.start(inner, record(), num_rounds=3).arrays["w"].numpy())
    assert np.array_equal(*finals)
    wire, strategy = Tape(tmp_path / "wire"), Tape(tmp_path / "strategy")
    assert {one.node for one in wire.entries} == {one.node for one in strategy.entries}
    assert changes(wire) == changes(strategy) == [(r, c) for r in (1, 2, 3) for c in (1.0, 2.0, 3.0)]
    for one, other in zip(wire.observations(), strategy.observations(), strict=True):
        assert np.array_equal(one.parameters["w"], other.parameters["w"])


def test_a_server_app_without_a_strategy_is_heard(tmp_path):
    listening = grid(tmp_path)
    nodes = list(listening.get_node_ids())
    for scale in (1.0, 2.0):
        messages = [Message(RecordDict({"arrays": record(scale)}), node, "train") for node in nodes]
        replies = list(listening.pull_messages(listening.push_messages(iter(messages))))
        assert len(replies) == 3
    list(listening.send_and_receive([Message(RecordDict({"arrays": record()}), nodes[0], "query")]))
    tape = Tape(tmp_path / "wire")
    assert changes(tape) == [(r, c) for r in (1, 2) for c in (1.0, 2.0, 3.0)], "queries are no training"
    assert {one.node for one in tape.entries} == set(map(str, nodes))


def test_clients_with_weights_of_their_own_keep_them(tmp_path):
    listening = grid(tmp_path)
    nodes = list(listening.get_node_ids())
    for server_round in (1, 2):
        config = ConfigRecord({"server-round": server_round})
        messages = [
            Message(RecordDict({"arrays": record(1.0 + place), "config": config}), node, "train")
            for place, node in enumerate(nodes)
        ]
        listening.send_and_receive(messages)
    observations = Tape(tmp_path / "wire").observations()
    assert [one.round for one in observations] == [1, 1, 1, 2, 2, 2]
    assert [float(one.parameters["w"][0, 1]) for one in observations] == [1.0, 2.0, 3.0] * 2
    assert [float(one.update["w"][0, 1]) for one in observations] == [1.0, 2.0, 3.0] * 2


def test_privacy_that_the_server_adds_comes_after_the_wire(tmp_path):
    strategy = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0), noise_multiplier=1.0, clipping_norm=0.001, num_sampled_clients=3
    )
    strategy.start(grid(tmp_path), record(), num_rounds=1)
    assert changes(Tape(tmp_path / "wire")) == [(1, 1.0), (1, 2.0), (1, 3.0)], "raw"


def test_clients_that_raise_are_noted(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise RuntimeError("no disk")

    listening = grid(tmp_path, app)
    node = next(iter(listening.get_node_ids()))
    (reply,) = listening.send_and_receive([Message(RecordDict({"arrays": record()}), node, "train")])
    assert reply.has_error()
    (failure,) = Tape(tmp_path / "wire").failures
    assert (failure.node, failure.round) == (str(node), 1)
    assert "no disk" in failure.reason


def test_trouble_with_the_tape_is_not_noticed(tmp_path, monkeypatch, caplog):
    listening = grid(tmp_path)
    monkeypatch.setattr(listening.tape, "write_sent", lambda *_: 1 / 0)
    monkeypatch.setattr(listening.tape, "write_reply", lambda *_, **__: 1 / 0)
    nodes = list(listening.get_node_ids())
    messages = [Message(RecordDict({"arrays": record()}), node, "train") for node in nodes]
    assert len(list(listening.send_and_receive(messages))) == 3
    assert listening.tape.lost > 0


def test_what_else_a_grid_has_is_passed_on(tmp_path):
    listening = grid(tmp_path)
    assert len(listening.contexts) == 3
    assert listening.run.run_id == 1
    with pytest.raises(NotImplementedError):
        listening.set_run(None)
    with pytest.raises(AttributeError):
        _ = listening.nothing_of_this_name


class Adds(NumPyClient):
    """Adds its own amount to the weights."""

    def __init__(self, change):
        self.change = change

    def fit(self, parameters, config):
        return [parameters[0] + np.float32(self.change)], 1, {}


def test_under_secure_aggregation_no_update_of_a_client_is_on_the_wire(tmp_path):
    def client_fn(context):
        return Adds(0.01 * (1 + context.node_config["partition-id"])).to_client()

    app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
    listening = grid(tmp_path, app)
    weights = SENT["w"] / 10
    context = LegacyContext(
        context=next(iter(listening.contexts.values())),
        config=ServerConfig(num_rounds=2),
        strategy=LegacyFedAvg(
            initial_parameters=ndarrays_to_parameters([weights]), fraction_evaluate=0.0, min_available_clients=3
        ),
    )
    workflow = DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2))
    workflow(listening, context)
    tape = Tape(tmp_path / "wire")
    assert len(tape.entries) == 0
    assert len(tape.failures) == 2 * 3
    assert all("masked_params" in one.reason for one in tape.failures)
