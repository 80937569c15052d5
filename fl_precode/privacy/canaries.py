"""Canaries: known gradients that enter a client's update, each with probability 1/2, for an audit to look for.

What everybody may know is a `Canaries`: how many, how large, and along which directions. Which of them were in is drawn
from a secret that clients and evaluation have; it stands on no tape, and no attack sees it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_precode.spec import parse_spec

KEY: Final = "canaries"
"""Of the run configuration, and of the settings in a tape's header."""

KINDS: Final = ("gradients", "images")
"""What canaries are."""

SECRET_LENGTH: Final = 16
"""Characters of a secret at least."""


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """Directions that are known to everybody, orthogonal to one another: each a share of the numbers with random signs.

    Attributes:
        count: How many, at least 1.
        norm: L2 norm of each, positive.
        seed: Seed of the directions; public.
        round: The only round in which they enter; 0 for every round.
        kind: ``gradients``, directions that are added; or ``images``, known random ones with random labels, which are
            further examples of every local step (`fl_precode.privacy.canary_images`), and whose gradients have the
            norm that they have.

    Raises:
        ValueError: If a value is out of its range.
    """

    count: int = 1000
    norm: float = 1.0
    seed: int = 0
    round: int = 0
    kind: str = "gradients"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected canaries as gradients or as images, got as={self.kind}")
        if self.count < 1:
            raise ValueError(f"expected at least one canary, got count={self.count}; leave the canaries out for none")
        if not 0 < self.norm < math.inf:
            raise ValueError(f"expected a positive, finite norm of each canary, got {self.norm}")
        if self.seed < 0 or self.round < 0:
            raise ValueError(f"expected seed and round of 0 or more, got {self.seed} and {self.round}")

    @classmethod
    def parse(cls, text: str) -> Canaries:
        """Canaries from ``count=1000,norm=1,seed=0,round=0,as=gradients``, of which each part may be left out.

        Raises:
            ValueError: If an option does not exist, or a value is out of its range.

        >>> Canaries.parse("count=500,norm=2.5").norm, Canaries.parse("count=100,as=images").kind
        (2.5, 'images')
        """
        spec = parse_spec(f"{KEY}:{text}")
        spec.check_options(("count", "norm", "seed", "round", "as"))
        kind = spec.options.get("as", "gradients")
        if kind == "images" and "norm" in spec.options:
            raise ValueError(
                f"{text!r}: images have the gradients that they have; leave norm out, or take as=gradients"
            )
        given = {"count": spec.integer("count"), "seed": spec.integer("seed"), "round": spec.integer("round")}
        whole = {name: value for name, value in given.items() if value is not None}
        norm = spec.number("norm")
        return cls(kind=kind, **whole) if norm is None else cls(kind=kind, norm=norm, **whole)

    def enter(self, number: int) -> bool:
        """Whether they enter in a round."""
        return self.round in (0, number)

    def of(self, node: str, number: int) -> Canaries:
        """The same with directions of their own for one client in one round; public as well.

        Clients' gradients are alike in all rounds. Along fixed directions they would add the same to the scores of each
        update, which then were not independent.

        Args:
            node: Flower's id of the client.
            number: Number of the round.
        """
        digest = hashlib.sha256("\0".join((str(self.seed), node, str(number))).encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:7], "big"))

    def check(self, numbers: int) -> None:
        """Refuse a model that is too small for its canaries, before anything is trained.

        Args:
            numbers: That the model trains.

        Raises:
            ValueError: If there are more canaries than numbers.
        """
        if self.kind == "gradients" and self.count > numbers:
            raise ValueError(
                f"expected no more canaries than the update has numbers, got {self.count} for {numbers}; give a count "
                f"of at most {numbers}"
            )

    def places(self, numbers: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Which numbers of an update belong to which canary, and with which sign.

        Args:
            numbers: In the update, all its tensors one after another.

        Returns:
            (count, width) places, and their signs, 1 or -1; what is left over belongs to none.

        Raises:
            ValueError: If there are more canaries than numbers.
        """
        self.check(numbers)
        width = numbers // self.count
        draw = np.random.default_rng(self.seed)
        places = draw.permutation(numbers)[: self.count * width].reshape(self.count, width)
        return places, draw.choice((-1.0, 1.0), size=places.shape)

    def shares(self, inside: NDArray[np.float64], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
        """The sum of the canaries, each by a factor, as tensors of the given shapes.

        Args:
            inside: (count,) 1 for a canary that is in, 0 for one that is out, less for one that was clipped.
            shapes: Name of each tensor of the update to its shape, in the model's order.
        """
        sizes = [math.prod(shape) for shape in shapes.values()]
        places, signs = self.places(sum(sizes))
        flat = np.zeros(sum(sizes))
        flat[places] = signs * (self.norm / math.sqrt(places.shape[1]) * inside)[:, None]
        pieces = np.split(flat, np.cumsum(sizes)[:-1])
        return {
            name: torch.from_numpy(piece.reshape(tuple(shape)))
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }

    def scores(self, update: Mapping[str, Tensor | None], shapes: Mapping[str, Sequence[int]]) -> NDArray[np.float64]:
        """What an update holds of each canary, in its norms: 1 where it came through whole and alone.

        Args:
            update: By name; None or absent for a tensor that did not come.
            shapes: Name of each tensor that the client had to its shape, in the model's order.

        Returns:
            (count,) scores; NaN for a canary of which no number came.
        """
        flat = np.concatenate(
            [
                np.full(math.prod(shape), np.nan)
                if (value := update.get(name)) is None
                else value.detach().cpu().double().numpy().ravel()
                for name, shape in shapes.items()
            ]
        )
        places, signs = self.places(len(flat))
        held_of_each = signs * flat[places]
        width = (~np.isnan(held_of_each)).sum(axis=1)
        held = np.nansum(held_of_each, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Per number that came, so that an absent tensor takes nothing from the others' share.
            return np.where(width > 0, held / width * math.sqrt(places.shape[1]) / self.norm, np.nan)


def included(secret: str, node: str, number: int, count: int) -> NDArray[np.bool_]:
    """Which canaries a client includes in a round, each with probability 1/2: (count,), by the secret.

    Args:
        secret: That clients and evaluation have.
        node: Flower's id of the client.
        number: Number of the round.
        count: Number of canaries.

    Raises:
        ValueError: If the secret is shorter than `SECRET_LENGTH`.

    >>> included("nobody may know it", "7", 1, 8).tolist() == included("nobody may know it", "7", 1, 8).tolist()
    True
    """
    if len(secret) < SECRET_LENGTH:
        raise ValueError(
            f"expected a secret of at least {SECRET_LENGTH} characters, got {len(secret)}: whoever guesses it knows "
            "which canaries are in, and the audit measures nothing"
        )
    drawn = hashlib.shake_256("\0".join((secret, node, str(number))).encode()).digest(-(-count // 8))
    return np.unpackbits(np.frombuffer(drawn, dtype=np.uint8))[:count].astype(bool)


def secret_of_seed(seed: int) -> str:
    """The secret of the reference federation, whose clients and evaluation share the run's seed; no tape has it."""
    return hashlib.sha256(f"fl-precode canaries {seed}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Inserted:
    """Canaries of one client in one round, with what is in.

    Attributes:
        canaries: What everybody knows of them.
        inside: (count,) which are in.
    """

    canaries: Canaries
    inside: NDArray[np.bool_]

    def added_to(self, update: Mapping[str, Tensor], *, share: float = 1.0) -> dict[str, Tensor]:
        """The update with the canaries that are in; the given one stays as it is.

        Args:
            update: Every tensor that the client trains, in the model's order.
            share: By which each canary is scaled, as by a clip of its own.
        """
        shapes = {name: tuple(value.shape) for name, value in update.items()}
        entering = self.canaries.shares(self.inside.astype(np.float64) * share, shapes)
        return {name: value + entering[name].to(value) for name, value in update.items()}
