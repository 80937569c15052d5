"""Data sets and starting weights for other people's apps, from files: no hub and no line of the app is changed.

Hugging Face's ``load_dataset("owner/name")`` takes the folder ``owner/name`` of the working directory before it asks
the hub, and torchvision takes weights that lie in ``TORCH_HOME``. Flower's apps work in the SuperLink's folder.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
"""Environment under which nothing asks the network."""


def environment(cache: Path) -> dict[str, str]:
    """Variables for every process of a run: offline, caches in a folder of our own."""
    return {**OFFLINE, "HF_HOME": str(cache / "hf"), "TORCH_HOME": str(cache / "torch")}


def cifar10(shared: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (n, 32, 32, 3) and labels (n,) of each split."""
    z = np.load(shared / "cifar10" / "cifar10_lossless_subset.npz")
    return {split: (z[f"{split}_images"], z[f"{split}_labels"]) for split in ("train", "test")}


def mnist(shared: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images (n, 28, 28) and labels (n,) of each split."""

    def raw(name: str, head: int) -> np.ndarray:
        packed = (shared / "mnist" / "MNIST" / "raw" / name).read_bytes()
        return np.frombuffer(gzip.decompress(packed), np.uint8)[head:]

    return {
        split: (
            raw(f"{stem}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28),
            raw(f"{stem}-labels-idx1-ubyte.gz", 8),
        )
        for split, stem in (("train", "train"), ("test", "t10k"))
    }


def photographs(shared: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The colour photographs (n, 224, 224, 3), each a class of its own."""
    images = [Image.open(path) for path in sorted((shared / "photos").glob("*_224.png"))]
    colour = np.stack([np.asarray(one.convert("RGB")) for one in images])
    labels = np.arange(len(colour))
    return {"train": (colour, labels), "test": (colour[:2], labels[:2])}


def write_parquet(
    folder: Path, splits: Mapping[str, tuple[np.ndarray, np.ndarray]], *, images: int, key: str, classes: int
) -> None:
    """A data set as the hub serves it, with at most so many training images.

    Args:
        folder: Where ``load_dataset`` finds it, ``owner/name``.
        splits: Images and labels of each split.
        images: Number of training images; a fifth of it for the test split, at least four.
        key: Name of the column with the images.
        classes: Number of classes.
    """
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageColumn

    columns = Features({key: ImageColumn(), "label": ClassLabel(num_classes=classes)})
    (folder / "data").mkdir(parents=True)
    for split, (pixels, labels) in splits.items():
        count = images if split == "train" else max(4, images // 5)
        rows = {key: [Image.fromarray(one) for one in pixels[:count]], "label": [int(one) for one in labels[:count]]}
        name = f"{split}-00000-of-00001.parquet"
        Dataset.from_dict(rows, features=columns).to_parquet(str(folder / "data" / name))


def write_mednist(folder: Path, shared: Path, *, images: int) -> None:
    """MedNIST as its archive unpacks: a folder of JPEG files for each class."""
    z = np.load(shared / "medical_mnist" / "medical_mnist_6x1000.npz", allow_pickle=False)
    pixels, labels = z["images"], z["labels"]
    for label in range(6):
        chosen = pixels[labels == label][: max(1, images // 6)]
        home = folder / "MedNIST" / f"{label}-class"
        home.mkdir(parents=True)
        for i, one in enumerate(chosen):
            Image.fromarray(one).save(home / f"{i:06}.jpeg", quality=95)


def write_vit_weights(cache: Path) -> None:
    """Random weights of ``vit_b_16`` where torchvision looks for the pretrained ones (330 MB)."""
    import torch
    from torchvision.models import ViT_B_16_Weights, vit_b_16

    target = cache / "torch" / "hub" / "checkpoints" / os.path.basename(ViT_B_16_Weights.IMAGENET1K_V1.url)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        torch.save(vit_b_16(weights=None).state_dict(), target)
