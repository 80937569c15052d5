"""Images and the noise of random layers as one candidate, so that both are searched together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from attacker.attacks.gradient_matching.batch import Piece
from attacker.gradients.dropout_masks import MaskedDropout, dropped_share
from attacker.objectives.objective import GradientObjective
from attacker.optim.problem import Objective


@dataclass(frozen=True, kw_only=True)
class JoinedNoise:
    """Images and searched noise side by side, (victims, restarts, batch * (pixels + noise)).

    Attributes:
        image: (channels, height, width).
        batch: Images of one candidate.
        places: Random layers whose noise is searched, as places in the order of execution.
        shapes: Shapes of their noise for one image.
        dropped: For each of these the share that dropout drops on average, None for a bottleneck.
    """

    image: tuple[int, ...]
    batch: int
    places: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    dropped: tuple[float | None, ...]

    @classmethod
    def of(cls, piece: Piece) -> JoinedNoise:
        """All random layers of the piece whose noise is not known."""
        known = piece.knowledge[0].noise
        unknown = [place for place, _ in enumerate(piece.seen.random) if place >= len(known) or known[place] is None]
        modules = [piece.seen.random[place].module for place in unknown]
        return cls(
            image=piece.victim.inputs.shape,
            batch=piece.batch_size,
            places=tuple(unknown),
            shapes=tuple(piece.seen.latents[place] for place in unknown),
            dropped=tuple(module.p if isinstance(module, MaskedDropout) else None for module in modules),
        )

    @property
    def pixels(self) -> int:
        """Numbers of a candidate that belong to its images."""
        return self.batch * math.prod(self.image)

    def start(self, images: Tensor, piece: Piece) -> Tensor:
        """First candidates: eps from N(0, 1), masks at the mean of theirs, the share that passes."""
        parts = [images.flatten(2)]
        for shape, dropped in zip(self.shapes, self.dropped, strict=True):
            if dropped is None:
                parts.append(piece.draws.normal(self.batch, *shape, like=images).flatten(2))
            else:
                numbers = self.batch * math.prod(shape)
                parts.append(images.new_full((*images.shape[:2], numbers), 1 - dropped))
        return torch.cat(parts, dim=2)

    def split(self, candidates: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (v, r, batch, C, H, W), and (v, r, batch, ...) of each searched noise."""
        sizes = [self.pixels, *(self.batch * math.prod(shape) for shape in self.shapes)]
        images, *noise = torch.split(candidates, sizes, dim=2)
        axes = (*candidates.shape[:2], self.batch)
        return images.reshape(*axes, *self.image), [
            layer_noise.reshape(*axes, *shape) for layer_noise, shape in zip(noise, self.shapes, strict=True)
        ]

    def join(self, images: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return torch.cat([images.flatten(2), *(layer_noise.flatten(2) for layer_noise in noise)], dim=2)

    def within_bounds(self, candidates: Tensor, piece: Piece, *, boxed: bool) -> Tensor:
        """Candidates whose masks lie in [0, 1], and whose images are valid where they are ``boxed``."""
        images, noise = self.split(candidates)
        masks = [
            layer_noise if dropped is None else layer_noise.clamp(0, 1)
            for layer_noise, dropped in zip(noise, self.dropped, strict=True)
        ]
        return self.join(piece.victim.inputs.clamp(images) if boxed else images, masks)


@dataclass(frozen=True, kw_only=True)
class NoisyObjective(Objective):
    """The objective of joined candidates.

    Attributes:
        joined: Splits candidates.
        images: The objective of the images.
        mask_penalty: Weight of the squared difference between dropped and expected share, summed over masks.
    """

    joined: JoinedNoise
    images: GradientObjective
    mask_penalty: float = 0.0

    def distances(self, x: Tensor) -> Tensor:
        """Distances of joined candidates, (victims, restarts)."""
        images, searched = self.joined.split(x)
        by_place = dict(zip(self.joined.places, searched, strict=True))
        noise = self.images.noise
        every = [
            by_place[place] if place in by_place else noise.of_layer(place, images)
            for place in range(len(noise.latents))
        ]
        return self.images.distances_at(images, self.images.labels, every)

    def priors(self, x: Tensor) -> Tensor:
        """Priors on the images, and on the masks that they come with."""
        images, searched = self.joined.split(x)
        total = self.images.priors(images)
        for mask, dropped in zip(searched, self.joined.dropped, strict=True):
            if dropped is not None:
                total = total + self.mask_penalty * (dropped_share(mask) - dropped).square()
        return total

    def keep(self, victims: Sequence[int], restarts: Sequence[Sequence[int]]) -> Self:
        """The same objective for some of the candidates."""
        return replace(self, images=self.images.keep(victims, restarts))
