"""Folder and pictures of an audit, for their owner's eyes only."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fl_precode.private_file import make_private_folder, write_private


def png_bytes(image: Tensor) -> bytes:
    """PNG of one image (channels, height, width) in [0, 1].

    One channel is written grey, three as RGB; of any other number the channels' mean is written grey, because PNG
    has no such picture. Values that are not finite become black.
    """
    array = np.nan_to_num(image.detach().cpu().numpy(), nan=0.0, posinf=1.0, neginf=0.0)
    if array.shape[0] != 3:
        array = array.mean(axis=0, keepdims=True)
    pixels = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
    planes = pixels.transpose(1, 2, 0) if pixels.shape[0] == 3 else pixels[0]
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(planes)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


class Pictures:
    """The pictures that an audit keeps, as PNG files in ``images/`` beside ``audit.json``.

    Args:
        folder: The audit's folder; ``images`` is made in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = make_private_folder(folder / "images")

    def keep(self, identifier: str, image: Tensor | None) -> str | None:
        """Write one image (channels, height, width) in [0, 1]; return its path as the record stores it.

        Raises:
            OSError: If it cannot be written.
        """
        if image is None:
            return None
        write_private(self._folder / f"{identifier}.png", png_bytes(image))
        return f"images/{identifier}.png"
