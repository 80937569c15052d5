"""Parts of the audit record about labels: what updates disclose of them, apart from any image."""

from __future__ import annotations

from pydantic import Field

from attacker.audit.record.entry import Count, Entry, Identifier, Share


class LabelReading(Entry):
    """The labels that one update discloses to a server, and what a guess without the update gets right of them."""

    round: Count
    node: str
    images: Count | None = Field(description="behind the update; null when not revealed")
    method: str = Field(description="of label recovery, as in docs/explanation/labels.md; empty where none were read")
    counts: list[Count] = Field(description="images of each class as they were read; empty where none were")
    right: Count | None = Field(description="images whose class was read right; null without truth or labels")
    guess_right: Count | None = Field(
        description="images whose class the likeliest batch by class frequencies gets right; null likewise"
    )
    chance: Share | None = Field(
        description="probability that the best guess without this update has all labels right: the likeliest batch by "
        "class frequencies, or the labels of another update; null likewise"
    )
    same_as: Count | None = Field(
        default=None, description="place of the first update of this list with the same images; null for a first one"
    )
    reason: str = Field(default="", description="why no labels were read; empty otherwise")

    @property
    def exact(self) -> bool:
        """Whether all labels of the update were read right."""
        return self.right is not None and self.right == sum(self.counts)


class LabelDisclosure(Entry):
    """What the updates of one federation disclose of their labels. Images of one update stand or fall together."""

    federation: Identifier
    updates: list[LabelReading]
    known: Count = Field(description="labelled images beside the update's own that the class frequencies are of, least")
    read: Count = Field(description="updates of which labels were read")
    compared: Count = Field(description="of these, those whose true labels are known")
    exact: Count = Field(description="of these, those whose labels were all read right")
    independent: Count = Field(description="compared updates with images of their own: what interval and test go by")
    interval: tuple[Share, Share] | None = Field(
        description="95 % interval of the share of exact updates (Clopper-Pearson); null where none was compared"
    )
    guess: Share | None = Field(description="share of exact updates that the best guess is expected to have")
    p_value: Share | None = Field(
        description="probability of so many exact updates or more, if the updates said nothing of their labels"
    )
    images: Count = Field(description="behind the compared updates")
    right: Count = Field(description="of these, images whose class was read right")
    guess_right: Count = Field(description="of these, images whose class the guess by class frequencies gets right")
    p_ahead: Share | None = Field(
        description="probability that the reading has more labels right than that guess on so many updates or more, by "
        "chance (sign test); null where none was compared"
    )
