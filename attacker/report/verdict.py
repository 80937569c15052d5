"""The verdicts of an audit as the page shows them; the rules are in `attacker.audit.verdict.verdict`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from attacker.audit.record.schema import AuditRecord, VerdictEntry, VerdictLine
from attacker.audit.record.view import confirmed, counterpart, is_defended, knows, views
from attacker.audit.verdict.lines import tried
from attacker.audit.verdict.verdict import title_of
from attacker.audit.verdict.verdict import verdicts as by_the_rules
from attacker.wording import counted, number_word

__all__ = ["Finding", "Verdict", "counterpart", "is_defended", "knows", "overall", "title_of", "verdicts"]


class Finding(StrEnum):
    """What an audit found about one federation; the value is the label that a reader sees."""

    LEAKS = "Leaks"
    LEAKS_ADAPTIVE = "Leaks to an adaptive attacker"
    LEAKS_IN_PART = "Leaks in part"
    NOT_SHOWN = "Not shown to leak"
    HELD = "Held against everything tried"
    NOT_KNOWN = "Not known"

    @property
    def leak(self) -> bool:
        """Whether images were reconstructed as a whole."""
        return self in (Finding.LEAKS, Finding.LEAKS_ADAPTIVE)

    @property
    def tone(self) -> str:
        """Name of the label's style."""
        if self.leak or self is Finding.LEAKS_IN_PART:
            return "leak"
        return "open" if self is Finding.HELD else "unknown"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The finding on one federation, in words.

    Attributes:
        federation: Its identifier.
        finding: What was found.
        sentence: Plain words.
        cautions: What a careful reader must know besides.
        control: Whether this is the undefended control of another federation.
        headline: What a page about this federation alone begins with; empty for the usual words of the finding.
        lines: The same in three lines that do not mix; empty where an older record has none.
        tried: What was tried on images, when, and what it cost; empty where nothing was.
    """

    federation: str
    finding: Finding
    sentence: str
    cautions: tuple[str, ...] = ()
    control: bool = False
    headline: str = ""
    lines: tuple[VerdictLine, ...] = ()
    tried: str = ""

    def begins(self, line: VerdictLine) -> str:
        """What stands on the page's first screen: the number, and why it is no all-clear where it is none."""
        if line.subject == "guarantees" or line.state in ("leaks in part", "not known"):
            return line.sentence
        # Why labels are not shown speaks of the guess, which is left out as well.
        reason = line.reason if line.subject == "images" else ""
        return " ".join(filter(None, (_first(line.sentence)[0], reason)))

    def goes_on(self, line: VerdictLine) -> str:
        """What the first screen leaves out: the comparison with a guess, and what was tried; empty without any."""
        about = self.tried if line.subject == "images" else ""
        begun = self.begins(line)
        rest = "" if line.sentence in begun else _first(line.sentence)[1]
        reason = "" if line.reason in begun else line.reason
        return " ".join(filter(None, (rest, reason, about)))

    def number(self, subject: str) -> str:
        """The first sentence of the line about images, labels or guarantees; empty where there is none."""
        return next((_first(line.sentence)[0] for line in self.lines if line.subject == subject), "")

    def said(self, line: VerdictLine) -> str:
        """A line's sentence with its reason, and what was tried."""
        about = self.tried if line.subject == "images" else ""
        return " ".join(filter(None, (line.sentence, line.reason, about)))


def _first(text: str) -> tuple[str, str]:
    """The first sentence, and the others.

    >>> _first("2 of 4 images (SSIM >= 0.6, p = 0.2). The best guess has none. So it is.")
    ('2 of 4 images (SSIM >= 0.6, p = 0.2).', 'The best guess has none. So it is.')
    """
    begin, _, rest = text.partition(". ")
    return (f"{begin}.", rest) if rest else (text, "")


def verdicts(record: AuditRecord) -> list[Verdict]:
    """One verdict for each federation, in the record's order; worked out where an older record has none."""
    known = {verdict.federation for verdict in record.verdicts} == {federation.id for federation in record.federations}
    tries = {view.federation.id: tried(view) for view in views(record)}
    controls = {federation.id for federation in record.federations if federation.control_of is not None}
    return [
        Verdict(
            federation=verdict.federation,
            finding=Finding(verdict.verdict.capitalize()),
            sentence=verdict.sentence,
            cautions=tuple(verdict.cautions),
            control=verdict.federation in controls,
            headline=_labels_first(verdict)
            or _identified_first(verdict)
            or (_headline(record, verdict.federation) if verdict.verdict == "not known" else ""),
            lines=tuple(verdict.lines),
            tried=tries.get(verdict.federation, ""),
        )
        for verdict in (record.verdicts if known else by_the_rules(record))
    ]


