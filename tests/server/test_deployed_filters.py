"""Flower's own mods and wrappers beside ours, on the same messages and the same seeds: every bit of the reply."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from fl_precode.defences import update_filters
from fl_precode.defences.flower_dp import clipped_reply
from fl_precode.flower.mods import gradient_defence_mod
from tests.local_grid import FIRST_NODE, LocalGrid

DTYPES = (np.float32, np.float64, np.float16)
LOCAL = "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5"


def record(seed, *, scale=1.0, counters=()):
    draw = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, 3, 5, 5), "norm.running_mean": (4,), "fc.weight": (10, 37), "scale": (), "none": (0,)}
    arrays = {
        name: np.asarray(scale * draw.standard_normal(shape), dtype=DTYPES[number % 3])
        for number, (name, shape) in enumerate(shapes.items())
    }
    return arrays | {"norm.num_batches_tracked": np.array(5 + seed)} | {name: np.arange(3) for name in counters}


def ask(mod, received, sent, *, config=None):
    """One train message through a mod, to a client that replies ``sent``."""
    app = ClientApp()

    @app.train(mods=[mod])
    def train(message, context):
        arrays = ArrayRecord({name: Array(value) for name, value in sent.items()})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 2})}), reply_to=message)

    grid = LocalGrid(app, 1, {})
    arrays = ArrayRecord({name: Array(value) for name, value in received.items()})
    content = {"arrays": arrays, "config": ConfigRecord(config or {"server-round": 1})}
    message = Message(RecordDict(content), dst_node_id=FIRST_NODE, message_type="train")
    with np.errstate(over="ignore", invalid="ignore"):  # half precision, whose overflow is what some tests are about
        (reply,) = grid.send_and_receive([message])
    return reply


def arrays_of(reply):
    (content,) = reply.content.array_records.values()
    return {name: array.numpy() for name, array in content.items()}


def assert_same_bits(ours, flowers):
    ours, flowers = arrays_of(ours), arrays_of(flowers)
    assert list(ours) == list(flowers)
    for name, value in flowers.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert ours[name].tobytes() == value.tobytes(), name


@pytest.fixture
def same_seed(monkeypatch):
    """Flower's mods draw from NumPy's global generator; ours shall draw from another one with its seed."""

    def seed(number):
        np.random.seed(number)
        monkeypatch.setattr(update_filters, "draws_from", lambda generator: np.random.RandomState(number))

    return seed


@pytest.mark.parametrize("scale", [1e-3, 1.0], ids=["below the clip", "clipped"])
@pytest.mark.parametrize("sensitivity", [1e-4, 1.0, 0.0])
def test_local_dp_is_flowers_mod_bit_for_bit(same_seed, scale, sensitivity):
    for number in range(10):
        received, change = record(number), record(number + 1, scale=scale)
        change["norm.num_batches_tracked"] = np.array(int(scale))  # one step alone is as long as the clip
        sent = {name: np.asarray(received[name] + change[name], dtype=received[name].dtype) for name in received}
        same_seed(number)
        flowers = ask(LocalDpMod(1.0, sensitivity, 10.0, 1e-5), received, sent)
        ours = ask(gradient_defence_mod(LOCAL.replace("1e-4", str(sensitivity))), received, sent)
        assert_same_bits(ours, flowers)
    if sensitivity:
        assert arrays_of(ours)["fc.weight"].tobytes() != sent["fc.weight"].tobytes()
    # A counter of no dimension counts in the norm, and is neither scaled nor noisy.
    assert arrays_of(ours)["norm.num_batches_tracked"] == sent["norm.num_batches_tracked"]


def test_integer_counters_in_a_clipped_update_fail_as_flowers_mod_does_and_say_why():
    received, sent = record(0, counters=["seen"]), record(1, counters=["seen"])
    flowers, ours = (
        ask(LocalDpMod(1.0, 1e-4, 10.0, 1e-5), received, sent),
        ask(gradient_defence_mod(LOCAL), received, sent),
    )
    assert "Cannot cast ufunc 'multiply' output" in flowers.error.reason
    assert "'seen' holds int64 counters and is to be clipped" in ours.error.reason
    assert "send them as floats" in ours.error.reason


def test_noise_that_overflows_half_precision_is_not_sent():
    received, sent = record(0), record(1, scale=1e-3)
    loud = "local-dp:clip=1,sensitivity=1e6,epsilon=1,delta=1e-5"
    reply = ask(gradient_defence_mod(loud), received, sent)
    assert "does not fit into the float16 of 'fc.weight', whose largest number is 6.55e+04" in reply.error.reason
    assert not np.isfinite(arrays_of(ask(LocalDpMod(1.0, 1e6, 1.0, 1e-5), received, sent))["fc.weight"]).all()


def test_clipping_at_the_client_is_flowers_bit_for_bit():
    for number, scale in [(0, 1e-3), (1, 1.0), (2, 30.0)]:
        received, sent = record(number), record(number + 1, scale=scale)
        told = {"clipping_norm": 0.7, "server-round": 1}
        flowers = ask(fixedclipping_mod, received, sent, config=told)
        assert_same_bits(ask(gradient_defence_mod("central-dp:clip=0.7"), received, sent), flowers)
        # The server's clip goes first.
        assert_same_bits(ask(gradient_defence_mod("central-dp:clip=9"), received, sent, config=told), flowers)


def test_adaptive_clipping_is_flowers_bit_for_bit_with_its_norm_bit():
    mod = gradient_defence_mod("central-dp:clip=0.1,quantile=0.5")
    bits = set()
    for number, clip in enumerate((1e-3, 0.7, 1e6)):
        received, sent = record(number), record(number + 1)
        replies = [ask(one, received, sent, config={"clipping_norm": clip}) for one in (mod, adaptiveclipping_mod)]
        assert_same_bits(*replies)
        ours, flowers = (dict(reply.content.metric_records["metrics"]) for reply in replies)
        assert ours == flowers
        bits.add(ours["norm_bit"])
    assert bits == {0, 1}
    assert "wrap the strategy in DifferentialPrivacyClientSideAdaptive" in ask(mod, received, sent).error.reason


@pytest.mark.parametrize(
    "wrapper", [DifferentialPrivacyServerSideFixedClipping, DifferentialPrivacyServerSideAdaptiveClipping]
)
def test_clipping_at_the_server_holds_the_whole_update_and_then_flowers_own(wrapper):
    received, sent = record(0), record(1)
    reply = ask(gradient_defence_mod("central-dp:clip=0.7,side=server"), received, sent)
    assert_same_bits(reply, ask(lambda message, context, call_next: call_next(message, context), received, sent))
    named = {"noise_multiplier": 0.0, "num_sampled_clients": 1}
    named |= (
        {"clipping_norm": 0.7}
        if wrapper is DifferentialPrivacyServerSideFixedClipping
        else {"initial_clipping_norm": 0.7}
    )
    strategy = wrapper(FedAvg(), **named)
    strategy.current_arrays = ArrayRecord({name: Array(value) for name, value in received.items()})
    strategy.aggregate_train(1, [reply])
    expected, clipped = clipped_reply(received, sent, 0.7)
    assert clipped
    assert {n: v.tobytes() for n, v in arrays_of(reply).items()} == {n: v.tobytes() for n, v in expected.items()}
