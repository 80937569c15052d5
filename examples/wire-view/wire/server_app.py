"""The server: one round under each of five settings, heard at the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
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

from fl_precode.flower.wire import ListeningGrid
from wire.task import CLIENTS, CLIPPING, SETTINGS, Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run every setting, each on a tape of its own."""
    tapes = Path(str(context.run_config["tapes"]))
    for setting in SETTINGS:
        torch.manual_seed(0)
        listening = ListeningGrid(
            grid, tapes / setting, inputs="3x32x32", classes=CLIENTS, run_config=context.run_config
        )
        initial, config = ArrayRecord(Net().state_dict()), ConfigRecord({"setting": setting})
        _strategy(setting).start(listening, initial, num_rounds=1, train_config=config)
    _aggregate_securely(ListeningGrid(grid, tapes / "secure aggregation"), context, tapes)


def _strategy(setting: str) -> Strategy:
    plain = FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    if setting == "server-side DP":
        return DifferentialPrivacyServerSideFixedClipping(plain, 1.0, CLIPPING, CLIENTS)
    if setting == "client-side clipping":
        return DifferentialPrivacyClientSideFixedClipping(plain, 1.0, CLIPPING, CLIENTS)
    return plain


def _aggregate_securely(grid: Grid, context: Context, folder: Path) -> None:
    """One round of SecAgg+; keeps the weights before and after, which are all that the server learns."""
    torch.manual_seed(0)
    strategy = LegacyFedAvg(
        initial_parameters=ndarrays_to_parameters([value.numpy() for value in Net().state_dict().values()]),
        fraction_evaluate=0.0,
        min_fit_clients=CLIENTS,
        min_available_clients=CLIENTS,
        evaluate_fn=lambda number, arrays, config: np.savez(folder / f"weights-{number}.npz", *arrays),
    )
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
    # max_weight: the most examples of a client. At its default, 1000, an update of one image drowns in rounding.
    secure = SecAggPlusWorkflow(num_shares=CLIENTS, reconstruction_threshold=CLIENTS - 1, max_weight=1.0)
    DefaultWorkflow(fit_workflow=secure)(grid, legacy)