def _labels_first(verdict: VerdictEntry) -> str:
    """The first sentence where labels leak and no image was reconstructed; empty otherwise."""
    images = Finding(verdict.verdict.capitalize())
    leak = any(line.subject == "labels" and line.state == "leaks" for line in verdict.lines)
    if not leak or images.leak:
        return ""
    shown = "about the images nothing can be concluded" if images is Finding.NOT_KNOWN else "no image was reconstructed"
    if line := _identifying(verdict):
        shown += f", and {line.identified} of {line.identified_of} are identified among others"
    return f"This federation discloses the labels of its images; {shown}."


def _identifying(verdict: VerdictEntry) -> VerdictLine | None:
    """The line about images where some are identified and none was reconstructed; None otherwise."""
    return next((one for one in verdict.lines if one.subject == "images" and one.identified and not one.seen), None)


def _identified_first(verdict: VerdictEntry) -> str:
    """The first sentence where images are identified and none was reconstructed; empty otherwise."""
    line = _identifying(verdict)
    if line is None:
        return ""
    are = "is" if line.identified == 1 else "are"
    return (
        f"No image was reconstructed, and {line.identified} of {counted(line.identified_of or 0, 'image')} {are} "
        "identified among others from this federation's updates."
    )


def _headline(record: AuditRecord, federation: str) -> str:
    """The first sentence where attacks ran and the true images are not known; empty otherwise."""
    rows = [row for row in record.results if row.federation == federation and row.reconstruction is not None]
    if not rows or any(row.baseline_ssim is not None for row in rows):
        return ""
    images, sure = len({row.victim_id for row in rows}), len(confirmed(rows))
    if not sure:
        return (
            "Whether training images were reconstructed cannot be counted without the true ones: look at the pictures."
        )
    return (
        "Images were computed from this federation's updates, and the updates themselves confirm "
        f"{number_word(sure)} of {number_word(images)}."
    )


def overall(all_verdicts: Sequence[Verdict]) -> str:
    """The page's first sentence; controls do not count beside what they are controls of."""
    audited = [verdict for verdict in all_verdicts if not verdict.control] or list(all_verdicts)
    leaks, total = sum(verdict.finding.leak for verdict in audited), len(audited)
    held = sum(verdict.finding is Finding.HELD for verdict in audited)
    if total == 1:
        return audited[0].headline or _single(audited[0].finding)
    parts = [f"Training images were reconstructed from the updates of {_of_all(leaks, total)} federations audited"]
    if held:
        parts.append(f"{number_word(held)} held against everything tried, which is no proof of protection")
    if part := sum(verdict.finding is Finding.LEAKS_IN_PART for verdict in audited):
        parts.append(f"{number_word(part)} {'leaks' if part == 1 else 'leak'} in part")
    if open_ := sum(verdict.finding is Finding.NOT_SHOWN for verdict in audited):
        parts.append(f"{number_word(open_)} {'is' if open_ == 1 else 'are'} not shown to leak, on weak evidence")
    if rest := total - leaks - held - part - open_:
        parts.append(f"about {number_word(rest)} nothing can be concluded")
    return f"{'; '.join(parts)}."


def _of_all(some: int, total: int) -> str:
    """A number of two or more, as it is spoken.

    >>> _of_all(2, 2), _of_all(0, 2), _of_all(0, 3), _of_all(3, 3), _of_all(1, 3)
    ('both', 'neither of the two', 'none of the three', 'all three', 'one of the three')
    """
    if total == 2 and some != 1:
        return "both" if some else "neither of the two"
    if some == total:
        return f"all {number_word(total)}"
    return f"{number_word(some) if some else 'none'} of the {number_word(total)}"


def _single(finding: Finding) -> str:
    if finding is Finding.LEAKS_ADAPTIVE:
        return "An attacker who knows the defence reconstructs training images from this federation's updates."
    if finding.leak:
        return "Training images were reconstructed from this federation's updates."
    if finding is Finding.LEAKS_IN_PART:
        return "This federation leaks in part: no whole image was reconstructed, but attacks are nearer than any guess."
    if finding is Finding.HELD:
        return "The defence held against everything tried, which is no proof of protection."
    if finding is Finding.NOT_SHOWN:
        return "This federation is not shown to leak, on weak evidence."
    return "Nothing can be concluded about this federation."
