"""One image of a vision transformer from one update, at the size that is deployed: how close, how fast.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.transformers --out FILE --page docs/results/transformers.md

Photographs of scikit-image and scikit-learn, cut square and scaled to 224x224, grey ones three times; a volume of
96 slices is a window of 96x96 that moves across one of them. One gradient of one image each, float32, labels recovered.
The heads are drawn with a standard deviation of .02: torchvision starts them at zero, and no gradient would pass.
``--trained N`` trains each model first: N steps of SGD (.01, momentum .9) on four of the same images at a time, shifted
and mirrored, so that it knows those that are attacked. CPU seconds are those of planning (does the attack fit?) and of
the attack, of this process. What stands in the file under the same settings is not measured again.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import skimage.data
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import vit_b_16, vit_b_32

from attacker.simulate import observe, observe_training
from benchmarks.page_tables import write_between
from fl_precode import Observation, Protocol, Victim
from fl_precode.attacks import build_attack
from fl_precode.metrics import psnr
from fl_precode.models.input_spec import InputSpec

logger = logging.getLogger("transformers")

IMAGENET: Final = InputSpec(
    channels=3, height=224, width=224, classes=1000, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
VOLUMES: Final = InputSpec(channels=96, height=96, width=96, classes=10, mean=(0.5,) * 96, std=(0.25,) * 96)
PHOTOGRAPHS: Final = (
    "astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry", "camera",
    "coins", "moon", "brick", "gravel", "page", "cell",
)  # fmt: skip
SAMPLES: Final = ("china.jpg", "flower.jpg")
ATTACK: Final = "patch-embedding"


class Plain(nn.Module):
    """A transformer in timm's shape: class token, positions, pre-norm blocks; or MONAI's, on volumes without a token.

    Args:
        width: Width of a token.
        heads: Heads of attention.
        volumes: Whether channels are slices, and patches 16 x 16 x 16.
        classes: Classes of the head.
    """

    def __init__(self, *, width: int, heads: int, volumes: bool, classes: int) -> None:
        super().__init__()
        self.volumes = volumes
        patches = 6**3 if volumes else 14**2
        self.patch_embed = nn.Conv3d(1, width, 16, 16) if volumes else nn.Conv2d(3, width, 16, 16)
        self.cls_token = None if volumes else nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, patches + (not volumes), width))
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True, layer_norm_eps=1e-6
        )
        self.blocks = nn.TransformerEncoder(block, 12, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (batch, classes)."""
        x = self.patch_embed(x.unsqueeze(1) if self.volumes else x).flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.pos_embed))
        return self.head(x.mean(dim=1) if self.cls_token is None else x[:, 0])


MODELS: Final[dict[str, tuple[Callable[[], nn.Module], InputSpec]]] = {
    "vit_b_32": (vit_b_32, IMAGENET),
    "vit_b_16": (vit_b_16, IMAGENET),
    "vit_small_16": (lambda: Plain(width=384, heads=6, volumes=False, classes=1000), IMAGENET),
    "vit_tiny_16": (lambda: Plain(width=192, heads=3, volumes=False, classes=1000), IMAGENET),
    "vit_3d": (lambda: Plain(width=768, heads=12, volumes=True, classes=10), VOLUMES),
}
"""torchvision's, timm's ViT-S/16 and ViT-Ti/16 in shape, and MONAI's on volumes of 96 x 96 x 96."""


def photographs(count: int) -> Iterator[Tensor]:
    """Colour photographs (3, 224, 224) in [0, 1]."""
    loaders = [getattr(skimage.data, name) for name in PHOTOGRAPHS]
    loaders += [lambda name=name: load_sample_image(name) for name in SAMPLES]
    for load in loaders[:count]:
        pixels = np.asarray(load())
        image = torch.from_numpy(pixels.copy()).float() / 255
        image = image.expand(3, *image.shape) if image.dim() == 2 else image[..., :3].permute(2, 0, 1)
        side = min(image.shape[1:])
        top, left = ((length - side) // 2 for length in image.shape[1:])
        square = image[None, :, top : top + side, left : left + side]
        yield F.interpolate(square, size=(224, 224), mode="bicubic", antialias=True)[0].clamp(0, 1)


def inputs_of(inputs: InputSpec, count: int) -> Tensor:
    """(count, ...) in [0, 1], photographs or volumes."""
    images = list(photographs(count))
    if inputs is IMAGENET:
        return torch.stack(images)
    grey = torch.stack(images).mean(1)
    return torch.stack([grey[:, step : step + 96, step + 16 : step + 112] for step in range(96)], dim=1)


def victim_of(name: str, seed: int) -> Victim:
    """An untrained model whose head lets gradients pass."""
    build, inputs = MODELS[name]
    torch.manual_seed(seed)
    model = build()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=0.02)
    return Victim(model=model, inputs=inputs, name=name)


