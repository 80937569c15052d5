"""The flag about groups: images of a class, a client or a column's group disclosed more often than the rest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attacker.audit.record.flag_sentences import Found, raised_flag
from attacker.audit.record.group_entries import DisclosedGroup, GroupDisclosure, Grouping, GroupShare
from attacker.audit.record.view import FederationView
from attacker.wording import chance, counted, short_node

MOST_NAMED: Final = 5
"""Groups of one grouping that flags name, the surest first; the record marks all of them."""

_WHAT: Final[dict[Grouping, tuple[str, str]]] = {
    "class": ("class", "classes"),
    "client": ("client", "clients"),
    "column": ("group", "groups"),
}


def uneven_disclosure(view: FederationView) -> Iterator[Found]:
    """Groups that are disclosed more often than the rest, beyond chance."""
    for found in view.record.group_disclosures:
        if found.federation == view.federation.id:
            yield from uneven_groups(found)


def uneven_groups(found: GroupDisclosure) -> list[Found]:
    """A flag for each uneven group of one grouping, the surest first; it is of reconstructed images where these are."""
    ways = (("reconstructed", found.reconstructed, found.images), ("identified", found.identified, found.compared))
    uneven = [
        (share.corrected or 0.0, way, disclosed, images, group, share)
        for way, disclosed, images in ways
        for group in found.groups
        if (share := share_of(group, way)) is not None and share.uneven
        if way == "reconstructed" or not group.reconstructed.uneven
    ]
    uneven.sort(key=lambda one: one[0])
    return [
        raised_flag(
            "uneven-disclosure",
            group=group_name(found, group.name),
            way=way,
            some=share.disclosed,
            images=share.images,
            others=disclosed - share.disclosed,
            rest=images - share.images,
            chance=f"{chance(share.corrected or 0.0)}{_correction(found, way)}",
        )
        for _, way, disclosed, images, group, share in uneven[:MOST_NAMED]
    ]


def share_of(group: DisclosedGroup, way: str) -> GroupShare | None:
    """What was disclosed of a group in one way: reconstructed or identified."""
    return group.reconstructed if way == "reconstructed" else group.identified


def group_name(found: GroupDisclosure, name: str) -> str:
    """A group for people.

    >>> group_name(GroupDisclosure.model_construct(grouping="column", column="sex"), "f")
    'sex = f'
    """
    if found.grouping == "column":
        return f"{found.column} = {name}"
    return f"{found.grouping} {short_node(name) if found.grouping == 'client' else name}"


def _correction(found: GroupDisclosure, way: str) -> str:
    """For how many tests a probability was corrected, with a comma before it; empty where it is of one."""
    one, many = _WHAT[found.grouping]
    if found.of > len(found.groups):
        return f", corrected for all {many}"
    tests = sum(share is not None and share.corrected is not None for share in (share_of(g, way) for g in found.groups))
    return f", corrected for {counted(tests, one, many)}" if tests > 1 and found.of > 2 else ""
