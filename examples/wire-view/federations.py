"""The same federation with four kinds of privacy, heard at the grid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    Strategy,
)
from flwr.simulation import run_simulation
from photographs import CLIENTS, LEARNING_RATE, Net, train
from torch import Tensor

from fl_precode.flower.wire import ListeningGrid

# Ray's workers import this folder's modules.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

SETTINGS = ("no privacy", "server-side DP", "client-side clipping", "local DP")
CLIPPING = 0.05
MODS = {
    "client-side clipping": fixedclipping_mod,
    "local DP": LocalDpMod(clipping_norm=CLIPPING, sensitivity=CLIPPING, epsilon=10.0, delta=1e-5),
}
RUN_CONFIG = {"learning-rate": LEARNING_RATE, "local-epochs": 1, "batch-size": 1}


def mod_of_setting(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The client's mod, chosen by the message, so that one app serves all settings."""
    mod = MODS.get(str(message.content["config"]["setting"]))
    return call_next(message, context) if mod is None else mod(message, context, call_next)


client_app = ClientApp()


@client_app.train(mods=[mod_of_setting])
def train_and_reply(message: Message, context: Context) -> Message:
    """Train and send the weights."""
    model = Net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    train(model, int(context.node_config["partition-id"]))
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


def _strategy(setting: str) -> Strategy:
    plain = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    if setting == "server-side DP":
        return DifferentialPrivacyServerSideFixedClipping(plain, 1.0, CLIPPING, CLIENTS)
    if setting == "client-side clipping":
        return DifferentialPrivacyClientSideFixedClipping(plain, 1.0, CLIPPING, CLIENTS)
    return plain


def run_settings(tapes: Path) -> None:
    """One round with a strategy of Flower's message API for each setting, each on a tape of its own."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        for setting in SETTINGS:
            torch.manual_seed(0)
            listening = ListeningGrid(grid, tapes / setting, inputs="3x32x32", classes=CLIENTS, run_config=RUN_CONFIG)
            initial, config = ArrayRecord(Net().state_dict()), ConfigRecord({"setting": setting})
            _strategy(setting).start(listening, initial, num_rounds=1, train_config=config)

    _simulate(server_app, client_app)


class SecureClient(NumPyClient):
    """The same client for SecAgg+, which Flower has for its older API only."""

    def __init__(self, client: int) -> None:
        self.client = client

    def fit(self, parameters: list[np.ndarray], config: dict[str, object]) -> tuple[list[np.ndarray], int, dict]:
        """Train and return the weights; the mod masks them."""
        model = Net()
        model.load_state_dict(dict(zip(model.state_dict(), map(torch.tensor, parameters), strict=True)))
        train(model, self.client)
        return [value.numpy() for value in model.state_dict().values()], 1, {}


def run_secure_aggregation(tape: Path) -> tuple[list[Tensor], list[Tensor]]:
    """One round of SecAgg+; returns the weights before and after, which are all that the server learns."""
    secure_app = ClientApp(
        client_fn=lambda context: SecureClient(int(context.node_config["partition-id"])).to_client(),
        mods=[secaggplus_mod],
    )
    server_app = ServerApp()
    weights: list[list[Tensor]] = []

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        strategy = LegacyFedAvg(
            initial_parameters=ndarrays_to_parameters([value.numpy() for value in Net().state_dict().values()]),
            fraction_evaluate=0.0,
            min_fit_clients=CLIENTS,
            min_available_clients=CLIENTS,
            evaluate_fn=lambda number, arrays, config: weights.append(
                [torch.tensor(one, dtype=torch.float32) for one in arrays]
            ),
        )
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
        # max_weight: the most examples of a client. At its default, 1000, an update of one image drowns in rounding.
        secure = SecAggPlusWorkflow(num_shares=CLIENTS, reconstruction_threshold=CLIENTS - 1, max_weight=1.0)
        DefaultWorkflow(fit_workflow=secure)(ListeningGrid(grid, tape), legacy)

    _simulate(server_app, secure_app)
    return weights[0], weights[-1]


def _simulate(server_app: ServerApp, app: ClientApp) -> None:
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2, "log_to_driver": False}}
    run_simulation(server_app, app, num_supernodes=CLIENTS, backend_config=resources)
