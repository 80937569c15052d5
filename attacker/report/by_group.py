"""The section "By group": who was disclosed more often than others, and which images most of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.counting import comparable, counts
from attacker.audit.record.groups import LEVEL, group_disclosures
from attacker.audit.record.schema import (
    AuditRecord,
    DisclosedGroup,
    FederationSummary,
    GroupDisclosure,
    GroupShare,
    ImageResult,
    VictimImage,
)
from attacker.audit.verdict.group_flags import share_of, uneven_groups
from attacker.report.panels import Panel

MOST_IMAGES: Final = 10
"""Images of a federation that the list of the most disclosed ones has."""

MOST_ROWS: Final = 20
"""Groups that a table shows; the record has more."""

_WAYS: Final = ("reconstructed", "identified")
_NOT_TESTED: Final = {"one-trial": "not tested: one trial", "no-others": "not tested: no others", "": "–"}
_MANY: Final = {"class": "classes", "client": "clients", "column": "groups"}


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A line of a table.

    Attributes:
        name: Name of the group, for people.
        images: Attacked ones.
        reconstructed: Count, as in "3 of 8".
        success_rate: Share of them that was reconstructed.
        interval: Interval of that share.
        identified: Count, as in "3 of 8"; a dash where nobody could tell.
        against: What came of comparing it with the rest.
        uneven: Whether it was disclosed more often than the rest.
    """

    name: str
    images: int
    reconstructed: str
    success_rate: float
    interval: tuple[float, float]
    identified: str
    against: str
    uneven: bool


@dataclass(frozen=True, kw_only=True)
class GroupTable:
    """One way to group the images of a federation.

    Attributes:
        title: With the number of groups and images.
        head: Heading of the first column.
        rows: Most disclosed first; none where there is one group only.
        notes: What the table does not show, in sentences.
        identified: Whether images were told from candidates.
    """

    title: str
    head: str
    rows: tuple[GroupRow, ...]
    notes: tuple[str, ...]
    identified: bool


@dataclass(frozen=True, kw_only=True)
class DisclosedImage:
    """One of the most disclosed images.

    Attributes:
        place: Round, and place in the update.
        client: Whose it is.
        groups: Its class, and its groups in columns of the data set.
        attack: The one that came closest.
        reconstructed: Whether it counts as reconstructed.
        ssim: SSIM of that attack.
        rank: Place among candidates, for people; a dash where nobody compared.
    """

    place: str
    client: str
    groups: tuple[str, ...]
    attack: str
    reconstructed: bool
    ssim: str
    rank: str


@dataclass(frozen=True, kw_only=True)
class ByGroup:
    """What the section says of one federation.

    Attributes:
        title: Model, images and defence.
        uneven: A sentence for each group that was disclosed more often than the rest.
        otherwise: What is said where there is none.
        tables: By class, by client, by columns of the data set.
        images: The most disclosed ones.
    """

    title: str
    uneven: tuple[str, ...]
    otherwise: str
    tables: tuple[GroupTable, ...]
    images: tuple[DisclosedImage, ...]


def by_group(record: AuditRecord, panels: Sequence[Panel], *, redact: bool = False) -> list[ByGroup]:
    """What is said of each federation that is no control and was attacked; records from before are counted here.

    Args:
        record: The audit.
        panels: All federations of the page.
        redact: Say no group of a single image beyond its class and client, which stand beside its picture as well.
    """
    known = record.group_disclosures or group_disclosures(record)
    attacked = {row.federation for row in record.results}
    return [
        _of_federation(record, panel, [one for one in known if one.federation == panel.federation.id], redact)
        for panel in panels
        if not panel.control and panel.federation.id in attacked
    ]


def _of_federation(record: AuditRecord, panel: Panel, found: Sequence[GroupDisclosure], redact: bool) -> ByGroup:
    return ByGroup(
        title=panel.title,
        uneven=tuple(sentence for one in found for _, sentence, _ in uneven_groups(one)),
        otherwise=_otherwise(found),
        tables=tuple(_table(one, redact) for one in found),
        images=_most_disclosed(record, panel.federation, redact) if found else (),
    )


def _otherwise(found: Sequence[GroupDisclosure]) -> str:
    if not found:
        return "The true images are not known, so that nothing can be counted by group."
    tested = [
        f"no {'group by ' + one.column if one.grouping == 'column' else one.grouping}"
        for one in found
        if any(_tested(group) for group in one.groups)
    ]
    if not tested:
        return "No group can be compared with the rest: the images are of one group, or too few of each were attacked."
    return (
        f"{wording.capitalised(wording.joined(tested))} was disclosed more often than the rest by more than chance can "
        "explain. With few images this does not show that all are disclosed alike."
    )


