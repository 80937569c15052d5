"""Models with trained weights without a checkpoint: a short, repeatable training, kept in a folder.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/training.py --models resnet20 --steps 100 --cache outputs/weights

Other benchmarks import `trained` and `cifar10`. Images of CIFAR-10 from ../shared/data, whose complete copy is of JPEG
quality 75: fit for training, not to be the truth of an attack.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fl_precode.data.dataset import ImageData, ImageDataset
from fl_precode.defences.registry import apply_defence
from fl_precode.models import InputSpec, build_model
from fl_precode.objective import training_loss
from fl_precode.randomness.seeding import seeded
from server.evaluate import accuracy_and_loss

logger = logging.getLogger("training")

CIFAR10 = Path(__file__).resolve().parents[1] / "../shared/data/cifar10/cifar10_jpeg75_full.npz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
INPUTS = InputSpec(
    channels=3,
    height=32,
    width=32,
    classes=len(CLASSES),
    mean=(0.49147, 0.48226, 0.44677),
    std=(0.24703, 0.24349, 0.26159),
)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model.

    Attributes:
        model: In evaluation mode, on the CPU.
        accuracy: On the test images, in [0, 1].
        seconds_per_step: CPU time of one step, of the training that made the weights.
        cached: Whether the weights were found and not made.
    """

    model: nn.Module
    accuracy: float
    seconds_per_step: float
    cached: bool


def cifar10(*, train: int = 50_000, test: int = 10_000, skip: int = 0) -> ImageData:
    """The first images of CIFAR-10 in the official order.

    Args:
        train: Training images.
        test: Test images.
        skip: Training images left out at the beginning, such as those that an attack is to find.

    Raises:
        FileNotFoundError: If the images are not there.
    """
    if not CIFAR10.exists():
        raise FileNotFoundError(f"expected CIFAR-10 in {CIFAR10}; train on other images: load_data('photos')")
    with np.load(CIFAR10) as arrays:
        parts = [
            ImageDataset(
                _decode(
                    arrays[f"{part}_jpeg"].tobytes(), arrays[f"{part}_offsets"][first : first + count + 1].tolist()
                ),
                torch.from_numpy(arrays[f"{part}_labels"][first : first + count].astype(np.int64)),
                CLASSES,
            )
            for part, first, count in (("train", skip, train), ("test", 0, test))
        ]
    return ImageData(name="cifar10-jpeg75", train=parts[0], test=parts[1], inputs=INPUTS)


def _decode(content: bytes, offsets: list[int]) -> torch.Tensor:
    """(n, 3, 32, 32), uint8."""
    spans = zip(offsets, offsets[1:], strict=False)
    pictures = [np.asarray(Image.open(io.BytesIO(content[start:end]))) for start, end in spans]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def trained(
    model_spec: str,
    data: ImageData,
    *,
    steps: int,
    seed: int,
    defence: str = "none",
    batch: int = 64,
    learning_rate: float = 1e-3,
    cache: Path | None = None,
) -> Trained:
    """Train a model of ours with Adam; the same arguments give the same weights on the same machine and threads.

    Args:
        model_spec: As `build_model` takes it.
        data: Its training images are passed through in a new order each epoch, without augmentation.
        steps: Steps of the optimiser; 0 gives the untrained model.
        seed: Seed of initialisation, order and the defence's noise.
        defence: As `apply_defence` takes it.
        batch: Images for each step, at most as many as there are.
        learning_rate: Learning rate of Adam.
        cache: Folder of weights made before; they are used again when every argument, the images and torch's version
            are the same, and written when they are not there.
    """
    model = apply_defence(defence, build_model(model_spec, data.inputs, seed=seed), data.inputs, seed=seed)
    recipe = {
        "model": model_spec, "defence": defence, "steps": steps, "seed": seed, "batch": batch, "rate": learning_rate,
        "torch": torch.__version__, "data": _digest(data),
    }  # fmt: skip
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    file = None if cache is None else cache / f"{name}.safetensors"
    if file is not None and file.exists():
        return _cached(model, file)
    began = time.process_time()
    with seeded(seed):
        _train(model, data, steps=steps, batch=batch, learning_rate=learning_rate)
    seconds = (time.process_time() - began) / max(steps, 1)
    accuracy, _ = accuracy_and_loss(model, model.state_dict(), data.test, data.inputs, seed=seed)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        figures = {"accuracy": repr(accuracy), "seconds_per_step": repr(seconds), "recipe": json.dumps(recipe)}
        unfinished = file.with_suffix(".part")
        save_file(model.state_dict(), unfinished, metadata=figures)
        unfinished.replace(file)
    return Trained(model=model.eval(), accuracy=accuracy, seconds_per_step=seconds, cached=False)


def _cached(model: nn.Module, file: Path) -> Trained:
    with safe_open(file, framework="pt") as content:
        figures = content.metadata()
    model.load_state_dict(load_file(file))
    return Trained(
        model=model.eval(),
        accuracy=float(figures["accuracy"]),
        seconds_per_step=float(figures["seconds_per_step"]),
        cached=True,
    )


def _train(model: nn.Module, data: ImageData, *, steps: int, batch: int, learning_rate: float) -> None:
    """Train in place; draws from torch's global generator."""
    if not 1 <= batch <= len(data.train):
        raise ValueError(f"expected a batch of 1 to {len(data.train)} images, as many as there are, got {batch}")
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    order: list[int] = []
    for _ in range(steps):
        if len(order) < batch:  # an incomplete last batch is left out, as DataLoader's drop_last does
            order = torch.randperm(len(data.train)).tolist()
        chosen, order = order[:batch], order[batch:]
        images, labels = data.train.batch(chosen)
        optimiser.zero_grad()
        training_loss(model, data.inputs.normalise(images), labels).backward()
        optimiser.step()


def _digest(data: ImageData) -> str:
    """Of the images and labels of both parts."""
    digest = hashlib.sha256(repr(data.inputs).encode())
    for part in (data.train, data.test):
        digest.update(part.images.contiguous().numpy())
        digest.update(part.labels.numpy())
    return digest.hexdigest()


def main() -> None:
    """Command line."""
    import command_line  # beside this file, which others import from elsewhere

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["convnet", "resnet20", "resnet20:width=4"], help="model specs")
    parser.add_argument("--defence", default="none", help="defence spec")
    parser.add_argument("--steps", type=int, default=100, help="of Adam")
    parser.add_argument("--batch", type=int, default=64, help="images for each step")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--test", type=int, default=1_000, help="test images")
    parser.add_argument("--skip", type=int, default=0, help="training images left out at the beginning")
    parser.add_argument("--cache", type=Path, help="folder of weights")
    options = command_line.parse(parser)
    data = cifar10(train=options.train, test=options.test, skip=options.skip)
    rows = {}
    for spec in options.models:
        found = trained(
            spec, data, steps=options.steps, seed=options.seed, defence=options.defence, batch=options.batch,
            cache=options.cache,
        )  # fmt: skip
        row = {"accuracy": found.accuracy, "cpu_seconds_per_step": found.seconds_per_step, "cached": found.cached}
        logger.info("%s: accuracy %.3f, %.2f s of CPU a step", spec, found.accuracy, found.seconds_per_step)
        rows[spec] = row
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    command_line.write_record({"settings": settings, "models": rows}, options)


if __name__ == "__main__":
    main()
