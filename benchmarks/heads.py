"""What the gradient of a head behind a frozen trunk tells: features, which images, and how they look.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/heads.py --cache outputs/weights --out heads.json

Trunks are trained on CIFAR-10 (JPEG copy), then frozen; a fresh Linear head of 100 classes is trained on batches that
follow each other in CIFAR-100 (lossless). Identified: of all images of CIFAR-100 that are at hand, the one whose
features are nearest to those found is the true one. CPU seconds of this process, float32 gradients.

Rows that are in --out already are not measured again, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import command_line
from attacker.analytic.heads.stacked_head import why_not_read
from attacker.analytic.heads.trained_head import TrainedHead, trained_head
from attacker.attacks.closed_form.feature_inversion import head_features
from attacker.gradients.trace import trace
from attacker.reasons import Reason
from fl_precode import Observation, Protocol, Victim
from fl_precode.attacks import build_attack
from fl_precode.metrics import match_batch, psnr, ssim
from fl_precode.models.input_spec import InputSpec
from page_tables import write_between
from training import cifar10, trained

logger = logging.getLogger("heads")

CIFAR100 = Path(__file__).resolve().parents[1] / "../shared/data/cifar100/cifar100_lossless_subset.npz"
INPUTS = InputSpec(
    channels=3, height=32, width=32, classes=100, mean=(0.50708, 0.48655, 0.44092), std=(0.26733, 0.25644, 0.27615)
)
RECOVERED = 0.6
SAME = 1e-2
"""Relative distance below which features count as those of an image."""


class SmallViT(nn.Module):
    """A vision transformer for 32x32 pixels: patches of 4, class token, learned positions, pre-norm blocks."""

    def __init__(self, inputs: InputSpec, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(inputs.channels, width, 4, stride=4)
        tokens = (inputs.height // 4) * (inputs.width // 4) + 1
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, inputs.classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], dim=1) + self.positions
        scores: Tensor = self.head(self.norm(self.blocks(tokens))[:, 0])
        return scores


def small_vit(inputs: InputSpec, width: int = 96, depth: int = 3) -> nn.Module:
    """A factory, as model specs name it."""
    return SmallViT(inputs, width, depth)


def cifar100() -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32) in [0, 1] and labels, the official order."""
    with np.load(CIFAR100) as arrays:
        pixels, labels = arrays["train_images"], arrays["train_labels"]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()


def with_new_head(model: nn.Module, seed: int) -> nn.Module:
    """A frozen copy with a fresh head of 100 classes in place of its last Linear layer."""
    model = deepcopy(model).requires_grad_(False)
    name, old = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    torch.manual_seed(seed)
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Linear(old.in_features, INPUTS.classes))
    return model


def seen_of(model: nn.Module, x: Tensor, y: Tensor) -> Observation:
    """The head's gradient, all else frozen."""
    own = {name: value for name, value in model.named_parameters() if value.requires_grad}
    loss = nn.functional.cross_entropy(model(x), y)
    update = dict(zip(own, torch.autograd.grad(loss, list(own.values())), strict=True))
    state = {name: value.detach() for name, value in (*model.named_parameters(), *model.named_buffers())}
    return Observation(
        parameters={name: state[name] for name in own},
        buffers={name: value for name, value in state.items() if name not in own},
        update=update,
        kind="gradient",
        batch_size=len(x),
        protocol=Protocol(name="fedsgd", batch_norm="buffers"),
        round=1,
        node="1",
        frozen=frozenset(name for name, _ in model.named_parameters() if name not in own),
    )


def features(model: nn.Module, head: TrainedHead, x: Tensor) -> Tensor:
    """What enters the head, (n, features)."""
    caught: list[Tensor] = []
    handle = model.get_submodule(head.name).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    with torch.no_grad():
        for part in x.split(256):
            model(part)
    handle.remove()
    return torch.cat(caught).double()


def attacked(model: nn.Module, x: Tensor, y: Tensor, images: Tensor, pool: Tensor, spec: str) -> dict[str, Any]:
    """One batch, whose images are the first of the pool but for an offset that nobody tells the attack."""
    victim, observation = Victim(model=model, inputs=INPUTS), seen_of(model, x, y)
    head = trained_head(victim, trace(victim), any_trunk=True)
    assert not isinstance(head, Reason), head
    if (refused := why_not_read(victim, head, observation)) is not None:
        return {"reason": refused}
    began = time.process_time()
    found = head_features(victim, head, observation, None, torch.Generator().manual_seed(0), starts=12)
    seconds = time.process_time() - began
    if isinstance(found, Reason):
        return {"reason": found}
    truth = features(model, head, x)
    error = torch.cdist(truth, found.features).min(dim=1).values / truth.norm(dim=1)
    nearest = torch.cdist(found.features, features(model, head, INPUTS.normalise(pool))).argmin(dim=1)
    true_places = {index for index in range(len(pool)) if (pool[index] == images).flatten(1).all(dim=1).any()}
    row = {
        "residual": found.residual,
        "labels": sorted(found.labels.tolist()) == sorted(y.tolist()) if found.labels is not None else False,
        "features": int((error < SAME).sum()),
        "determined": found.determined,
        "feature_error": float(error.median()),
        "identified": len(true_places & set(nearest.tolist())),
        "feature_seconds": round(seconds, 2),
    }
    return row | searched(victim, observation, images, spec)


