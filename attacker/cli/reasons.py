"""Attacks that do not run, as printed before or after an audit: the reason, and the remedy."""

from __future__ import annotations

import textwrap
import tomllib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from attacker.audit.record.schema import AssumptionEntry, AuditRecord, PlannedAttack

NOTHING_ATTACKED: Final = 3
"""Exit code of a command that found nothing that it could attack."""

_FOR_A_DEFENCE = "made for a defence that this federation does not have"


@dataclass(frozen=True)
class NotRun:
    """An attack that did not run.

    Attributes:
        attack: Its spec.
        reason: In the attack's or the planner's words.
        mends: Codes of what would let it run.
        optional: Whether nothing is missing where it does not run: it is made for another defence, or of other attacks.
    """

    attack: str
    reason: str
    mends: tuple[str, ...] = ()
    optional: bool = False


def not_run(planned: Iterable[PlannedAttack]) -> list[NotRun]:
    """Attacks of a plan that do not run; those of undefended controls are not counted again."""
    return [_of_plan(entry) for entry in planned if entry.status != "run" and not entry.federation.endswith("-control")]


def not_run_of_record(record: AuditRecord) -> list[NotRun]:
    """Attacks of a finished audit that gave nothing, those that turned out not to fit included."""
    planned = {(entry.federation, entry.attack) for entry in record.plan if entry.status != "run"}
    federation_ids = {federation.id for federation in record.federations if federation.control_of is None}
    gave_nothing = [
        NotRun(attack=summary.attack, reason="; ".join(summary.reasons) or "it has no image to attack")
        for summary in record.summaries
        if not summary.images
        and summary.federation in federation_ids
        and (summary.federation, summary.attack) not in planned
    ]
    return not_run(record.plan) + gave_nothing


def attacked(record: AuditRecord) -> int:
    """Attacks that were tried on at least one image, each on each federation; controls do not count."""
    federation_ids = {federation.id for federation in record.federations if federation.control_of is None}
    return sum(summary.images > 0 and summary.federation in federation_ids for summary in record.summaries)


def _of_plan(planned: PlannedAttack) -> NotRun:
    from attacker.attacks.registry import entry_of

    if planned.attack == "portfolio":
        return NotRun(attack=planned.attack, reason=planned.reason, mends=tuple(planned.mends), optional=True)
    optional = "defence" in entry_of(planned.attack).needs and not planned.mends and planned.role == "plain"
    reason = _FOR_A_DEFENCE if optional else planned.reason
    return NotRun(attack=planned.attack, reason=reason, mends=tuple(planned.mends), optional=optional)


def reason_lines(attacks: Sequence[NotRun], notes: Path | None, *, width: int) -> list[str]:
    """Why attacks did not run, the most important reason first, each with the line that mends it.

    What a line of the notes mends comes first, what blocks most attacks before the rest; what is merely made for
    something else comes last.

    Args:
        attacks: The attacks.
        notes: Notes of the tape, or None where there are several tapes.
        width: Columns.
    """
    from fl_precode.spec import spec_name

    groups: dict[tuple[tuple[str, ...], str], list[NotRun]] = {}
    for attack in attacks:
        groups.setdefault((attack.mends, "" if attack.mends else attack.reason), []).append(attack)
    lines: list[str] = []
    for (mends, reason), group in sorted(groups.items(), key=lambda item: _importance(*item)):
        names = ", ".join(dict.fromkeys(spec_name(member.attack) for member in group))
        text = f"not known: {_lacking(mends)}" if mends else reason
        if mends == ("budget",):
            text = "expected to take longer than the budget leaves"
        lines += wrapped(f"- {names}: {text}.", width, indent="  ")
        lines += mend_lines(mends, notes, indent="    ", width=width)
    return lines


def _importance(key: tuple[tuple[str, ...], str], attacks: Sequence[NotRun]) -> tuple[int, int]:
    from attacker.audit.record.mends import MENDS

    order = list(MENDS)
    mends, _ = key
    if mends == ("model",) or "input" in mends:
        return 0, -len(attacks)
    if mends and order.index(mends[0]) < order.index("withheld"):
        return 1, -len(attacks)
    if mends:
        return 3 + order.index(mends[0]), -len(attacks)
    return (100 if attacks[0].optional else 2), -len(attacks)


