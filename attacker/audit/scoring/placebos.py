"""Results of the same attack for updates without an image: no more than a guess at that image. Evaluation only.

Other updates of the same federation cost nothing: they were attacked anyway. Where there are few, an attack that is
quick is given the update with the numbers of each tensor shuffled, see `attacker.audit.scoring.shuffled`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from attacker.audit.truth.best_guess import Guess, first_of_each
from attacker.metrics.similarity import SSIM_WINDOW, assign, ssim

MOST_COMPARED: Final = 16
"""Other updates at most whose reconstructions are compared with the images of an update; fewer where they are large."""

FEWEST_COMPARED: Final = 4
"""However large they are."""

_VALUES_COMPARED: Final = 1 << 19

OTHER_UPDATE: Final = "the same attack on another update"
SHUFFLED_UPDATE: Final = "the same attack on the shuffled update"


class BestGuess(NamedTuple):
    """The best guess at an image, all that it is compared with; None where nothing could be.

    Attributes:
        mean_ssim: SSIM of the mean image.
        ssim: SSIM of the best guess.
        name: Which it is.
    """

    mean_ssim: float | None = None
    ssim: float | None = None
    name: str = ""


def beyond(
    guesses: Sequence[Guess | None], truth: Tensor, made: Iterable[tuple[str, Sequence[Tensor]]]
) -> list[BestGuess]:
    """The best guess at each image, what the same attack made of updates without it included.

    Args:
        guesses: Without any update.
        truth: (images, channels, height, width) in [0, 1].
        made: Names and reconstructions, see `placebo_ssim`.
    """
    best = [BestGuess() if guess is None else BestGuess(guess.mean_ssim, guess.ssim, guess.name) for guess in guesses]
    for name, images in made:
        for place, value in enumerate(placebo_ssim(images, truth)):
            known = best[place].ssim
            if value is not None and known is not None and value > known:
                best[place] = best[place]._replace(ssim=value, name=name)
    return best


def same_images(truths: Sequence[Tensor | None]) -> list[list[int | None]]:
    """For each image of each update a number that it shares with its copies; None where images are not known.

    Args:
        truths: Truths of each update (images, channels, height, width) in [0, 1], or None.
    """
    flat = [image for batch in truths if batch is not None for image in batch]
    numbers = iter(first_of_each(flat))
    return [[None] if batch is None else [next(numbers) for _ in batch] for batch in truths]


def updates_of_others(same: Sequence[Sequence[int | None]]) -> list[list[int]]:
    """For each update the places of those of which it is known that they hold none of its images.

    At most `MOST_COMPARED`, from the next one on, so that each update serves as often as others.

    Args:
        same: Result of `same_images`.
    """
    numbers = [frozenset(update) for update in same]
    places = []
    for place, mine in enumerate(numbers):
        order = [*range(place + 1, len(numbers)), *range(place)]
        others = [other for other in order if None not in mine | numbers[other] and not mine & numbers[other]]
        places.append(others[:MOST_COMPARED])
    return places


def placebo_ssim(made: Sequence[Tensor], truth: Tensor) -> list[float | None]:
    """For each true image the largest SSIM of what was made of updates without it; None where there is nothing.

    As a batch's own reconstructions are, those of another one are put in the order that fits the truth best.

    Args:
        made: Reconstructions of each update without these images, (n, channels, height, width) in [0, 1].
        truth: (images, channels, height, width) in [0, 1].
    """
    best: list[float | None] = [None] * len(truth)
    if min(truth.shape[2:]) < SSIM_WINDOW:
        return best
    for images in made[: max(FEWEST_COMPARED, _VALUES_COMPARED // truth.numel())]:
        images = images[torch.isfinite(images).flatten(1).all(dim=1)]
        if not len(images) or images.shape[1:] != truth.shape[1:]:
            continue
        rows, columns = assign(images, truth)
        for place, value in zip(rows.tolist(), ssim(images[columns], truth[rows]).tolist(), strict=True):
            best[place] = value if (known := best[place]) is None else max(known, value)
    return best
