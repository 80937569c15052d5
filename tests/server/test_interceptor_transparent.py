"""What an app does with its own strategy goes on under the Interceptor, watched; what cannot be heard is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fl_precode.flower import Interceptor, ListeningGrid, listening
from fl_precode.tape import Tape
from tests.local_grid import LocalGrid

SENT = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def arrays(values=SENT) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in values.items()})


def client(**more) -> ClientApp:
    """Adds its partition's number plus one; ``more`` are further metrics."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        change = np.float32(1 + context.node_config["partition-id"])
        values = {name: array.numpy() + change for name, array in message.content["arrays"].items()}
        metrics = MetricRecord({"num-examples": 3, **more})
        return Message(RecordDict({"arrays": arrays(values), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "x": 2.0})}), reply_to=message)

    return app


def run(strategy, rounds=2, app=None):
    return strategy.start(LocalGrid(app or client(), 3, {}), arrays(), num_rounds=rounds)


def changes(path) -> list[tuple[int, float]]:
    return sorted((one.round, float(one.update["w"][0, 0])) for one in Tape(path).observations())


ALL = [(number, change) for number in (1, 2) for change in (1.0, 2.0, 3.0)]


class Keeping(FedAvg):
    """Keeps checkpoints in a start of its own, by the parent's."""

    kept = 0

    def start(self, *arguments, **named):
        result = super().start(*arguments, **named)
        self.kept += 1
        return result


class Looping(FedAvg):
    """A loop of its own, in another method, as some public wrappers have it."""

    def start(self, grid, initial_arrays, num_rounds):
        for number in range(1, num_rounds + 1):
            initial_arrays = self.one_round(number, initial_arrays, grid)
        return initial_arrays

    def one_round(self, number, current, grid):
        replies = grid.send_and_receive(self.configure_train(number, current, ConfigRecord(), grid))
        return self.aggregate_train(number, replies)[0]


class Past(FedAvg):
    """Sends its messages itself."""

    def start(self, grid, initial_arrays, num_rounds):
        content = RecordDict({"arrays": initial_arrays, "config": ConfigRecord()})
        return list(grid.send_and_receive([Message(content, node, "train") for node in grid.get_node_ids()]))


@pytest.mark.parametrize("kind", [FedAvg, Keeping, Looping])
def test_a_start_of_its_own_runs_and_is_watched(tmp_path, kind):
    own = kind(fraction_evaluate=0.0)
    run(Interceptor(own, tmp_path / "tape"))
    assert changes(tmp_path / "tape") == ALL
    assert getattr(own, "kept", 1) == 1


def test_the_wrapped_strategy_itself_is_watched_when_the_app_starts_that(tmp_path):
    own = Keeping(fraction_evaluate=0.0)
    Interceptor(own, tmp_path / "tape")
    run(own)
    assert changes(tmp_path / "tape") == ALL


def test_a_start_that_goes_past_the_strategy_is_refused_where_it_is_wrapped(tmp_path):
    with pytest.raises(TypeError, match="sends its messages itself, past configure_train.*ListeningGrid"):
        Interceptor(Past(), tmp_path / "tape")
    grid = ListeningGrid(LocalGrid(client(), 3, {}), tmp_path / "wire")
    Past().start(grid, arrays(), 1)
    assert changes(tmp_path / "wire") == ALL[:3]


def test_two_listeners_hear_the_same(tmp_path):
    run(Interceptor(Interceptor(Keeping(fraction_evaluate=0.0), tmp_path / "inner"), tmp_path / "outer"))
    assert changes(tmp_path / "inner") == changes(tmp_path / "outer") == ALL


def test_methods_and_settings_are_those_of_the_wrapped_strategy(tmp_path):
    class Own(FedAvg):
        def save_to(self, place):
            self.place = place
            return self

    own = Own(fraction_evaluate=0.0)
    wrapped = Interceptor(own, tmp_path / "tape")
    assert wrapped.save_to("here") is own
    assert wrapped.place == "here"
    wrapped.place = "there"
    assert own.place == "there"
    assert wrapped.fraction_evaluate == 0.0
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        _ = wrapped.nothing_of_this_name


