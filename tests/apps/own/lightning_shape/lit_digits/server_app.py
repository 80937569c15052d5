"""The server."""

import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_precode.flower.interceptor import Interceptor
from lit_digits.task import LitClassifier

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context):
    """Run the federation."""
    torch.manual_seed(0)
    strategy = Interceptor(FedAvg(fraction_evaluate=0.0), context.run_config["tape"])
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(LitClassifier().state_dict()),
        num_rounds=context.run_config["num-server-rounds"],
    )
