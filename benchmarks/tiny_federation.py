"""A federation that needs nothing but flwr, torch and fl_precode, for every flwr that the plug-in is to work with.

``python tiny_federation.py FOLDER`` runs FedAvg with two clients in one process, once watched by the Interceptor and
once by the ListeningGrid with a client mod, and prints what it saw as JSON. The clients' images are parts of one
photograph; ``FOLDER/truth.npy`` has them, and the clients record them with `record_truth`.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import uuid
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from skimage.data import camera
from torch import Tensor, nn

from fl_precode.flower import Interceptor, ListeningGrid, gradient_defence_mod, record_truth
from fl_precode.tape import Tape

CLIENTS, ROUNDS, RATE = 2, 2, 0.1
FACTS: dict[str, Any] = {
    "model": "tiny_federation:Net",
    "inputs": "1x16x16",
    "classes": 4,
    "run_config": {"lr": RATE, "local-epochs": 1, "batch-size": 1},
}


class Net(nn.Module):
    """A small MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(256, 24), nn.Linear(24, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 4) of images (n, 1, 16, 16)."""
        logits: Tensor = self.head(self.hidden(images.flatten(1)).relu())
        return logits


def images() -> Tensor:
    """One image of each client, (clients, 1, 16, 16) in [0, 1]."""
    photograph = torch.tensor(camera()[128:256:8, 64:320:8] / 255.0, dtype=torch.float32)
    return torch.stack([photograph[:, :16], photograph[:, 16:]])[:, None]


def train(message: Message, context: Context) -> Message:
    """One step of SGD on the client's image."""
    model, client = Net(), int(context.node_config["partition-id"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    own, label = images()[client : client + 1], torch.tensor([client])
    record_truth(own, label)
    nn.functional.cross_entropy(model(own), label).backward()
    optimiser.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


class OneProcess(Grid):
    """Delivers each message at once to the client app."""

    run = property(lambda self: None)

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """There is one run only."""

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, *_: Any, **__: Any) -> Message:
        """A message as the strategies make it."""
        return Message(content, dst_node_id, message_type)

    def get_node_ids(self) -> Iterable[int]:
        """Numbers of the clients' nodes."""
        return [1000 + client for client in range(CLIENTS)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients answer."""
        return [self._answer(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers."""
        return [self._replies.pop(one) for one in list(message_ids) if one in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Both."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = identity = str(uuid.uuid4())
        context = Context(1, node, {"partition-id": node - 1000, "num-partitions": CLIENTS}, RecordDict(), {})
        reply = self._app(copy.deepcopy(message), context)
        reply.metadata.__dict__["_src_node_id"] = node
        reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        self._replies[identity] = reply
        return identity


def inside_a_task() -> None:
    """From 1.38 on, flwr builds messages only inside a task of its own."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return
    TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1


def main(folder: Path) -> None:
    """Run both federations; their tapes are below the folder."""
    inside_a_task()
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "truth.npy", images().numpy())
    plain, defended = ClientApp(), ClientApp()
    plain.train()(train)
    defended.train(mods=[gradient_defence_mod("clip:max_norm=1")])(train)
    start = ArrayRecord(Net().state_dict())
    os.environ["FL_PRECODE_TRUTH"] = str(folder / "tape.truth")
    watched = Interceptor(FedAvg(fraction_evaluate=0.0), folder / "tape", **FACTS)
    watched.start(OneProcess(plain), start, num_rounds=ROUNDS)
    os.environ["FL_PRECODE_TRUTH"] = str(folder / "wire.truth")
    grid = ListeningGrid(OneProcess(defended), folder / "wire", **FACTS)
    FedAvg(fraction_evaluate=0.0).start(grid, start, num_rounds=ROUNDS)
    seen = {
        "python": platform.python_version(),
        "flwr": version("flwr"),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "updates_by_interceptor": len(Tape(folder / "tape").observations()),
        "updates_by_grid_with_mod": len(Tape(folder / "wire").observations()),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