def test_inside_of_a_server_side_defence_what_it_lets_through_is_recorded(tmp_path):
    inner = Interceptor(Keeping(fraction_evaluate=0.0), tmp_path / "tape")
    outer = DifferentialPrivacyServerSideFixedClipping(
        inner, noise_multiplier=0.0, clipping_norm=0.001, num_sampled_clients=3
    )
    run(outer, rounds=1)
    assert all(np.linalg.norm(one.update["w"]) < 0.002 for one in Tape(tmp_path / "tape").observations())


@pytest.mark.parametrize("groups", [2, 3])
def test_clients_with_weights_of_their_own(tmp_path, groups):
    class Clustered(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            for place, node in enumerate(grid.get_node_ids()):
                own = {name: array.numpy() + np.float32(10 * (place % groups)) for name, array in arrays.items()}
                content = {"arrays": ArrayRecord({name: Array(value) for name, value in own.items()}), "config": config}
                yield Message(RecordDict(content), node, "train")

    run(Interceptor(Clustered(fraction_evaluate=0.0), tmp_path / "tape"), rounds=1)
    seen = Tape(tmp_path / "tape").observations()
    assert sorted((float(one.parameters["w"][0, 0]), float(one.update["w"][0, 0])) for one in seen) == sorted(
        (10.0 * (place % groups), 1.0 + place) for place in range(3)
    )
    assert len(list((tmp_path / "tape" / "parameters").iterdir())) == groups


@pytest.mark.parametrize("named", [{}, {"arrayrecord_key": "weights"}])
def test_what_stands_before_the_weights_is_not_taken_for_them(tmp_path, named):
    key = named.get("arrayrecord_key", "arrays")
    app = ClientApp()

    @app.train()
    def train(message, context):
        values = {name: array.numpy() + np.float32(1) for name, array in message.content[key].items()}
        content = {"aa-variate": message.content["aa-variate"], key: arrays(values)}
        return Message(RecordDict({**content, "m": MetricRecord({"num-examples": 3})}), reply_to=message)

    class Controlled(FedAvg):
        def configure_train(self, server_round, arrays, config, grid):
            zero = ArrayRecord({name: Array(np.zeros_like(array.numpy())) for name, array in arrays.items()})
            return [
                Message(RecordDict({"aa-variate": zero, key: arrays, "config": config}), node, "train")
                for node in grid.get_node_ids()
            ]

        def aggregate_train(self, server_round, replies):
            return None, MetricRecord({"replies": len(list(replies))})

    run(Interceptor(Controlled(fraction_evaluate=0.0, **named), tmp_path / "tape"), rounds=1, app=app)
    tape = Tape(tmp_path / "tape")
    assert {one.record for one in tape.entries} == {key}
    assert changes(tmp_path / "tape") == [(1, 1.0)] * 3


def test_what_was_asked_and_told_is_kept_and_our_own_record_is_not(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        content = {
            "arrays": message.content["arrays"],
            "metrics": MetricRecord({"num_samples": 7.0, "loss": float("nan"), "per-class": [1, 2]}),
            "fl-precode": ConfigRecord({"partition-id": 5}),
            "told": ConfigRecord({"lr": 0.1, "note": "x" * 999}),
        }
        return Message(RecordDict(content), reply_to=message)

    class Quiet(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, MetricRecord({"replies": len(list(replies))})

    wrapped = Interceptor(Quiet(fraction_evaluate=0.0, weighted_by_key="num_samples"), tmp_path / "tape")
    wrapped.start(LocalGrid(app, 3, {}), arrays(), num_rounds=1, train_config=ConfigRecord({"epochs": 2}))
    entry = Tape(tmp_path / "tape").entries[0]
    assert entry.metrics == {"metrics": {"num_samples": 7.0}}
    assert entry.configs == {"told": {"lr": 0.1, "note": "x" * 200}}
    assert entry.asked["config"]["epochs"] == 2
    assert entry.weighted_by == "num_samples"
    assert entry.message
    assert "partition-id" not in (tmp_path / "tape" / "manifest.jsonl").read_text()


def test_evaluations_are_counted(tmp_path):
    strategy = Interceptor(FedAvg(fraction_train=0.0), tmp_path / "tape")
    run(strategy)
    tape = Tape(tmp_path / "tape")
    assert [(one.round, one.replies, one.failed) for one in tape.evaluations] == [(1, 3, 0), (2, 3, 0)]
    assert tape.entries == []


def test_each_run_has_a_tape_of_its_own(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            run(Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "tape"), rounds=1)
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_dir()) == ["tape", "tape-2", "tape-3"]
    for name in ("tape", "tape-2", "tape-3"):
        assert changes(tmp_path / name) == ALL[:3]
    assert f"this run's tape is {tmp_path / 'tape-3'}" in caplog.text


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="is not empty already; choose a new folder"):
        Interceptor(FedAvg(), tmp_path / "papers")


def test_where_a_relative_path_and_a_home_lead_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with caplog.at_level(logging.WARNING):
        assert Interceptor(FedAvg(), "runs/tape").tape.path == tmp_path / "runs" / "tape"
    assert f"is relative; Flower runs the server in a folder of its own, so the tape is at {tmp_path}" in caplog.text
    assert Interceptor(FedAvg(), "~/tape").tape.path == tmp_path / "home" / "tape"


@pytest.mark.parametrize("strategy", [LegacyFedAvg(), object(), None], ids=["older API", "nothing", "none"])
def test_no_strategy_of_the_message_api_is_refused_in_a_sentence(tmp_path, strategy):
    with pytest.raises(TypeError, match="listening|ListeningGrid"):
        Interceptor(strategy, tmp_path / "tape")
    assert not (tmp_path / "tape").exists()


def test_an_app_with_components_is_heard_unchanged(tmp_path):
    from flwr.client import NumPyClient

    class Adds(NumPyClient):
        def fit(self, parameters, config):
            return [parameters[0] + np.float32(1)], 4, {}

    finals = []
    for listen in (False, True):
        from flwr.common import ndarrays_to_parameters

        start = ndarrays_to_parameters([SENT["w"]])
        strategy = LegacyFedAvg(fraction_evaluate=0.0, min_available_clients=3, initial_parameters=start)
        components = ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))
        app = ServerApp(server_fn=lambda _context, components=components: components)
        if listen:
            app = listening(app, tmp_path / "tape")
        grid = LocalGrid(ClientApp(client_fn=lambda _context: Adds().to_client()), 3, {})
        app(grid, next(iter(grid.contexts.values())))
        finals.append(grid)
    tape = Tape(tmp_path / "tape")
    assert [one.round for one in tape.entries] == [1, 1, 1, 2, 2, 2]
    assert all(float(next(iter(one.update.values()))[0, 0]) == 1.0 for one in tape.observations())
    with pytest.raises(TypeError, match=r"expected a flwr.serverapp.ServerApp, got FedAvg"):
        listening(FedAvg(), tmp_path / "other")
    with pytest.raises(TypeError, match="modell"):
        listening(ServerApp(), tmp_path / "other", modell="x")


