"""Nine of Flower's own example apps: what each is started with, and where the README's lines go.

Nothing of the apps is here besides the names that the lines stand at; the apps come from a checkout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.apps.added_lines import Added, Moved

Value = str | int | float | bool

TAPE = "@TAPE@"
"""Stands for the tape's path in a line."""


@dataclass(frozen=True, kw_only=True)
class App:
    """One app of the checkout.

    Attributes:
        folder: Below the checkout's ``examples``.
        package: The app's Python package.
        data: Which data set it asks for (`tests.apps.served_files`).
        images: Training images of all clients together, before the app splits them.
        nodes: SuperNodes.
        run_config: Settings that differ from the app's own, so that a run takes a minute.
        lines: What the README adds.
        moved: What flwr itself has moved.
        audit: What is said to ``fl-precode audit`` beside the tape.
        notes: Lines that the audit asks for, for the notes beside the tape.
        training: Such lines below ``[protocol]``.
        budget: Budget of the audit.
        needs: Packages besides ours, Flower's and torch's.
        says: The true sentence of an audit for which no attack exists; empty where attacks run.
    """

    folder: str
    package: str
    data: str
    images: int
    lines: tuple[Added, ...]
    audit: tuple[str, ...]
    nodes: int = 2
    run_config: Mapping[str, Value] = field(default_factory=dict)
    moved: tuple[Moved, ...] = ()
    notes: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    budget: str = "30s"
    needs: tuple[str, ...] = ("datasets", "flwr_datasets")
    says: str = ""

    @property
    def name(self) -> str:
        """The app's name in tables."""
        return self.folder.split("/", 1)[0]


_ONE_SEARCH = ("--attacks", "inverting-gradients:iterations=100")
"""For large networks, on which one iteration takes a second and more."""


def _strategy(package: str, before: str = "result = strategy.start(") -> tuple[Added, ...]:
    """The README's two lines on a server with a strategy."""
    file = f"{package}/server_app.py"
    return (
        Added(file=file, line="from fl_precode.flower.interceptor import Interceptor", before="from flwr.serverapp"),
        Added(file=file, line=f'strategy = Interceptor(strategy, "{TAPE}")', before=before),
    )


def _whole_app(package: str) -> tuple[Added, ...]:
    """Two lines on a server whose strategy is of flwr.server."""
    file = f"{package}/server_app.py"
    return (
        Added(file=file, line="from fl_precode.flower import listening", before="from flwr."),
        Added(file=file, line=f'app = listening(app, "{TAPE}")'),
    )


def _truth(
    package: str, normalised: str = "", *, names: str = "images, labels", before: str = "optimizer.zero_grad()"
) -> tuple[Added, ...]:
    """The two lines on the clients, where they train."""
    file = f"{package}/task.py"
    return (
        Added(file=file, line="from fl_precode.flower import record_truth", before="import torch"),
        Added(file=file, line=f"record_truth({names}{normalised})", before=before),
    )


_HALF = ", mean=0.5, std=0.5"
_CIFAR = ("--input", "3x32x32", "--classes", "10", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
_GREY = ("--input", "1x28x28", "--classes", "10")
_TORCH = ("datasets", "flwr_datasets")

SHELF = (
    App(
        folder="quickstart-pytorch", package="pytorchexample", data="cifar10", images=10,
        run_config={"num-server-rounds": 2},
        lines=_strategy("pytorchexample") + _truth("pytorchexample", _HALF),
        audit=("--model", "pytorchexample.task:Net", *_CIFAR),
    ),
    App(
        folder="custom-mods", package="custom_mods", data="cifar10", images=10,
        run_config={"num-server-rounds": 2},
        lines=_strategy("custom_mods") + _truth("custom_mods", _HALF),
        moved=(Moved(file="custom_mods/mods.py", old="flwr.client.typing", new="flwr.clientapp.typing"),),
        audit=("--model", "custom_mods.task:Net", *_CIFAR), needs=(*_TORCH, "tensorboard", "wandb"),
    ),
    App(
        folder="advanced-pytorch", package="pytorch_example", data="fashion", images=30,
        run_config={"num-server-rounds": 2},
        lines=_strategy("pytorch_example", "# Define directory for results")
        + _truth("pytorch_example", ", mean=0.1307, std=0.3081"),
        moved=(Moved(file="pytorch_example/task.py", old="flwr.common.typing", new="flwr.app.user_config"),),
        audit=("--model", "pytorch_example.task:Net", *_GREY, "--mean", "0.1307", "--std", "0.3081"),
        needs=(*_TORCH, "wandb"),
    ),
    App(
        folder="flower-simulation-step-by-step-pytorch/my-awesome-app", package="my_awesome_app", data="fashion",
        images=30, run_config={"num-server-rounds": 2},
        lines=_whole_app("my_awesome_app") + _truth("my_awesome_app", _HALF),
        audit=("--model", "my_awesome_app.task:Net", *_GREY, "--mean", "0.5", "--std", "0.5"),
        needs=(*_TORCH, "wandb"),
    ),
    App(
        folder="fl-dp-sa", package="fl_dp_sa", data="mnist", images=100, nodes=20,
        lines=_whole_app("fl_dp_sa") + _truth("fl_dp_sa", _HALF),
        audit=("--model", "fl_dp_sa.task:Net", *_GREY, "--mean", "0.5", "--std", "0.5"),
        says="Masked, no update",
    ),
    App(
        folder="opacus", package="opacus_fl", data="cifar10", images=10, run_config={"num-server-rounds": 2},
        lines=_strategy("opacus_fl") + _truth("opacus_fl", _HALF),
        audit=("--model", "opacus_fl.task:Net", *_CIFAR), needs=(*_TORCH, "opacus"),
    ),
    App(
        folder="quickstart-monai", package="monaiexample", data="mednist", images=12,
        run_config={"num-server-rounds": 1},
        lines=_strategy("monaiexample") + _truth("monaiexample"),
        audit=("--model", "monaiexample.task:load_model", "--input", "1x64x64", "--classes", "6", *_ONE_SEARCH),
        # It counts batches, which is seen and asked for.
        notes=('examples = "batches"',), training=("batch-size = 4",), budget="30m",
        needs=(*_TORCH, "monai"),
    ),
    App(
        folder="flowertune-vit", package="vitexample", data="photographs", images=4,
        run_config={"num-server-rounds": 1},
        lines=_strategy("vitexample")
        + _truth("vitexample", ", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"),
        audit=("--model", "vitexample.task:get_model", "--input", "3x224x224", "--classes", "102",
               "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", *_ONE_SEARCH),
        budget="30m",
    ),
    App(
        folder="quickstart-pytorch-lightning", package="pytorchlightning_example", data="mnist", images=20,
        run_config={"num-server-rounds": 2},
        lines=_strategy("pytorchlightning_example")
        + _truth("pytorchlightning_example", names='train_batch["image"], train_batch["label"]',
                 before="z = self.encoder(x)"),
        # The model itself takes flattened images; its training step flattens them.
        audit=("--model", "pytorchlightning_example.task:LitAutoEncoder", "--input", "1x1x784", "--classes", "10"),
        says="not class scores. Its loss is not known",
        needs=(*_TORCH, "pytorch_lightning"),
    ),
)  # fmt: skip