def train(victim: Victim, steps: int, options: argparse.Namespace) -> None:
    """Train the model in place on images that are shifted and mirrored at random."""
    if not steps:
        return
    images, random = inputs_of(victim.inputs, options.images), torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.SGD(victim.model.parameters(), lr=0.01, momentum=0.9)
    began = time.process_time()
    for step in range(steps):
        chosen = torch.randperm(len(images), generator=random)[:4]
        down, right, mirrored = torch.randint(0, victim.inputs.height, (3,), generator=random).tolist()
        x = images[chosen].roll((down, right), (-2, -1))
        x = x.flip(-1) if mirrored % 2 else x
        loss = victim.training_loss(victim.inputs.normalise(x), chosen % victim.inputs.classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 9 or step == steps - 1:
            logger.info("step %d: loss %.3f, %.0f CPU s", step + 1, float(loss), time.process_time() - began)


def updates(victim: Victim, x: Tensor, label: int, steps: int) -> Observation:
    """What a client with one image sends: a gradient, or the change of its weights after some steps on it."""
    labels = torch.tensor([label])
    if steps == 0:
        return observe(victim, x, labels, batch_size=1)[0]
    protocol = Protocol(name="fedavg", local_steps=steps, learning_rate=0.01, momentum=0.9)
    return observe_training(victim, [(x, labels)] * steps, batch_size=1, protocol=protocol)


def changed(observation: Observation, change: str) -> Observation:
    """The update rounded to 16 bits (``float16``, ``bfloat16``), or with noise (``noise=SHARE`` of a tensor's size)."""
    noise = torch.Generator().manual_seed(0)

    def of(value: Tensor) -> Tensor:
        if change.startswith("noise="):
            drawn = torch.randn(value.shape, generator=noise)
            return value + float(change.removeprefix("noise=")) * value.square().mean().sqrt() * drawn
        if change == "float16":  # as mixed precision does, by a scale that keeps small numbers
            scale = 1024 / value.abs().max().clamp(min=1e-30)
            return (value * scale).half().float() / scale
        return value.to(getattr(torch, change)).float()

    return replace(observation, update={name: of(value) for name, value in observation.update.items()})


def attacked(victim: Victim, observation: Observation, image: Tensor, label: int) -> dict[str, Any]:
    """One image: PSNR, seconds, what the attack says."""
    attack = build_attack(ATTACK)
    began = time.process_time()
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {
        "cpu_seconds": round(time.process_time() - began, 2), "outcome": found.outcome.value, "reason": found.reason
    }  # fmt: skip
    if found.inputs is not None:
        restored = victim.inputs.clamp(found.inputs)
        row["psnr"] = round(float(psnr(victim.inputs.denormalise(restored), image[None])), 1)
        row["label"] = found.labels is not None and found.labels.tolist() == [label]
    return row


def rows_of(name: str, wanted: list[tuple[int, str]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """What the attack makes of one model's updates, a row for each number of steps and change."""
    victim = victim_of(name, options.seed)
    train(victim, options.trained, options)
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {one: [] for one in wanted}
    for number, image in enumerate(inputs_of(victim.inputs, options.images)):
        label, x = number % victim.inputs.classes, victim.inputs.normalise(image)[None]
        for steps in dict.fromkeys(steps for steps, _ in wanted):
            seen = updates(victim, x, label, steps)
            for change in [change for other, change in wanted if other == steps]:
                sent = seen if change == "none" else changed(seen, change)
                rows[steps, change].append(attacked(victim, sent, image, label))
                logger.info("%s, %d steps, %s: %s", name, steps, change, rows[steps, change][-1])
    told = {"trained": options.trained} if options.trained else {}
    return [
        {"model": name, **told, "steps": steps, "change": change, "each": each}
        for (steps, change), each in rows.items()
    ]


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is not in the file yet; the record, which is written after each model."""
    settings = {"images": options.images, "seed": options.seed, "torch": torch.__version__}
    record: dict[str, Any] = {"measured": time.strftime("%Y-%m-%d"), "settings": settings, "rows": []}
    if options.out.exists():
        earlier = json.loads(options.out.read_text(encoding="utf-8"))
        record = earlier if earlier["settings"] == settings else record
    done = {(row["model"], row.get("trained", 0), row["steps"], row["change"]) for row in record["rows"]}
    for name in options.models:
        wanted = [(steps, change) for steps in options.steps for change in options.changes]
        wanted = [one for one in wanted if (name, options.trained, *one) not in done]
        if not wanted:
            continue
        record["rows"] += rows_of(name, wanted, options)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def table(record: dict[str, Any]) -> str:
    """The table of docs/results/transformers.md."""
    lines = [
        f"Measured on {record['measured']} with PyTorch {record['settings']['torch']}, {record['settings']['images']} "
        "images each.\n",
        "| model | update | PSNR median (min to max), dB | converged | labels right | CPU s, median (max) |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    for row in record["rows"]:
        each = row["each"]
        values = [one["psnr"] for one in each if "psnr" in one]
        seconds = [one["cpu_seconds"] for one in each]
        update = "one gradient" if row["steps"] == 0 else f"{row['steps']} local steps, momentum .9"
        update += "" if row["change"] == "none" else f", {row['change'].replace('=', ' ')}"
        came = f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})" if values else "refused"
        converged = sum(one["outcome"] == "converged" for one in each)
        labels = sum(one.get("label", False) for one in each)
        trained = f", trained {row['trained']} steps" if row.get("trained") else ""
        lines.append(
            f"| `{row['model']}`{trained} | {update} | {came} | {converged} of {len(each)} | {labels} of {len(each)} "
            f"| {statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("transformers.json"), help="JSON file to write, or go on with")
    parser.add_argument("--page", type=Path, help="page whose table is replaced")
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", nargs="+", type=int, default=[0], help="local steps; 0 for one gradient")
    parser.add_argument(
        "--changes", nargs="+", default=["none"], help="none, float16, bfloat16, noise=SHARE of a tensor's size"
    )
    parser.add_argument("--trained", type=int, default=0, help="steps of training before")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    record = measure(options)
    if options.page:
        write_between(options.page, "transformers", table(record))


if __name__ == "__main__":
    main()