@pytest.mark.parametrize("name", ["a/b", "a b", "größe.重み", "..", "x" * 300, "module.w"])
def test_arrays_and_records_of_any_name_are_kept(tmp_path, name):
    app = ClientApp()

    @app.train()
    def train(message, context):
        values = {key: array.numpy() + np.float32(2) for key, array in message.content["arrays"].items()}
        content = {
            "arrays": arrays(values),
            name: arrays(values),
            "metrics": MetricRecord({"num-examples": 3, name: 1}),
        }
        return Message(RecordDict(content), reply_to=message)

    class Quiet(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, MetricRecord({"replies": len(list(replies))})

    wrapped = Interceptor(Quiet(fraction_evaluate=0.0), tmp_path / "tape")
    wrapped.start(LocalGrid(app, 3, {}), arrays({name: SENT["w"]}), num_rounds=1)
    tape = Tape(tmp_path / "tape")
    assert tape.verify() == []
    assert [one.extras[0].record for one in tape.entries] == [name] * 3
    assert all(float(one.update[name][0, 0]) == 2.0 for one in tape.observations())


@pytest.mark.slow  # half a minute, nearly all of it in making the messages
def test_thousands_of_arrays_are_kept(tmp_path):
    many = {f"layer{number}.weight": np.full(2, number, np.float32) for number in range(10_000)}

    class Quiet(FedAvg):
        def aggregate_train(self, server_round, replies):
            return None, MetricRecord({"replies": len(list(replies))})

    wrapped = Interceptor(Quiet(fraction_evaluate=0.0), tmp_path / "tape")
    wrapped.start(LocalGrid(client(), 2, {}), arrays(many), num_rounds=1)
    first, second = Tape(tmp_path / "tape").observations()
    assert len(first.update) == len(second.update) == 10_000
    assert {float(one.update["layer9999.weight"][0]) for one in (first, second)} == {1.0, 2.0}
