"""A foreign app with its own model and data, whose clients record their truth by one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fl_precode import extend
from fl_precode.flower.interceptor import Interceptor
from tests.local_grid import LocalGrid

SPEC = "tests.server.own_app:network"
LR = 0.1

Line = Callable[[Tensor, Tensor], None]
"""What the client's author writes: gets a batch as the client trains on it."""


def digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits of scikit-learn, (1797, 1, 8, 8) in [0, 1], and their labels."""
    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32)[:, None], torch.tensor(found.target)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))


def guarded() -> nn.Module:
    """The same model behind our bottleneck."""
    return extend(network(), torch.zeros(1, 1, 8, 8))


def part(number: int, server_round: int, each: int) -> tuple[Tensor, Tensor]:
    """What a client trains on in a round: other images in every round."""
    images, labels = digits()
    first = (number * 50 + server_round * 5) * each
    return images[first : first + each], labels[first : first + each]


def train(model: nn.Module, images: Tensor, labels: Tensor, batch: int, line: Line) -> None:
    steps = torch.optim.SGD(model.parameters(), lr=LR)
    for first in range(0, len(labels), batch):
        x, y = images[first : first + batch], labels[first : first + batch]
        line(x, y)
        steps.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        steps.step()


def client_app(
    line: Line, *, each: int = 1, batch: int = 0, shift: float = 0.0, scale: float = 1.0, build=network, mods=()
) -> ClientApp:
    """A client of the message API that trains on ``(images - shift) / scale``."""
    app = ClientApp()

    @app.train(mods=list(mods))
    def one_round(message: Message, context: Context) -> Message:
        images, labels = part(context.node_config["partition-id"], message.content["config"]["server-round"], each)
        model = build()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        train(model, (images - shift) / scale, labels, batch or each, line)
        content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": each})}
        return Message(RecordDict(content), reply_to=message)

    return app


def run(
    folder: Path,
    app: ClientApp,
    *,
    each: int = 1,
    batch: int = 0,
    rounds: int = 2,
    nodes: int = 3,
    build=network,
    config: dict | None = None,
    canaries: str | None = None,
) -> Path:
    """Three lines in the server app of a federation that is ours in nothing else; returns its tape."""
    settings = {"lr": LR, "local-epochs": 1, "batch-size": batch or each, "tape": str(folder / "tape")}
    settings = settings if config is None else config
    strategy = Interceptor(
        FedAvg(fraction_evaluate=0.0),
        folder / "tape",
        model=SPEC,
        inputs="1x8x8",
        classes=10,
        run_config={"lr": LR, "local-epochs": 1, "batch-size": batch or each},
        canaries=canaries,
    )
    initial = ArrayRecord(build().state_dict())
    strategy.start(LocalGrid(app, nodes, settings), initial, num_rounds=rounds)
    return folder / "tape"


def flat(images: Tensor) -> list[list[float]]:
    """Images as lists of numbers, in an order that does not depend on theirs."""
    return sorted(np.round(image.flatten().numpy(), 4).tolist() for image in images)
