"""Number of independent trials of the attacked images, for intervals and the flag "too few".

Images of one update stand or fall together, and an image that is attacked again in another round is no new image. So
the trials of an attack are the most pairs of one update and one image of it, no update and no image in two pairs: 64
images of one update are one trial, 8 images in 64 updates are eight, 64 updates with an image each are 64. Intervals
are as wide as if all images of one update had one fate, which is the worst that can be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from attacker.audit.record.schema import ImageResult, VictimImage
from attacker.metrics.intervals import exact_interval


def originals(victims: Iterable[VictimImage]) -> dict[str, str]:
    """Each victim's identifier, and that of the first victim with the same image, which may be its own."""
    return {victim.id: victim.same_as or victim.id for victim in victims}


def update_of(row: ImageResult) -> tuple[int, str]:
    """What tells the update of an image from the others of its federation: round and client."""
    return row.round, row.node


def trials(rows: Iterable[ImageResult], same: Mapping[str, str]) -> int:
    """Independent trials among results of one federation, whatever attacks they are of.

    Args:
        rows: The results.
        same: As of `originals`; a victim that is not in it is an image of its own.
    """
    pairs = {(update_of(row), same.get(row.victim_id, row.victim_id)) for row in rows}
    updates = {update_key: place for place, update_key in enumerate(sorted({update for update, _ in pairs}))}
    images = {image_id: place for place, image_id in enumerate(sorted({image for _, image in pairs}))}
    if len(updates) == len(pairs) == len(images):
        return len(pairs)
    # SciPy 1.12 matches in graphs of 32-bit indices alone.
    rows_of = np.array([updates[update] for update, _ in pairs], dtype=np.int32)
    columns = np.array([images[image] for _, image in pairs], dtype=np.int32)
    held = csr_array((np.ones(len(pairs)), (rows_of, columns)), shape=(len(updates), len(images)))
    return int((maximum_bipartite_matching(held, perm_type="column") >= 0).sum())


def share_interval(back: int, images: int, independent: int) -> tuple[float, float]:
    """95 % interval of the share of images that are reconstructed, exact and by independent trials (`exact_interval`).

    It is the one rule for shares: of attacks, of all together, of guesses, in records, gates, grids and searches.

    >>> [round(end, 2) for end in share_interval(60, 64, 64)], [round(end, 2) for end in share_interval(60, 64, 1)]
    ([0.85, 0.98], [0.02, 1.0])
    """
    return exact_interval(back / images, independent)