def _tested(group: DisclosedGroup) -> bool:
    return any((share := share_of(group, way)) is not None and share.p_value is not None for way in _WAYS)


def _table(found: GroupDisclosure, redact: bool) -> GroupTable:
    head = found.column if found.grouping == "column" else wording.capitalised(found.grouping)
    images, by = wording.counted(found.images, "image"), f"By {found.column or found.grouping}: "
    many = wording.counted(found.of, "group" if found.grouping == "column" else found.grouping, _MANY[found.grouping])
    notes = []
    if found.of == 1:
        only = _name(found, found.groups[0], redact)
        notes.append(f"{by}{f'all {images} are' if found.images > 1 else 'the only image is'} of {only}.")
    shown = found.groups[:MOST_ROWS]
    if found.of > len(shown):
        notes.append(f"{wording.count(found.of - len(shown))} more, which were disclosed less, are not shown.")
    if found.ungrouped:
        notes.append(f"The group of {wording.counted(found.ungrouped, 'more image')} is not known.")
    return GroupTable(
        title=f"{by}{many}, {images}",
        head=head,
        rows=tuple(_row(found, group, redact) for group in shown) if found.of > 1 else (),
        notes=tuple(notes),
        identified=found.compared > 0,
    )


def _name(found: GroupDisclosure, group: DisclosedGroup, redact: bool) -> str:
    if found.grouping == "client":
        return f"client {wording.short_node(group.name)}"
    if found.grouping == "class":
        return f"class {group.name}" if group.name.isdigit() else group.name
    return "a group of one image" if redact and group.images == 1 else group.name


def _row(found: GroupDisclosure, group: DisclosedGroup, redact: bool) -> GroupRow:
    share = group.reconstructed
    name = _name(found, group, redact)
    return GroupRow(
        name=name if found.grouping == "column" else wording.capitalised(name),
        images=group.images,
        reconstructed=f"{share.disclosed} of {share.images}",
        success_rate=share.disclosed / share.images,
        interval=share.interval,
        identified="–" if group.identified is None else f"{group.identified.disclosed} of {group.identified.images}",
        against=_against(share, group.identified),
        uneven=any(one is not None and one.uneven for one in (share, group.identified)),
    )


def _against(share: GroupShare, identified: GroupShare | None) -> str:
    """What came of the test; that of identified images where it alone found something."""
    if identified is not None and identified.uneven and not share.uneven:
        return f"identified more often ({wording.chance(identified.corrected or 0.0)})"
    if share.corrected is None:
        return _NOT_TESTED[share.not_tested]
    chance = wording.chance(share.corrected)
    if share.corrected < LEVEL:
        return f"{'more' if share.uneven else 'less'} often ({chance})"
    return chance


def _most_disclosed(record: AuditRecord, federation: FederationSummary, redact: bool) -> tuple[DisclosedImage, ...]:
    """Images that come once, each by the attack that came closest: reconstructed, then identified, then by SSIM."""
    victims = {victim.id: victim for victim in record.victims if victim.federation == federation.id}
    best: dict[str, tuple[tuple[bool, bool, float], ImageResult]] = {}
    for row in record.results:
        if row.victim_id in victims and comparable(row) and row.ssim is not None:
            image = victims[row.victim_id].same_as or row.victim_id
            disclosed = counts(row, record.success_threshold), bool(row.identified), row.ssim
            if image not in best or disclosed > best[image][0]:
                best[image] = disclosed, row
    ranked = sorted(best.values(), key=lambda one: one[0], reverse=True)
    return tuple(_image(federation, victims, row, disclosed[0], redact) for disclosed, row in ranked[:MOST_IMAGES])


def _image(
    federation: FederationSummary, victims: Mapping[str, VictimImage], row: ImageResult, counted: bool, redact: bool
) -> DisclosedImage:
    victim = victims[row.victim_id]
    name = victim.label_name if victim.label_name and not victim.label_name.isdigit() else ""
    own = name or (f"class {victim.label}" if victim.label is not None else "")
    columns = () if redact else tuple(f"{column} = {group}" for column, group in sorted(victim.groups.items()))
    place = f"round {row.round}" + (f", image {row.image + 1}" if federation.batch_size != 1 else "")
    rank = "–"
    if row.rank is not None and row.candidates is not None:
        rank = f"{row.rank:,.6g} of {wording.count(row.candidates)}" + (", identified" if row.identified else "")
    return DisclosedImage(
        place=wording.capitalised(place),
        client=wording.short_node(row.node),
        groups=tuple(filter(None, (own, *columns))),
        attack=wording.capitalised(attack_title(row.method or row.attack)),
        reconstructed=counted,
        ssim=wording.figure(row.ssim),
        rank=rank,
    )
