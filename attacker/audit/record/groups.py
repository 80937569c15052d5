"""Disclosure by group of images: class, client, or a column of the data set. From records only.

Whether a group is disclosed more often than the rest goes by independent trials, as everything does
(`attacker.audit.record.trials`). Images of one update may stand or fall together, or take each other's place. So an
update that holds images of the group and others is a trial on one side of the comparison only: half of such updates
count for the group, the other half for the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from scipy.stats import fisher_exact

from attacker.audit.record.group_entries import DisclosedGroup, GroupDisclosure, Grouping, GroupShare
from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import AuditRecord, ImageResult, VictimImage
from attacker.audit.record.trials import originals, share_interval, trials
from attacker.audit.record.view import FederationView, views

LEVEL: Final = 0.05
"""Corrected probability below which a group is called uneven."""

MOST_GROUPS: Final = 100
"""Groups of one grouping that a record holds."""


class _Image(NamedTuple):
    """One attacked image, and what at least one attack made of it; None where that cannot be said."""

    victim: VictimImage
    row: ImageResult
    reconstructed: bool | None
    identified: bool | None


_Way = Callable[[_Image], bool | None]


class _Side(NamedTuple):
    """Images on one side of a comparison."""

    disclosed: int
    images: int
    trials: int


def group_disclosures(record: AuditRecord) -> list[GroupDisclosure]:
    """Disclosures by group of every federation that is no control: classes, clients, then columns by name.

    Nothing of a federation whose true images are not known.
    """
    return [found for view in views(record) if view.federation.control_of is None for found in disclosed_by_group(view)]


def disclosed_by_group(view: FederationView) -> list[GroupDisclosure]:
    """What was disclosed of one federation's images, by each way to group them."""
    images = _images(view)
    if not images:
        return []
    same = originals(image.victim for image in images)
    ways: list[tuple[Grouping, str, Callable[[VictimImage], str]]] = [
        ("class", "", _class_of),
        ("client", "", lambda victim: victim.node),
    ]
    columns = sorted({name for image in images for name in image.victim.groups})
    ways += [("column", column, partial(_group_in, column)) for column in columns]
    return [
        found
        for grouping, column, group_of in ways
        if (found := _disclosure(view, images, same, grouping, column, group_of)) is not None
    ]


def _class_of(victim: VictimImage) -> str:
    return victim.label_name or ("" if victim.label is None else str(victim.label))


def _group_in(column: str, victim: VictimImage) -> str:
    return victim.groups.get(column, "")


def _images(view: FederationView) -> list[_Image]:
    """The images that count in `FederationView.union`, in the order of the record."""
    own = [row for row in view.record.results if row.federation == view.federation.id]
    asked = {row.victim_id: row for row in own if row.baseline_ssim is not None}
    back = view.back()
    compared = {row.victim_id for row in own if row.candidates is not None}
    identified = identified_in(view)
    named = frozenset[str]() if identified is None else identified.victims
    return [
        _Image(
            victim,
            asked[victim.id],
            victim.id in back,
            victim.id in named if victim.id in compared else None,
        )
        for victim in view.record.victims
        if victim.federation == view.federation.id and victim.id in asked
    ]


def _disclosure(
    view: FederationView,
    images: Sequence[_Image],
    same: Mapping[str, str],
    grouping: Grouping,
    column: str,
    group_of: Callable[[VictimImage], str],
) -> GroupDisclosure | None:
    by_name: dict[str, list[_Image]] = {}
    for image in images:
        if name := group_of(image.victim):
            by_name.setdefault(name, []).append(image)
    if not by_name:
        return None
    known = [image for members in by_name.values() for image in members]
    reconstructed = _shares(by_name, same, lambda image: image.reconstructed)
    identified = _shares(by_name, same, lambda image: image.identified)
    groups = [
        DisclosedGroup(
            name=name, images=len(members), reconstructed=reconstructed[name], identified=identified.get(name)
        )
        for name, members in by_name.items()
    ]
    return GroupDisclosure(
        federation=view.federation.id,
        grouping=grouping,
        column=column,
        images=len(known),
        reconstructed=sum(bool(image.reconstructed) for image in known),
        compared=sum(image.identified is not None for image in known),
        identified=sum(bool(image.identified) for image in known),
        ungrouped=len(images) - len(known),
        of=len(groups),
        groups=sorted(groups, key=_most_disclosed)[:MOST_GROUPS],
    )


