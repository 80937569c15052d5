"""One client's images in one file, for a client that holds its own part and nothing else."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fl_precode.data.dataset import DataUnavailableError, ImageData, ImageDataset
from fl_precode.models.input_spec import InputSpec
from fl_precode.private_file import write_private


@dataclass(frozen=True, kw_only=True)
class ClientData:
    """What one client trains on.

    Attributes:
        train: Its images.
        inputs: The input domain of the whole federation: all clients must normalise alike.
    """

    train: ImageDataset
    inputs: InputSpec


def write_partition(path: Path, data: ImageData, indices: np.ndarray) -> None:
    """Write the training images of one client as an ``.npz`` file, readable by its owner only.

    Args:
        path: Path of the file, in an existing folder.
        data: The whole image set.
        indices: Indices of this client's images, in the order of the partition: batches are drawn by position.

    Raises:
        OSError: If the file cannot be written.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=data.train.images[indices].numpy(),
        labels=data.train.labels[indices].numpy(),
        class_names=np.array(data.train.class_names),
        mean=np.array(data.inputs.mean),
        std=np.array(data.inputs.std),
    )
    write_private(path, buffer.getvalue())


def read_partition(path: Path) -> ClientData:
    """Read what `write_partition` wrote.

    Raises:
        DataUnavailableError: If there is no such file.
        ValueError: If it is something else; pickled arrays are refused.
    """
    if not path.is_file():
        raise DataUnavailableError(
            f"there is no file {path}; expected this client's images there (node config 'data-path')"
        )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            images, labels = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])
            names = tuple(str(name) for name in arrays["class_names"])
            mean, std = (tuple(float(value) for value in arrays[key]) for key in ("mean", "std"))
        train = ImageDataset(images, labels, names)
        channels, height, width = (int(size) for size in images.shape[1:])
        inputs = InputSpec(channels=channels, height=height, width=width, classes=len(names), mean=mean, std=std)
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path} is not a client's partition ({type(error).__name__}: {error})") from error
    return ClientData(train=train, inputs=inputs)
