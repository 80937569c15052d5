"""The server: a strategy of flwr.server in ServerAppComponents."""

import os

import torch
from flwr.app import Context
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg

from fl_precode.flower import listening
from legacy_digits.task import Net, get_weights


class CustomFedAvg(FedAvg):
    """Keeps what it was told, as tutorials do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.rounds = []

    def aggregate_fit(self, server_round, results, failures):
        """Aggregate, and keep the round's number."""
        self.rounds.append(server_round)
        return super().aggregate_fit(server_round, results, failures)


def server_fn(context: Context):
    """Build the server's parts."""
    torch.manual_seed(0)
    strategy = CustomFedAvg(
        fraction_evaluate=0.0,
        initial_parameters=ndarrays_to_parameters(get_weights(Net())),
        on_fit_config_fn=lambda server_round: {"lr": 0.05 if server_round > 1 else 0.1},
    )
    return ServerAppComponents(
        strategy=strategy, config=ServerConfig(num_rounds=context.run_config["num-server-rounds"])
    )


app = listening(ServerApp(server_fn=server_fn), os.environ["TAPE"])
