"""The server."""

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_precode.flower.interceptor import Interceptor
from message_digits.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context):
    """Run the federation."""
    torch.manual_seed(0)
    TAPE = context.run_config["tape"]
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy = Interceptor(strategy, TAPE)
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": context.run_config["learning-rate"]}),
        num_rounds=context.run_config["num-server-rounds"],
    )
