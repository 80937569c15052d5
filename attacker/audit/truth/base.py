"""The true images behind an update, wherever they are known from. For evaluation only: no attack ever sees this.

Every source answers by the tape's entry: `attacker.audit.truth.federation` recomputes the reference federation's,
`recorded`, `files` and `function` give those of any other app, and `open` chooses.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Protocol

import torch
from torch import Tensor

from attacker.audit.truth.best_guess import FEWEST_AVERAGED, ClientImages, Guesses, digest, most_of_class
from attacker.audit.truth.candidates import NO_CANDIDATES, Candidates, drawn
from fl_precode.group_columns import Groups
from fl_precode.models.input_spec import InputSpec
from fl_precode.recorded_truth import Scale

_MOST_AVERAGED: Final = 4_096
"""Images at most that the mean image is the mean of."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What one client used in one round.

    Attributes:
        images: (batch, channels, height, width) in [0, 1], in the order of use, each image once.
        labels: (batch,) class indices.
        groups: What groups the images belong to, as far as the source has columns of them.
    """

    images: Tensor
    labels: Tensor
    groups: Groups = field(default_factory=dict)

    def groups_of(self, place: int) -> dict[str, str]:
        """Column to the group of an image, where it has one."""
        return {name: column[place] for name, column in self.groups.items() if column[place]}


class Located(Protocol):
    """Anything that has a round and a node, such as a tape's entry; it may have a ``message`` as well."""

    @property
    def round(self) -> int:
        """Round of the federation, from 1."""

    @property
    def node(self) -> str:
        """Node id as text."""


class TruthSource(ABC):
    """Where the truth of a tape's updates comes from.

    Attributes:
        origin: For messages: what it was read from.
        exact: Whether it is known to be what the clients used; otherwise it is compared with the updates first.
    """

    origin: str
    exact: bool = False

    @abstractmethod
    def knows(self, entry: Located) -> bool:
        """Whether there is a truth of this update; nothing is loaded for it where that can be avoided."""

    @abstractmethod
    def truth(self, entry: Located) -> Truth | None:
        """What is behind an update, or None.

        Raises:
            ValueError: If there should be one and it cannot be read; the text says why.
        """

    @abstractmethod
    def classes(self, entry: Located) -> tuple[int, ...] | None:
        """Classes of the images behind an update, each once, sorted; None where they are not known."""

    @property
    @abstractmethod
    def mean_image(self) -> Tensor | None:
        """(channels, height, width) in [0, 1]: a guess that needs no update; None where no image is known."""

    @abstractmethod
    def of_class(self, label: int) -> Tensor:
        """Different images of a class that are known, the same ones every time; for guesses, which need no update.

        Returns:
            (n, channels, height, width) in [0, 1]; n is at most `most_of_class`, and may be 0.
        """

    def candidates(self, labels: Collection[int | None], most: int, seed: int) -> Mapping[int | None, Candidates]:
        """Images that a reconstruction may be taken for, drawn by lot from all that are known; none by default.

        Args:
            labels: Classes; None stands for all of them.
            most: Images of each.
            seed: Other seeds, other images.
        """
        return dict.fromkeys(labels, NO_CANDIDATES)

    def client_images(self, entry: Located) -> ClientImages | None:
        """The client's images beside those behind an update, for guesses; None where they are not known."""
        del entry
        return None

    @property
    def label_counts(self) -> Mapping[int, int]:
        """Different images of each class that are known; empty where none are."""
        return {}

    def labels(self, entry: Located) -> Tensor | None:
        """(batch,) classes of the images behind an update, each image once; None where they are not known.

        Raises:
            ValueError: As `truth`.
        """
        known = self.truth(entry)
        return None if known is None else known.labels

    @cached_property
    def guesses(self) -> Guesses:
        """What can be guessed from these images, each guess worked out once."""
        return Guesses(self)

    def prints(self, entry: Located) -> frozenset[bytes]:
        """Fingerprints of the images behind an update, equal for equal images; empty where they are not known."""
        try:
            known = self.truth(entry)
        except ValueError:
            return frozenset()
        return frozenset() if known is None else frozenset(map(digest, known.images))

    def steps(self, entry: Located) -> list[Truth]:
        """The batch of each local step in order, where that is known, else all images as one."""
        known = self.truth(entry)
        return [] if known is None else [known]

    def rank(self, node: str) -> str:
        """A key for a node that is the same in every federation where it is known which client the node is."""
        return f"unknown {node}"

    def training_images(self) -> Truth | None:
        """All images that the clients train on, where the source has them beyond those behind single updates."""
        return None

    @property
    def scale(self) -> Scale | None:
        """Mean and deviation by which clients normalise, by channel or one for all; None where that is not known."""
        return None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by index; empty where they have none."""
        return ()

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """Run-config of the federation, kebab-case keys, where the source has it."""
        return {}


class HeldTruth(TruthSource):
    """Truth of an own app, held as images.

    Args:
        origin: For messages.
        clients: Node id to the client's name, where the notes beside the tape have names.
    """

    def __init__(self, origin: str, clients: Mapping[str, str]) -> None:
        self.origin = origin
        self.clients = dict(clients)

    @abstractmethod
    def held(self) -> Iterator[Truth]:
        """All images with their labels, some at a time; those of one update may come again."""

    def rank(self, node: str) -> str:
        """The client's name, where it has one."""
        return self.clients.get(node, f"unknown {node}")

    @cached_property
    def mean_image(self) -> Tensor | None:
        """Mean of the images held; where they are few, their mean colour: the mean of one image is that image."""
        return mean_of(known.images for known in self.held())

    def of_class(self, label: int) -> Tensor:
        """Held images of a class; the choice goes by their content, so that it depends on no order."""
        return self._by_class.get(label, torch.zeros(0, 1, 1, 1))

    def candidates(self, labels: Collection[int | None], most: int, seed: int) -> Mapping[int | None, Candidates]:
        """Candidates among the images held, each once."""
        return drawn(((some.images, some.labels) for some in self.held()), labels, most, seed)

    @cached_property
    def label_counts(self) -> Mapping[int, int]:
        """Number of held images of each label, each counted once."""
        labels = {
            digest(image): label
            for known in self.held()
            for image, label in zip(known.images, known.labels.tolist(), strict=True)
        }
        return Counter(labels.values())

    @cached_property
    def _by_class(self) -> dict[int, Tensor]:
        return chosen_by_class(self.held())


