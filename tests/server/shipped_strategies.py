"""Every strategy that flwr ships for the message API, each with a client that it can work with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Result, Strategy

from tests.local_grid import LocalGrid

NODES = 5
PRIVACY = {"noise_multiplier": 0.2, "num_sampled_clients": NODES}

Wrap = Callable[[Strategy], Strategy]


@dataclass(frozen=True)
class Case:
    """A strategy to compare with itself wrapped.

    ``build`` gets what wraps an inner strategy: nothing, or the interceptor.
    """

    build: Callable[..., Strategy]
    mods: tuple = ()
    trees: bool = False
    mean_of: int = NODES


def plain(kind: Callable[..., Strategy], **options: object) -> Callable[[], Strategy]:
    return lambda: kind(fraction_evaluate=0.0, **options)


def private(kind: Callable[..., Strategy], **options: object) -> Callable[[], Strategy]:
    return lambda: kind(FedAvg(fraction_evaluate=0.0), **PRIVACY, **options)


CASES: dict[str, Case] = {
    "FedAvg": Case(plain(flower.FedAvg)),
    "FedAvgM": Case(plain(flower.FedAvgM, server_momentum=0.9)),
    "FedAdam": Case(plain(flower.FedAdam)),
    "FedAdagrad": Case(plain(flower.FedAdagrad)),
    "FedYogi": Case(plain(flower.FedYogi)),
    "FedProx": Case(plain(flower.FedProx, proximal_mu=0.1)),
    "FedMedian": Case(plain(flower.FedMedian)),
    "FedTrimmedAvg": Case(plain(flower.FedTrimmedAvg)),
    "Krum": Case(plain(flower.Krum, num_malicious_nodes=1)),
    "MultiKrum": Case(plain(flower.MultiKrum, num_malicious_nodes=1, num_nodes_to_select=3)),
    "Bulyan": Case(plain(flower.Bulyan, num_malicious_nodes=0)),
    "QFedAvg": Case(plain(flower.QFedAvg, client_learning_rate=0.1)),
    "DifferentialPrivacyServerSideFixedClipping": Case(
        private(flower.DifferentialPrivacyServerSideFixedClipping, clipping_norm=0.05)
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": Case(
        private(flower.DifferentialPrivacyServerSideAdaptiveClipping)
    ),
    "DifferentialPrivacyClientSideFixedClipping": Case(
        private(flower.DifferentialPrivacyClientSideFixedClipping, clipping_norm=0.5), mods=(fixedclipping_mod,)
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": Case(
        private(flower.DifferentialPrivacyClientSideAdaptiveClipping), mods=(adaptiveclipping_mod,)
    ),
    "FedXgbBagging": Case(plain(flower.FedXgbBagging), trees=True),
    "FedXgbCyclic": Case(plain(flower.FedXgbCyclic), trees=True, mean_of=1),
}


def client(mods: Sequence = ()) -> ClientApp:
    """Changes each weight by noise of its own partition and round."""
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message, context):
        partition, server_round = context.node_config["partition-id"], int(message.content["config"]["server-round"])
        generator = torch.Generator().manual_seed(100 * server_round + partition)
        arrays = {
            name: value + 0.01 * torch.randn(value.shape, generator=generator)
            for name, value in message.content["arrays"].to_torch_state_dict().items()
        }
        metrics = MetricRecord({"num-examples": 10 + partition, "train_loss": 1.0 / (1 + partition)})
        content = {"arrays": ArrayRecord(arrays), "metrics": metrics}
        return Message(RecordDict(content), reply_to=message)

    return app


def trees_client() -> ClientApp:
    """Replies with one tree, in the form in which XGBoost writes a model as JSON."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        arrays = ArrayRecord({"0": Array(booster(trees=1, value=1 + context.node_config["partition-id"]))})
        metrics = MetricRecord({"num-examples": 10})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    return app


def booster(trees: int, value: int = 0) -> np.ndarray:
    model = {
        "gbtree_model_param": {"num_trees": str(trees), "num_parallel_tree": "1"},
        "trees": [{"id": number, "split_conditions": [value / 7]} for number in range(trees)],
        "tree_info": [0] * trees,
        "iteration_indptr": list(range(trees + 1)),
    }
    text = json.dumps({"learner": {"gradient_booster": {"model": model}}})
    return np.frombuffer(text.encode(), dtype=np.uint8)


def run(name: str, wrap: Wrap, *, rounds: int = 3, width: int = 8) -> tuple[list[dict[str, bytes]], Result]:
    """Run a strategy from fixed seeds; the arrays after each round, bit for bit, and Flower's result."""
    case = CASES[name]
    # Flower draws nodes and DP noise from the global generators.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    if case.trees:
        app, arrays = trees_client(), ArrayRecord({"0": Array(booster(trees=1))})
    else:
        model = torch.nn.Sequential(torch.nn.Linear(3 * width, width), torch.nn.ReLU(), torch.nn.Linear(width, 4))
        app, arrays = client(case.mods), ArrayRecord(model.state_dict())
    seen: list[dict[str, bytes]] = []

    def look(server_round: int, current: ArrayRecord) -> MetricRecord:
        seen.append({key: array.numpy().tobytes() for key, array in current.items()})
        return MetricRecord({"round": server_round})

    strategy = wrap(case.build())
    result = strategy.start(
        LocalGrid(app, NODES, {}), arrays, num_rounds=rounds, train_config=ConfigRecord(), evaluate_fn=look
    )
    return seen, result
