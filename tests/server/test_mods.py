"""The client mod in an app that knows nothing of it, through real messages."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.defences.registry import gradient_defence, perturbation_generator
from fl_precode.flower.mods import gradient_defence_mod
from tests.local_grid import FIRST_NODE, LocalGrid

SENT = {
    "body.weight": np.arange(60, dtype=np.float32).reshape(3, 20) / 60,
    "body.bias": np.zeros(3, dtype=np.float64),
    "norm.running_mean": np.ones(3, dtype=np.float32),
    "norm.num_batches_tracked": np.array(5),
}


def sgd_app(*mods, reply=None, arrays=1):
    """Trains in place, as apps do: every parameter moves by -0.5."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def train(message, context):
        if reply is not None:
            return reply(message)
        record = message.content.array_records["arrays"]
        moved = {name: array.numpy() - np.asarray(0.5, array.numpy().dtype) for name, array in record.items()}
        moved["norm.num_batches_tracked"] = np.array(6)
        records = {f"arrays{i or ''}": ArrayRecord({n: Array(v) for n, v in moved.items()}) for i in range(arrays)}
        return Message(RecordDict({**records, "metrics": MetricRecord({"num-examples": 7})}), reply_to=message)

    @app.evaluate(mods=list(mods))
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    return app


def ask(app, *, kind="train", config=None, sent=SENT, nodes=1):
    grid = LocalGrid(app, nodes, {})
    content = {"arrays": ArrayRecord({name: Array(value.copy()) for name, value in sent.items()})}
    if config is not None:
        content["config"] = ConfigRecord(config)
    messages = [Message(RecordDict(content), dst_node_id=FIRST_NODE + i, message_type=kind) for i in range(nodes)]
    return list(grid.send_and_receive(messages))


def arrays_of(reply):
    (record,) = reply.content.array_records.values()
    return {name: array.numpy() for name, array in record.items()}


def test_the_update_is_defended_and_nothing_else():
    (plain,), (defended,) = ask(sgd_app()), ask(sgd_app(gradient_defence_mod("clip:max_norm=0.1")))
    before, after = arrays_of(plain), arrays_of(defended)
    assert list(before) == list(after)
    assert {n: (v.shape, v.dtype) for n, v in before.items()} == {n: (v.shape, v.dtype) for n, v in after.items()}
    moved = [after[name] - SENT[name] for name in ("body.weight", "body.bias")]
    assert math.sqrt(sum(float((m**2).sum()) for m in moved)) == pytest.approx(0.1, rel=1e-5)
    for name in ("norm.running_mean", "norm.num_batches_tracked"):
        assert np.array_equal(after[name], before[name])
    assert dict(defended.content.metric_records["metrics"]) == {"num-examples": 7}


def test_gradients_are_defended_as_they_are():
    (reply,) = ask(sgd_app(gradient_defence_mod("prune:share=0.5", kind="gradient")))
    (plain,) = ask(sgd_app())
    out, before = arrays_of(reply), arrays_of(plain)
    assert int((out["body.weight"] == 0).sum()) >= 30
    kept = out["body.weight"] != 0
    assert np.array_equal(out["body.weight"][kept], before["body.weight"][kept])


def test_a_seed_repeats_and_every_client_and_round_has_its_own_noise():
    app = sgd_app(gradient_defence_mod("noise:std=1", seed=4))

    def noise(round_, node):
        reply = ask(app, config={"server-round": round_}, nodes=2)[node]
        return arrays_of(reply)["body.weight"] - SENT["body.weight"] + 0.5

    drawn = {key: noise(*key) for key in [(1, 0), (1, 1), (2, 0)]}
    assert np.array_equal(noise(1, 0), drawn[1, 0])
    assert not np.allclose(drawn[1, 0], drawn[1, 1])
    assert not np.allclose(drawn[1, 0], drawn[2, 0])
    chain, generator = gradient_defence("noise:std=1"), perturbation_generator(4, "0", "1")
    expected = chain({"w": torch.full((3, 20), 0.0)}, generator=generator)["w"]
    np.testing.assert_allclose(drawn[1, 0], expected.numpy(), atol=1e-5)
    (failed,) = ask(app)
    assert "would repeat its noise" in failed.error.reason


def test_without_a_seed_the_noise_is_new_every_time():
    app = sgd_app(gradient_defence_mod("laplace:std=1"))
    first, second = (arrays_of(ask(app)[0])["body.weight"] for _ in "ab")
    assert not np.allclose(first, second)


def test_named_buffers_are_left_alone():
    (reply,) = ask(sgd_app(gradient_defence_mod("noise:std=1", buffers=["body.weight"])))
    out = arrays_of(reply)
    np.testing.assert_allclose(out["body.weight"], SENT["body.weight"] - np.float32(0.5))
    assert not np.allclose(out["norm.running_mean"], 0.5)
    assert out["norm.num_batches_tracked"].dtype == SENT["norm.num_batches_tracked"].dtype


def test_evaluation_and_errors_pass():
    app = sgd_app(gradient_defence_mod("noise:std=1"))
    (reply,) = ask(app, kind="evaluate")
    assert dict(reply.content.metric_records["metrics"]) == {"loss": 1.0}

    def out_of_order(message):
        from flwr.app import Error

        return Message(Error(code=0, reason="out of order"), reply_to=message)

    (reply,) = ask(sgd_app(gradient_defence_mod("noise:std=1"), reply=out_of_order))
    assert reply.error.reason == "out of order"


def test_replies_that_cannot_be_defended_are_errors_not_sent_undefended():
    (reply,) = ask(sgd_app(gradient_defence_mod("noise:std=1"), arrays=2))
    assert "expected one ArrayRecord in the reply, got 2" in reply.error.reason
    (reply,) = ask(sgd_app(gradient_defence_mod("noise:std=1")), sent={"other": np.zeros(2, dtype=np.float32)})
    assert 'say kind="gradient"' in reply.error.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spec": "none"}, "defence of the model.*fl_precode.extend"),
        ({"spec": "precode+noise:std=1e+0"}, "defence of the model, at least in part"),
        ({"spec": "soteria"}, "looks at the model and the images.*gradient_defence"),
        ({"spec": "dp:max_norm=1,noise_multiplier=1"}, "looks at the model and the images"),
        ({"spec": "noise"}, "needs std"),
        ({"spec": "sign", "kind": "updates"}, "'weights' or 'gradient', got 'updates'"),
    ],
)
def test_bad_arguments_are_refused_when_the_app_is_written(arguments, message):
    with pytest.raises(ValueError, match=message):
        gradient_defence_mod(**arguments)