def _lacking(mends: Sequence[str]) -> str:
    from attacker.audit.record.mends import MENDS
    from attacker.wording import joined

    return joined([MENDS[code].lacking for code in mends if code in MENDS])


def mend_lines(mends: Sequence[str], notes: Path | None, *, indent: str = "  ", width: int = 80) -> list[str]:
    """The lines that mend something, or the options: where to write them, and what they mean."""
    from attacker.audit.record.mends import MENDS

    remedies = [MENDS[code] for code in mends if code in MENDS]
    toml = [remedy for remedy in remedies if remedy.line]
    lines: list[str] = []
    if toml:
        place = shown(notes) if notes is not None else "the notes beside each tape (TAPE.toml)"
        lines += wrapped(f"{indent}Add to {place}:", width, indent=indent)
        lines += toml_lines([(remedy.line, remedy.remark) for remedy in toml], notes, indent=f"{indent}    ")
    options = [remedy.option for remedy in remedies if remedy.option]
    if options:
        lines += wrapped(f"{indent}{'Or give' if toml else 'Give'} {' '.join(options)}.", width, indent=indent)
    return lines


def toml_lines(entries: Iterable[tuple[str, str]], notes: Path | None, *, indent: str) -> list[str]:
    """Lines as they are to stand in the notes: ``[protocol]`` once, after what stands before it.

    Args:
        entries: A line or lines of TOML, and a remark.
        notes: Where they shall stand; None where it is not known.
        indent: Before each line.
    """
    top: list[str] = []
    below: list[str] = []
    for text, remark in entries:
        first, *more = text.splitlines()
        place, rows = (below, more) if first.strip() == "[protocol]" else (top, [first, *more])
        place += [f"# {remark}:"] if remark else []
        place += rows
    if below:
        top += ["# below [protocol], which is there already:" if _has_protocol(notes) else "[protocol]", *below]
    return [f"{indent}{line}" for line in top]


def assumption_lines(assumption: AssumptionEntry, looked_at: int, notes: Path | None, width: int) -> list[str]:
    """One assumption as a list entry: the sentence, what would show it wrong, the line that settles it."""
    about = "" if assumption.updates == looked_at else f" ({assumption.updates} of {looked_at} updates looked at)"
    lines = wrapped(f"- {assumption.code}: {assumption.sentence}{about}", width, indent="  ")
    if assumption.doubt:
        lines += wrapped(f"  What would show it wrong: {assumption.doubt}", width, indent="  ")
    if assumption.line:
        lines += ["  To settle it:", *toml_lines([(assumption.line, "")], notes, indent="      ")]
    return lines


def _has_protocol(notes: Path | None) -> bool:
    try:
        return notes is not None and "protocol" in tomllib.loads(notes.read_text())
    except (OSError, ValueError):
        return False


def wrapped(text: str, width: int, *, indent: str = "") -> list[str]:
    """The text in lines of at most ``width`` columns; a name that is longer stays in one piece."""
    return textwrap.wrap(
        text, width=width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def end_of_nothing(error: ValueError) -> typer.Exit | None:
    """Say what a tape holds instead of updates, or what must be known before anything can be attacked.

    Returns:
        The exit that follows, code 3; None for other errors, and where neither a line of the notes nor secure
        aggregation is the reason.
    """
    from attacker.audit.inputs.nothing_to_attack import NothingToAttack
    from fl_precode.tape.notes import notes_path

    if not isinstance(error, NothingToAttack) or not (error.masked or error.mends):
        return None
    width = columns()
    why = str(error)
    if error.mends:
        why = f"the tape {shown(error.tape)} does not say {_lacking(error.mends)}"
    lines = wrapped(f"attacks: 0 run. {why[:1].upper()}{why[1:]}.", width)
    lines += mend_lines(error.mends, notes_path(error.tape.absolute()), width=width)
    typer.echo("\n".join(lines))
    return typer.Exit(NOTHING_ATTACKED)


def shown(path: Path) -> str:
    """The path as short as it can be typed here."""
    with suppress(ValueError):
        return str(path.absolute().relative_to(Path.cwd()))
    return str(path)


def columns() -> int:
    """Columns of the terminal, or of COLUMNS, or 80."""
    import shutil

    return max(40, shutil.get_terminal_size((80, 24)).columns)