class SameClients(TruthSource):
    """The truth of a tape for another one of the same clients and rounds, such as a control's.

    Args:
        source: Source of the first tape.
        entries: Entries of the first tape.
    """

    def __init__(self, source: TruthSource, entries: Iterable[Located]) -> None:
        self.origin, self.exact = source.origin, source.exact
        self._source = source
        self._entries = {(entry.node, entry.round): entry for entry in entries}

    def knows(self, entry: Located) -> bool:
        """As of the first tape's update."""
        return self._source.knows(self._first(entry))

    def truth(self, entry: Located) -> Truth | None:
        """As of the first tape's update."""
        return self._source.truth(self._first(entry))

    def steps(self, entry: Located) -> list[Truth]:
        """As of the first tape's update."""
        return self._source.steps(self._first(entry))

    def classes(self, entry: Located) -> tuple[int, ...] | None:
        """As of the first tape's update."""
        return self._source.classes(self._first(entry))

    def rank(self, node: str) -> str:
        """As in the first tape."""
        return self._source.rank(node)

    @property
    def mean_image(self) -> Tensor | None:
        """The same."""
        return self._source.mean_image

    def of_class(self, label: int) -> Tensor:
        """The same."""
        return self._source.of_class(label)

    def candidates(self, labels: Collection[int | None], most: int, seed: int) -> Mapping[int | None, Candidates]:
        """The same."""
        return self._source.candidates(labels, most, seed)

    def client_images(self, entry: Located) -> ClientImages | None:
        """As of the first tape's update."""
        return self._source.client_images(self._first(entry))

    @property
    def label_counts(self) -> Mapping[int, int]:
        """The same."""
        return self._source.label_counts

    def labels(self, entry: Located) -> Tensor | None:
        """As of the first tape's update."""
        return self._source.labels(self._first(entry))

    @cached_property
    def guesses(self) -> Guesses:
        """The same."""
        return self._source.guesses

    def prints(self, entry: Located) -> frozenset[bytes]:
        """As of the first tape's update."""
        return self._source.prints(self._first(entry))

    @property
    def scale(self) -> Scale | None:
        """The same."""
        return self._source.scale

    @property
    def class_names(self) -> tuple[str, ...]:
        """The same."""
        return self._source.class_names

    @property
    def settings(self) -> Mapping[str, str | int | float | bool]:
        """The same."""
        return self._source.settings

    def _first(self, entry: Located) -> Located:
        return self._entries.get((entry.node, entry.round), entry)


def known_scale(source: TruthSource, inputs: InputSpec) -> InputSpec | None:
    """The input domain with the scale that the clients use, as far as it is known to the evaluation."""
    if inputs.scale_known or source.scale is None:
        return inputs if inputs.scale_known else None
    mean, std = (tuple(column) * (inputs.channels if len(column) == 1 else 1) for column in source.scale)
    if {len(mean), len(std)} != {inputs.channels} or min(std) <= 0:
        return None
    return replace(inputs, mean=mean, std=std, scale_known=True)


def mean_of(images: Iterable[Tensor]) -> Tensor | None:
    """Mean image of those of the first one's shape, each once; of fewer than 16 their mean colour, in every pixel.

    Args:
        images: (n, channels, height, width) each, in [0, 1].

    >>> mean_of([torch.full((1, 1, 2, 2), 0.5)]).tolist()
    [[[0.5, 0.5], [0.5, 0.5]]]
    """
    total: Tensor | None = None
    seen: set[int] = set()
    for image in (picture for some in images for picture in some):
        if len(seen) == _MOST_AVERAGED:
            break
        key = hash(image.numpy().tobytes())
        if key in seen or (total is not None and image.shape != total.shape):
            continue
        seen.add(key)
        total = image.double() if total is None else total + image
    if total is None:
        return None
    mean = (total / len(seen)).to(torch.float32)
    return mean if len(seen) >= FEWEST_AVERAGED else mean.mean(dim=(1, 2), keepdim=True).expand_as(mean).clone()


def chosen_by_class(truths: Iterable[Truth]) -> dict[int, Tensor]:
    """Different images of each class, at most `most_of_class` of each; those of the first one's shape.

    Which ones goes by their content, as good as by lot, and is the same in whatever order they come.
    """
    kept: dict[int, list[tuple[bytes, Tensor]]] = {}
    shape: torch.Size | None = None
    for some in truths:
        for image, label in zip(some.images, some.labels.tolist(), strict=True):
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                continue
            candidates, most = kept.setdefault(label, []), most_of_class(image.numel())
            candidates.append((digest(image), image))
            if len(candidates) >= 2 * most:
                candidates[:] = _first_different(candidates, most)
    return {
        label: torch.stack([image for _, image in _first_different(pairs, most_of_class(pairs[0][1].numel()))])
        for label, pairs in kept.items()
    }


def _first_different(pairs: Iterable[tuple[bytes, Tensor]], most: int) -> list[tuple[bytes, Tensor]]:
    return heapq.nsmallest(most, dict(pairs).items(), key=lambda pair: pair[0])
