"""The clients: one for Flower's messages, with the mod of each setting, and one for SecAgg+."""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable

from wire.task import CLIPPING, Net, train

MODS = {
    "client-side clipping": fixedclipping_mod,
    "local DP": LocalDpMod(clipping_norm=CLIPPING, sensitivity=CLIPPING, epsilon=10.0, delta=1e-5),
}


def _train(model: Net, context: Context) -> None:
    train(model, int(context.node_config["partition-id"]), float(context.run_config["learning-rate"]))


class SecureClient(NumPyClient):
    """The same client for SecAgg+, which Flower has for its older API only."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def fit(self, parameters: list[np.ndarray], config: dict[str, object]) -> tuple[list[np.ndarray], int, dict]:
        """Train and return the weights; the mod masks them."""
        model = Net()
        model.load_state_dict(dict(zip(model.state_dict(), map(torch.tensor, parameters), strict=True)))
        _train(model, self.context)
        return [value.numpy() for value in model.state_dict().values()], 1, {}


secure = ClientApp(client_fn=lambda context: SecureClient(context).to_client(), mods=[secaggplus_mod])


def by_setting(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let the message choose, so that one app serves all settings: one of SecAgg+ names none."""
    if "config" not in message.content:
        return secure(message, context)
    mod = MODS.get(str(message.content["config"]["setting"]))
    return call_next(message, context) if mod is None else mod(message, context, call_next)


app = ClientApp()


@app.train(mods=[by_setting])
def train_and_reply(message: Message, context: Context) -> Message:
    """Train and send the weights."""
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    _train(model, context)
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
