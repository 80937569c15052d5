"""Parts of the audit record about groups of images: what of each was disclosed, and where that is uneven."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from attacker.audit.record.entry import Count, Entry, Identifier, Share

Grouping = Literal["class", "client", "column"]


class GroupShare(Entry):
    """How many images of a group were disclosed in one way, and whether these are more than among the rest."""

    images: Count = Field(description="of the group, of which that can be said")
    disclosed: Count
    trials: Count = Field(description="independent ones among them: what the interval goes by")
    interval: tuple[Share, Share] = Field(
        description="95 % interval of the share that was disclosed (Clopper-Pearson), by independent trials: images of "
        "one update are one, equal images are one"
    )
    p_value: Share | None = Field(
        default=None,
        description="Fisher's exact test, two-sided, of the group against all other images, by independent trials of "
        "which an update is one on one side only; null where nothing was tested",
    )
    corrected: Share | None = Field(
        default=None, description="the same for as many tests as this grouping has (Holm); null likewise"
    )
    not_tested: Literal["", "one-trial", "no-others"] = Field(
        default="",
        description="why not: the group has one trial, or the others have none; empty where it was tested",
    )
    uneven: bool = Field(
        default=False, description="whether a larger share was disclosed than of the rest, and corrected is below 0.05"
    )


class DisclosedGroup(Entry):
    """The images of one group."""

    name: str = Field(description="of the class, its number where it has no name; the client's node; the group")
    images: Count
    reconstructed: GroupShare = Field(description="by at least one attack")
    identified: GroupShare | None = Field(
        default=None,
        description="by at least one attack, among candidates, by pixels or features; null where none were known",
    )


class GroupDisclosure(Entry):
    """What was disclosed of one federation's images, by one way to group them."""

    federation: Identifier
    grouping: Grouping = Field(description="by true class, by client, or by a column of the data set")
    column: str = Field(default="", description="name of the column; empty otherwise")
    images: Count = Field(description="attacked ones whose group is known")
    reconstructed: Count = Field(description="of these")
    compared: Count = Field(description="of these, those that were told from candidates")
    identified: Count = Field(description="of the compared ones")
    ungrouped: Count = Field(description="attacked images whose group is not known")
    of: Count = Field(description="groups")
    groups: list[DisclosedGroup] = Field(
        description="uneven ones first, then by what is sure to be disclosed of them; at most 100"
    )
