"""Checks on a mean of replies before it becomes the next model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord


def in_sent_types(arrays: ArrayRecord, sent: Mapping[str, str]) -> ArrayRecord:
    """The aggregate in the types of what was sent; means of whole numbers are rounded to the nearest.

    Flower's weighted mean of whole numbers, such as batch normalisation's ``num_batches_tracked``, is a float64.
    Clients that load it into their model reply with the model's own type, and replies must have the type that was sent.

    Args:
        arrays: An aggregate, by name.
        sent: Name to NumPy type; names without one keep theirs.
    """
    return ArrayRecord({name: _cast(array, np.dtype(sent.get(name, array.dtype))) for name, array in arrays.items()})


def _cast(array: Array, wanted: np.dtype) -> Array:
    value = array.numpy()
    if value.dtype == wanted:
        return array
    # Weights such as 1/3 leave the mean of equal counts a hair below them: a plain cast would lose one.
    return Array(np.asarray((value if wanted.kind == "f" else np.rint(value)).astype(wanted)))