def searched(victim: Victim, observation: Observation, images: Tensor, spec: str) -> dict[str, Any]:
    """The images that an attack finds."""
    began = time.process_time()
    (result,) = build_attack(spec)(victim, [observation], generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {"seconds": round(time.process_time() - began, 1), "reason": result.reason}
    if result.inputs is None:
        return row
    restored = INPUTS.denormalise(result.inputs).clamp(0, 1)
    restored = restored[match_batch(restored, images)]
    alike = ssim(restored, images)
    return row | {
        "recovered": int((alike >= RECOVERED).sum()),
        "ssim": round(float(alike.median()), 3),
        "psnr": round(float(psnr(restored, images).median()), 1),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not there yet; the record that is written, after each row."""
    pool, labels = cifar100()
    data = cifar10(train=options.train, test=1000)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"rows": []}
    rows = known["rows"]
    done = {json.dumps(row["case"]) for row in rows}
    record: dict[str, Any] = {}
    for spec in options.models:
        for steps in options.steps:
            model: nn.Module | None = None
            for size, batches in zip(options.sizes, options.batches, strict=True):
                for number in range(batches):
                    case = {"model": spec, "steps": steps, "batch": size, "number": number, "attack": options.attack}
                    if json.dumps(case) in done:
                        continue
                    if model is None:
                        made = trained(spec, data, steps=steps, seed=options.seed, cache=options.cache)
                        model = with_new_head(made.model, options.seed).eval()
                    chosen = slice(100 + size * number, 100 + size * (number + 1))
                    images, y = pool[chosen], labels[chosen]
                    row = attacked(model, INPUTS.normalise(images), y, images, pool, options.attack)
                    rows.append({"case": case, "accuracy": made.accuracy, **row})
                    logger.info("%s", rows[-1])
                    record = {
                        "measured": date.today().isoformat(),
                        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared",
                        "settings": {**settings, "torch": torch.__version__},
                        "rows": rows,
                        "summary": summary(rows),
                    }
                    command_line.write_record(record, options)
    return record or known


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each model, training and size."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        case = row["case"]
        groups.setdefault((case["model"], case["steps"], case["batch"]), []).append(row)
    lines = []
    for (model, steps, batch), same in groups.items():
        line: dict[str, Any] = {"model": model, "steps": steps, "batch": batch, "images": batch * len(same)}
        for name in ("features", "determined", "identified", "recovered"):
            line[name] = sum(row.get(name, 0) for row in same)
        for name in ("feature_error", "ssim", "psnr", "feature_seconds", "seconds"):
            values = [row[name] for row in same if name in row]
            line[name] = statistics.median(values) if values else None
        lines.append(line)
    return lines


NAMES = {
    "lenet:activation=relu": "LeNet with ReLU, 768",
    "resnet20": "ResNet20, mean of its maps, 64",
    "heads:small_vit": "small ViT (patch 4), class token, 96",
}


def table(record: dict[str, Any]) -> str:
    """That of docs/results/heads.md."""
    lines = [
        "| trunk, features | steps | batch | images | features | known to be | median error | identified | recovered | "
        "median SSIM | CPU s for features | and images |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in record["summary"]:
        seconds = [line[name] for name in ("feature_seconds", "seconds")]
        spent = ["< .01" if value < 0.01 else f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in seconds]
        cells = [
            NAMES.get(line["model"], line["model"]), line["steps"], line["batch"], line["images"], line["features"],
            line["determined"], f"{line['feature_error']:.0e}", line["identified"], line["recovered"],
            f"{line['ssim']:.2f}", *spent,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    models = ["lenet:activation=relu", "resnet20", "heads:small_vit"]
    parser.add_argument("--models", nargs="+", default=models, help="model specs")
    parser.add_argument("--attack", default="feature-inversion:steps=200", help="attack spec")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8, 32], help="images of a batch")
    parser.add_argument("--batches", nargs="+", type=int, default=[4, 2, 1], help="of each size")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 200], help="of the trunk's training")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--cache", type=Path, help="folder of weights")
    parser.add_argument("--table", type=Path, help="page whose table is replaced")
    options = command_line.parse(parser)
    record = measure(options)
    command_line.write_record(record, options)
    if options.table:
        write_between(options.table, "heads", table(record))


if __name__ == "__main__":
    main()
