"""The server."""

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl_precode.flower import Interceptor
from several_numbers.task import load_inputs, network

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context):
    """Run the federation."""
    cfg = context.run_config
    inputs = load_inputs(cfg["images"])
    strategy = Interceptor(
        FedAvg(fraction_evaluate=0.0),
        cfg["tape"],
        model="mlp",
        inputs=inputs,
        run_config=cfg,
        loss="several_numbers.task:criterion",
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(network(inputs).state_dict()),
        num_rounds=cfg["num-server-rounds"],
    )
