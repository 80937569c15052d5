"""The truth of the reference federation, recomputed from seeds. For evaluation only: no attack ever sees this.

The only file of the attacker that may reach the data. It needs ``evaluation.json``, which the reference federation
writes beside its tape and which no server of a real deployment would have.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attacker.audit.truth.base import Located, Truth, TruthSource
from attacker.audit.truth.best_guess import FEWEST_AVERAGED, digest, most_of_class
from attacker.audit.truth.candidates import Candidates, drawn_places
from fl_precode.data import ImageDataset
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import Federation, partitioned

EVALUATION_NAME = "evaluation.json"
_MOST_TRAINED = 4_096
_NOT_COMPARED = ("seed", "data-root", "tape", "output-dir", "code-fingerprint")
_MOST_READ = 4_096
"""Images of a class at most that those to guess by are chosen among."""


class TrainingImages:
    """Guesses' source (`attacker.audit.truth.best_guess.KnownImages`): all training images of an image set.

    Args:
        images: The training images.
    """

    def __init__(self, images: ImageDataset) -> None:
        self._images = images
        self._classes: dict[int, Tensor] = {}
        self._prints: dict[int, bytes] = {}

    @cached_property
    def mean_image(self) -> Tensor:
        """Mean of all, (channels, height, width) in [0, 1]; of few different ones their mean colour.

        The mean of one image is that image, and no guess.
        """
        pixels = self._images.images
        mean: Tensor = pixels.to(torch.float32).mean(dim=0) / 255
        different: set[bytes] = set()
        for image in pixels:
            different.add(image.contiguous().numpy().tobytes())
            if len(different) == FEWEST_AVERAGED:
                return mean
        return mean.mean(dim=(1, 2), keepdim=True).expand_as(mean).clone()

    def of_class(self, label: int) -> Tensor:
        """Different images of a class, (n, channels, height, width) in [0, 1], chosen by their content."""
        if label not in self._classes:
            members = (self._images.labels == label).nonzero().flatten()
            read = members[:: -(-len(members) // _MOST_READ) or 1].tolist()
            places = {self.print_of(place): place for place in read}
            most = most_of_class(self._images.images[0].numel())
            self._classes[label] = self._images.batch([places[key] for key in sorted(places)[:most]])[0]
        return self._classes[label]

    def print_of(self, place: int) -> bytes:
        """Equal for equal images."""
        if place not in self._prints:
            self._prints[place] = digest(self._images.images[place])
        return self._prints[place]


@dataclass(frozen=True)
class OwnImages:
    """What a client has beside the images of one update (`attacker.audit.truth.best_guess.ClientImages`).

    Attributes:
        images: The training images of all clients.
        places: Places of the client's other images among these.
    """

    images: ImageDataset
    places: np.ndarray

    def of_class(self, label: int) -> Tensor:
        """Evenly chosen, at most as many as of a class of the whole data set; n may be 0."""
        mine = self.places[np.asarray(self.images.labels)[self.places] == label]
        most = most_of_class(self.images.images[0].numel())
        chosen = mine[np.arange(min(len(mine), most)) * len(mine) // max(1, min(len(mine), most))]
        found: Tensor = self.images.batch(chosen)[0]
        return found


class FederationTruth(TruthSource):
    """Recomputes the true batch of every (node, round) of one federation.

    Args:
        federation: Data and partitions, from the settings of the run.
        nodes: Flower's node id to the partition that this node held.
        path: Path of the file that it was read from, for messages.
    """

    def __init__(self, federation: Federation, nodes: Mapping[str, int], path: Path) -> None:
        self._federation = federation
        self._images = TrainingImages(federation.data.train)
        self._nodes = dict(nodes)
        self._path = path
        self.origin = str(path)
        self.exact = True

    @classmethod
    def read(cls, path: Path) -> FederationTruth:
        """Read an ``evaluation.json`` and load the data it speaks of.

        Raises:
            OSError: If there is no such file.
            ValueError: If it is damaged or something else, or its settings are not valid here.
            RuntimeError: If the data set is not on this machine.
        """
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{path} is not complete JSON ({error}); expected the evaluation.json of a fl-precode run"
            ) from error
        if not isinstance(content, dict) or content.get("format") != "fl-precode-evaluation":
            raise ValueError(f"{path} is not an evaluation file; expected the evaluation.json of a fl-precode run")
        if content.get("version") != 1:
            raise ValueError(
                f"{path} has version {content.get('version')!r}, and this fl-precode reads version 1; "
                "use the fl-precode version that ran the federation"
            )
        settings, nodes = content.get("settings"), content.get("nodes")
        if not isinstance(settings, dict) or not isinstance(nodes, dict):
            raise ValueError(f"{path} was altered: expected 'settings' and 'nodes', both tables")
        try:
            federation = partitioned(Settings.from_run_config(settings))
        except ValueError as error:
            raise ValueError(f"{path}: the truth cannot be recomputed from its settings: {error}") from error
        return cls(federation, _partitions(nodes, federation, path), path)

    @property
    def settings(self) -> dict[str, str | int | float | bool]:
        """Run-config of the federation, kebab-case keys."""
        return self._federation.settings.to_run_config()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by index."""
        names: tuple[str, ...] = self._federation.data.train.class_names
        return names

    def knows(self, entry: Located) -> bool:
        """Whether the partition of the update's node is known."""
        return entry.node in self._nodes

    def rank(self, node: str) -> str:
        """By the partition, which is the same client in every run of the same settings."""
        return f"{self._nodes[node]:09}" if node in self._nodes else super().rank(node)

    def partition_of(self, node: str) -> int:
        """The partition that a node held.

        Raises:
            ValueError: If the run had no such node.
        """
        if node not in self._nodes:
            raise ValueError(
                f"node {node!r} is not in {self._path}; the file is from another run, or no reply of this node was "
                f"usable. Known nodes: {', '.join(sorted(self._nodes)) or 'none'}"
            )
        return self._nodes[node]

    def check_tape(self, settings: Mapping[str, Any], nodes: set[str]) -> None:
        """Refuse a tape of another run.

        Args:
            settings: Public settings from the tape's header.
            nodes: Nodes with an update on the tape.

        Raises:
            ValueError: If a setting differs, or none of the tape's nodes is known.
        """
        differ = differing_settings(settings, self.settings)
        if differ:
            raise ValueError(f"{self._path} is from another run than the tape: {'; '.join(differ)}")
        if nodes and not nodes & self._nodes.keys():
            raise ValueError(
                f"{self._path} is from another run than the tape: none of the tape's nodes is in it; "
                "give the evaluation.json that was written beside this tape"
            )

    def truth(self, entry: Located) -> Truth:
        """The images and labels that a node used in a round.

        Raises:
            ValueError: If the run had no such node or round.
        """
        used = np.concatenate(self._used(entry))
        _, first = np.unique(used, return_index=True)
        train, places = self._federation.data.train, used[np.sort(first)]
        images, labels = train.batch(places)
        groups = {name: [column[place] for place in places] for name, column in train.groups.items()}
        return Truth(images=images, labels=labels, groups=groups)

    def steps(self, entry: Located) -> list[Truth]:
        """The batch of each local step of a node in a round, in order; one for FedSGD.

        Raises:
            ValueError: As `truth`.
        """
        return [
            Truth(images=images, labels=labels)
            for images, labels in map(self._federation.data.train.batch, self._used(entry))
        ]

    def classes(self, entry: Located) -> tuple[int, ...]:
        """Classes of the images that a node used in a round, each once, sorted.

        Raises:
            ValueError: As `truth`.
        """
        used = np.concatenate(self._used(entry))
        return tuple(sorted({int(label) for label in self._federation.data.train.labels[used]}))

    def client_images(self, entry: Located) -> OwnImages:
        """Those of the node's partition that it did not use in the round."""
        held = np.asarray(self._federation.partitions[self.partition_of(entry.node)])
        return OwnImages(self._federation.data.train, np.setdiff1d(held, np.concatenate(self._used(entry))))

    @cached_property
    def label_counts(self) -> Mapping[int, int]:
        """Number of training images of each label in the data set."""
        return Counter(self._federation.data.train.labels.tolist())

    def labels(self, entry: Located) -> Tensor:
        """Classes of the images that a node used in a round, each image once; no image is loaded.

        Raises:
            ValueError: As `truth`.
        """
        used = np.unique(np.concatenate(self._used(entry)))
        return torch.as_tensor(self._federation.data.train.labels)[torch.from_numpy(used)].long()

    def _used(self, entry: Located) -> list[np.ndarray]:
        partition_id, server_round = self.partition_of(entry.node), entry.round
        rounds = self._federation.settings.num_server_rounds
        if not 1 <= server_round <= rounds:
            raise ValueError(f"round {server_round} is not in {self._path}: the run had rounds 1 to {rounds}")
        return self._federation.batches(partition_id, server_round)

    def training_images(self) -> Truth:
        """The images of all clients, at most 4,096 of them, taken evenly."""
        indices = np.sort(np.concatenate(self._federation.partitions))
        chosen = indices[np.arange(min(len(indices), _MOST_TRAINED)) * len(indices) // min(len(indices), _MOST_TRAINED)]
        images, labels = self._federation.data.train.batch(chosen)
        return Truth(images=images, labels=labels)

    @property
    def mean_image(self) -> Tensor:
        """Mean of all training images, (channels, height, width) in [0, 1]: a guess that needs no update."""
        return self._images.mean_image

    def of_class(self, label: int) -> Tensor:
        """Different training images of a class."""
        return self._images.of_class(label)

    def candidates(self, labels: Collection[int | None], most: int, seed: int) -> dict[int | None, Candidates]:
        """Candidates among all training images, as often as the data set has them."""
        train = self._federation.data.train
        places = {label: drawn_places(train.labels, label, most, seed).tolist() for label in labels}
        return {label: Candidates.of(*train.batch(some)) for label, some in places.items()}

    def prints(self, entry: Located) -> frozenset[bytes]:
        """Fingerprints of the images that a node used in a round."""
        return frozenset(self._images.print_of(int(place)) for place in np.unique(np.concatenate(self._used(entry))))


def differing_settings(tape: Mapping[str, Any], file: Mapping[str, Any]) -> list[str]:
    """Settings that stand in both and differ, one phrase each; a run's seed and places are not on its tape.

    >>> differing_settings({"model": "mlp", "their-own": 1}, {"model": "lenet"})
    ["model is 'mlp' on the tape and 'lenet' in the file"]
    """
    return [
        f"{key} is {value!r} on the tape and {file[key]!r} in the file"
        for key, value in tape.items()
        if key in file and key not in _NOT_COMPARED and file[key] != value
    ]


def _partitions(nodes: Mapping[str, Any], federation: Federation, path: Path) -> dict[str, int]:
    clients = len(federation.partitions)
    wrong = [node for node, part in nodes.items() if not isinstance(part, int) or not 0 <= part < clients]
    if wrong:
        raise ValueError(
            f"{path} was altered: expected each node's partition to be a number from 0 to {clients - 1}, "
            f"got {nodes[wrong[0]]!r} for node {wrong[0]!r}"
        )
    return dict(nodes)