def _most_disclosed(group: DisclosedGroup) -> tuple[object, ...]:
    """Sorts groups: uneven ones first, then by the lower ends of the intervals; one of one is no more than 9 of 10."""
    shares = [share for share in (group.reconstructed, group.identified) if share is not None]
    uneven = any(share.uneven for share in shares)
    lowest = [-share.interval[0] for share in shares]
    number = int(group.name) if group.name.isdecimal() else 0
    return not uneven, lowest[0], lowest[-1], -group.images, number, group.name


def _shares(by_name: Mapping[str, Sequence[_Image]], same: Mapping[str, str], way: _Way) -> dict[str, GroupShare]:
    """What was disclosed of each group in one way; a group of which that cannot be said has none."""
    told = {name: [image for image in members if way(image) is not None] for name, members in by_name.items()}
    told = {name: members for name, members in told.items() if members}
    everything = [image for members in told.values() for image in members]
    total = trials((image.row for image in everything), same)
    shares: dict[str, GroupShare] = {}
    for name, members in told.items():
        mine = _side(members, same, way)
        share = GroupShare(
            images=mine.images,
            disclosed=mine.disclosed,
            trials=mine.trials,
            interval=share_interval(mine.disclosed, mine.images, mine.trials),
        )
        rest = _Side(0, 0, 0)
        if mine.trials > 1 and len(told) > 1:
            ids = {image.victim.id for image in members}
            mine, rest = _apart(
                mine, _side([image for image in everything if image.victim.id not in ids], same, way), total
            )
        shares[name] = share.model_copy(update=_tested(mine, rest))
    return _corrected(shares)


def _tested(group: _Side, rest: _Side) -> dict[str, object]:
    if group.trials < 2:
        return {"not_tested": "one-trial"}
    return {"p_value": _p_value(group, rest)} if rest.trials else {"not_tested": "no-others"}


def _side(images: Sequence[_Image], same: Mapping[str, str], way: _Way) -> _Side:
    return _Side(
        disclosed=sum(bool(way(image)) for image in images),
        images=len(images),
        trials=trials((image.row for image in images), same),
    )


def _apart(group: _Side, rest: _Side, total: int) -> tuple[_Side, _Side]:
    """Both sides with trials of their own: of those that they share each has one half.

    >>> sides = _apart(_Side(4, 8, 8), _Side(20, 56, 8), 8)
    >>> [side.trials for side in sides]
    [4, 4]
    """
    shared = group.trials + rest.trials - total
    return group._replace(trials=group.trials - shared // 2), rest._replace(trials=rest.trials - (shared - shared // 2))


def _p_value(group: _Side, rest: _Side) -> float:
    """Fisher's exact test of two shares, each as a number of its trials; rounded towards each other.

    >>> f"{_p_value(_Side(9, 10, 10), _Side(4, 30, 30)):.1g}"
    '2e-05'
    """
    higher = group.disclosed * rest.images > rest.disclosed * group.images
    mine, others = _whole(group, up=not higher), _whole(rest, up=higher)
    if (mine * rest.trials > others * group.trials) != higher:
        return 1.0  # rounded past each other: they differ by less than one trial
    table = [[mine, group.trials - mine], [others, rest.trials - others]]
    return min(1.0, float(fisher_exact(table).pvalue))


def _whole(side: _Side, *, up: bool) -> int:
    exact = side.disclosed * side.trials / side.images
    near = round(exact)
    if abs(exact - near) < 1e-9:
        return near
    return math.ceil(exact) if up else math.floor(exact)


def _corrected(shares: Mapping[str, GroupShare]) -> dict[str, GroupShare]:
    """With the probabilities for as many tests as there are (Holm), and what is uneven by them.

    Of two groups each is the other's rest, and their tests are one.
    """
    tested = sorted((share.p_value, name) for name, share in shares.items() if share.p_value is not None)
    tests = 1 if len(shares) == 2 else len(tested)
    total = sum(share.images for share in shares.values())
    disclosed = sum(share.disclosed for share in shares.values())
    found, least = dict(shares), 0.0
    for place, (p_value, name) in enumerate(tested):
        least = max(least, min(1.0, p_value * max(1, tests - place)))
        share = shares[name]
        higher = share.disclosed * total > disclosed * share.images  # than all, and so than the rest
        found[name] = share.model_copy(update={"corrected": least, "uneven": higher and least < LEVEL})
    return found
