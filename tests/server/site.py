"""A site that takes part: one client with a guard, asked by a server that says what it likes of rounds."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_precode.flower import leakage_guard_mod, record_truth
from tests.local_grid import FIRST_NODE, LocalGrid
from tests.server.own_app import LR, SPEC, network, part, train

CONFIG = {"lr": LR, "local-epochs": 1, "batch-size": 1}


def guard(folder: Path, **settings):
    return leakage_guard_mod(folder, **({"model": SPEC, "inputs": "1x8x8", "classes": 10} | settings))


def nothing(images, labels):
    """The line of a client that keeps no true images."""


def site(*mods, line=record_truth, each=1, build=network, config=None, before=None) -> LocalGrid:
    """A client that trains one step; ``before`` gets message and context, and may give the reply."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def one_round(message, context):
        if before is not None and (reply := before(message, context)) is not None:
            return reply
        images, labels = part(0, 1, each)
        model = build()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train(model, images, labels, each, line)
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": each})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate(mods=list(mods))
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"loss": 1.0})}), reply_to=message)

    return LocalGrid(app, 1, CONFIG | {"batch-size": each} | (config or {}))


def failing(message, context):
    """A client that cannot train."""
    return Message(Error(code=7, reason="no disk"), reply_to=message)


def ask(grid, number=None, *, kind="train", build=network):
    """The reply to one message, of a round that is named or not."""
    records = {"arrays": ArrayRecord(build().state_dict())}
    if number is not None:
        records["config"] = ConfigRecord({"server-round": number})
    message = Message(RecordDict(records), dst_node_id=FIRST_NODE, message_type=kind)
    (reply,) = grid.send_and_receive([message])
    return reply


def weights(reply) -> dict[str, bytes]:
    (record,) = reply.content.array_records.values()
    return {name: array.data for name, array in record.items()}
