"""Part of the audit record about what a client's reply holds in clear beside its update."""

from __future__ import annotations

from pydantic import Field

from attacker.audit.record.entry import Count, Entry, Identifier


class ReplyChannel(Entry):
    """One thing that replies hold: what it was, who needs it, what it gave away, and how to drop it."""

    federation: Identifier
    channel: Identifier = Field(
        description="update, examples, loss, accuracy, label-counts, statistics, step-counters, records, metric or "
        "setting"
    )
    name: str = Field(description="as the replies call it")
    replies: Count = Field(description="attacked updates whose reply holds it")
    of: Count = Field(description="attacked updates")
    held: str = Field(description="what it held")
    needed_by: str = Field(description="who needs it")
    gave_away: str = Field(description="what a server learns from it, measured where that is possible")
    exact: Count | None = Field(
        default=None, description="replies of which it tells exactly what is said, compared with the truth; null if not"
    )
    compared: Count | None = Field(default=None, description="of so many that could be compared; null likewise")
    drop: str = Field(description="how to do without it")
