"""Image that a reconstruction is taken for among candidates of the same data set. For evaluation only.

The candidates of an image are the image itself and others of its class, drawn by lot, that are not in its update; of
all classes where its own has too few. Reconstructions of a batch are in the order that fits the truth best, which
`attacker.metrics.places.chance_of_first` allows for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from attacker.audit.truth.base import Truth, TruthSource
from attacker.audit.truth.best_guess import digest
from attacker.audit.truth.candidates import NO_CANDIDATES, Candidates
from attacker.metrics.feature_distance import FeatureNetwork, feature_distances, feature_network
from attacker.metrics.identification import crops, pixel_distances, place_of, reduced
from attacker.metrics.places import LEVEL, Place
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason, because, joined

FEWEST_OF_CLASS: Final = 20
"""Other images of its class below which those of all classes are candidates."""

_MOST_BEHIND: Final = 64
"""Images of one update at most, which are no candidates: so many more are drawn."""

_MOST_VALUES: Final = 1 << 27
"""Single-precision numbers that are kept of all classes' candidates, half a GiB; of many classes fewer are drawn."""

_VALUES_EACH: Final = 11_000
"""Of one candidate, about: its features are more than its pixels."""


class Pools:
    """The candidates of one federation's images, drawn once for it and its control.

    Args:
        source: Where images are known from.
        labels: Classes of the attacked images.
        candidates: Other images that each true one is told from, at most.
        seed: Other seeds, other images.
        by_features: Whether features are compared as well as pixels, where the network is installed.
        beside: Pools of the audit's other federations: where the same images were drawn, their features, which take
            most of the time of a comparison, are known from there.

    Attributes:
        most: Other images that each true one is told from, at most.
        late: Whether the time of the audit was up before all was compared.
        by_features: As given.
    """

    def __init__(
        self,
        source: TruthSource,
        labels: Collection[int],
        candidates: int,
        seed: int,
        *,
        by_features: bool = True,
        beside: Iterable[Pools] = (),
    ) -> None:
        self._source, self._seed, self.by_features = source, seed, by_features
        self._beside = list(beside)
        self._drawn: list[_Pool] = []
        self.most = min(candidates, max(FEWEST_OF_CLASS, _MOST_VALUES // (_VALUES_EACH * max(1, len(labels)))))
        self._labels = sorted(labels)
        self._of_all: _Pool | None = None
        self.late = False

    @cached_property
    def _of_class(self) -> Mapping[int | None, _Pool]:
        return self._draw(self._labels)

    def _draw(self, labels: Sequence[int | None]) -> dict[int | None, _Pool]:
        known = self._source.candidates(labels, self.most + _MOST_BEHIND, self._seed)
        pools = {label: self._known(_Pool(some)) for label, some in known.items()}
        self._drawn += pools.values()
        return pools

    def _known(self, pool: _Pool) -> _Pool:
        """The same pool as another federation drew it; this one where none did."""
        drawn = (known for pools in self._beside for known in pools._drawn)
        return next((known for known in drawn if known.is_same(pool)), pool)

    def of_class(self, label: int) -> _Pool:
        """Images of a class."""
        return self._of_class.get(label, _Pool(NO_CANDIDATES))

    def of_all(self) -> _Pool:
        """Images of all classes."""
        if self._of_all is None:
            self._of_all = self._draw([None])[None]
        return self._of_all


class _Pool:
    """Candidates with what is compared of them."""

    def __init__(self, candidates: Candidates) -> None:
        self.prints, self.labels = candidates.prints, candidates.labels
        self._images = candidates.images
        self._features: Tensor | None = None

    def is_same(self, other: _Pool) -> bool:
        """Whether both have the same images with the same labels, in the same order."""
        return self.prints == other.prints and torch.equal(self.labels, other.labels)

    def fits(self, image: Tensor) -> bool:
        """Whether its images have the form of this one, at the size at which they are compared."""
        return len(self.prints) > 0 and self._images.shape[1:] == image.shape

    @cached_property
    def crops(self) -> Tensor:
        """Crops of the pixels of each image."""
        return crops(self._images)

    def features(self, network: FeatureNetwork) -> Tensor | None:
        """Features of each image; None where the time for it is up."""
        if self._features is None and not time_is_up():
            self._features = network.features(self._images)
        return self._features


def network_for(images: Tensor) -> FeatureNetwork | None:
    """The network whose features are compared; None where it is not installed or does not take such images."""
    return feature_network() if images.shape[1] in (1, 3) else None


@dataclass(frozen=True, kw_only=True)
class _Among:
    """The candidates of one image of an update, besides itself.

    Attributes:
        pool: Pool that they are drawn from.
        places: Places of them in it, (n,).
        of_class: Which of them are of its class, (n,) bool.
        copies: Other images that are equal to it.
    """

    pool: _Pool
    places: Tensor
    of_class: Tensor
    copies: int

    @property
    def others(self) -> int:
        """How many they are."""
        return len(self.places) + self.copies

    @property
    def all_of_class(self) -> int:
        """Candidates of its class, the image itself included."""
        return int(self.of_class.sum()) + self.copies + 1


class LineUp:
    """The candidates of the images of one update.

    Args:
        pools: Pools of the federation.
        truth: Truth of the update.
    """

    def __init__(self, pools: Pools, truth: Truth) -> None:
        self._pools = pools
        self._images = reduced(truth.images)
        self._prints = behind = list(map(digest, truth.images))
        self._among = [
            self._chosen(pools, image, own, int(label), frozenset(behind))
            for image, own, label in zip(self._images, behind, truth.labels, strict=True)
        ]

    @staticmethod
    def _chosen(pools: Pools, image: Tensor, own: bytes, label: int, behind: frozenset[bytes]) -> _Among:
        among = _among(pools.of_class(label), image, own, label, behind, pools.most)
        if among.others >= min(FEWEST_OF_CLASS, pools.most):
            return among
        return _among(pools.of_all(), image, own, label, behind, pools.most)

    @property
    def fewest(self) -> int:
        """Candidates of its class, of the image that has the fewest; 1 is the image itself."""
        return min(among.all_of_class for among in self._among)

    def scores(self, images: Tensor | None) -> list[dict[str, Any]]:
        """For each image of the update the fields of its result that say whom it is taken for.

        Args:
            images: Reconstructions in the order of the truth, (images, channels, height, width) in [0, 1], not finite
                where there is none; None where there are none at all.
        """
        if time_is_up():
            self._pools.late = True
            return [{} for _ in self._among]
        fields = [
            {"candidates": among.others + 1, "candidates_of_class": among.all_of_class} if among.others else {}
            for among in self._among
        ]
        found = [] if images is None else torch.isfinite(images).flatten(1).all(dim=1).nonzero().flatten().tolist()
        there = [place for place in found if fields[place]]
        if images is None or not there:
            return fields
        pictures = reduced(images)
        self._by_pixels(pictures, there, fields)
        self._by_features(pictures, there, fields)
        return fields

    def _by_pixels(self, pictures: Tensor, there: Sequence[int], fields: list[dict[str, Any]]) -> None:
        places = {}
        for number in there:
            among, picture = self._among[number], pictures[number][None]
            own = float(pixel_distances(picture, crops(self._images[number][None])))
            others = pixel_distances(picture, among.pool.crops)[0, among.places]
            places[number] = _Placed(own, others, among)
        for number, placed in places.items():
            fields[number] |= {"rank": placed.place.rank, "rank_tied": placed.place.tied}
            fields[number]["rank_chance"] = placed.chance_in(len(places))

    def _by_features(self, pictures: Tensor, there: Sequence[int], fields: list[dict[str, Any]]) -> None:
        network = network_for(pictures) if self._pools.by_features else None
        if network is None:
            return
        places, truth = {}, network.features(self._images[there])
        for number, made, own in zip(there, network.features(pictures[there]), truth, strict=True):
            distance = float(feature_distances(made[None], own[None]))
            fields[number]["feature_distance"] = distance
            among = self._among[number]
            if (known := among.pool.features(network)) is None:
                self._pools.late = True
                return
            others = feature_distances(made[None], known)[0, among.places]
            places[number] = _Placed(distance, others, among)
        for number, placed in places.items():
            fields[number] |= {"feature_rank": placed.place.rank, "feature_tied": placed.place.tied}
            fields[number]["feature_chance"] = placed.chance_in(len(places))


class _Placed:
    """Where one image stands among all of its candidates, and among those of its class.

    What tells the class from the update says nothing of the image: chance goes by candidates of its class.
    """

    def __init__(self, own: float, others: Tensor, among: _Among) -> None:
        self.place: Place = place_of(own, others, among.copies)
        self.in_class: Place = place_of(own, others[among.of_class], among.copies)

    def chance_in(self, pictures: int) -> float:
        """Probability of such a place or a better one where this many pictures of an update follow the truth."""
        return min(1.0, pictures * self.in_class.chance)


def _among(pool: _Pool, image: Tensor, own: bytes, label: int, behind: frozenset[bytes], most: int) -> _Among:
    """Candidates of one image from a pool, without what is in its update; copies of the image are candidates."""
    copies, there = 0, []
    if pool.fits(image):
        copies = min(most, max(0, pool.prints.count(own) - 1))
        there = [place for place, known in enumerate(pool.prints) if known not in behind][: most - copies]
    places = torch.tensor(there, dtype=torch.int64)
    return _Among(pool=pool, places=places, of_class=pool.labels[places] == label, copies=copies)


def what_lacks(line_ups: Sequence[LineUp], candidates: int, *, late: bool) -> Reason:
    """Why nothing, or not everything, is said of whose images were reconstructed; empty where nothing lacks.

    Args:
        line_ups: Line-ups of the updates whose truth is known.
        candidates: That were asked for.
        late: Whether the time of the audit was up before all was compared.
    """
    if candidates == 0:
        return because("identification-left-out")
    if not line_ups:
        return because("identification-needs-truth")
    fewest = min(line_up.fewest for line_up in line_ups)
    lacks = [because("identification-needs-time")] if late else []
    if fewest == 1:
        lacks.append(because("identification-needs-others"))
    elif 1 / fewest >= LEVEL:
        lacks.append(because("identification-few", others=fewest - 1, needed=int(1 / LEVEL) + 1))
    if feature_network() is None:
        lacks.append(because("identification-no-features"))
    return joined(lacks, " ")
