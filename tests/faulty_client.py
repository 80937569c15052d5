"""The reference client with one thing wrong with it, for the clients of chosen partitions."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.app import app as sound_app
from fl_precode.flower.fingerprint import FINGERPRINT_KEY, REPLY_RECORD


def faulty(fault: str, *, partitions: Collection[int]) -> ClientApp:
    """A ClientApp that answers soundly except on the given partitions."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] not in partitions:
            return sound_app(message, context)
        if fault == "raises":
            raise OSError("the scanner is out of order")
        reply = sound_app(message, context)
        return Message(content=spoil(reply.content, fault), reply_to=message)

    return app


def spoil(content: RecordDict, fault: str) -> RecordDict:
    arrays, metrics, told = content["arrays"], content["metrics"], content[REPLY_RECORD]
    values = {name: array.numpy() for name, array in arrays.items()}
    first = next(iter(values))
    if fault == "nan":
        values[first] = np.full_like(values[first], np.nan)
    elif fault == "huge-values":
        values[first] = np.full_like(values[first], 1e30)
    elif fault == "other-type":
        values[first] = values[first].astype(np.float64)
    elif fault == "ten-times-the-size":
        values[first] = np.repeat(values[first], 10, axis=0)
    elif fault == "other-keys":
        values["invented"] = values.pop(first)
    elif fault == "other-shapes":
        values[first] = values[first][..., :1]
    elif fault == "no-metrics":
        metrics = MetricRecord({"train-loss": 1.0})
    elif fault == "foreign-code":
        told = ConfigRecord({**told, FINGERPRINT_KEY: "0" * 64})
    elif fault == "nothing":
        return RecordDict()
    else:
        raise AssertionError(fault)
    return RecordDict(
        {"arrays": ArrayRecord({k: Array(v) for k, v in values.items()}), "metrics": metrics, REPLY_RECORD: told}
    )
