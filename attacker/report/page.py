"""The report: ``report/index.html``, one self-contained file made from an audit record and its pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.schema import AttackDescription, AttackSummary, AuditRecord
from attacker.audit.record.view import AGREES, lines_that_mend
from attacker.report.advice import advice
from attacker.report.by_group import by_group
from attacker.report.figures import Chart, error_chart, smallest_errors, trade_chart
from attacker.report.gallery import make_gallery
from attacker.report.glossary import GLOSSARY
from attacker.report.guarantees import guaranteed
from attacker.report.html import TEMPLATES, digest, environment, write_html
from attacker.report.indices import determined
from attacker.report.panels import ModelGroup, Panel, model_groups, most_successful
from attacker.report.pictures import Album
from attacker.report.repeat import command
from attacker.report.verdict import overall, verdicts

PAGE_NAME: Final = "index.html"
LIMIT: Final = 4_900_000
"""Characters of the page, pictures included: it stays below 5 MB."""
_REST = 300_000
"""Room for everything but the gallery."""


def render_page(record: AuditRecord, folder: Path, *, redact: bool = False) -> str:
    """The page as HTML text.

    Args:
        record: The audit.
        folder: Where ``audit.json`` lies; the pictures are found from there.
        redact: Embed blurred pictures in place of the true images and reconstructions; every number stays.
    """
    return render("page.html.j2", record, Album(folder, redact=redact), style="report.css.j2")


def render(template: str, record: AuditRecord, album: Album, *, style: str, **more: Any) -> str:
    """The page by one of its templates: the page itself, or one that extends it.

    Args:
        template: Its name.
        record: The audit.
        album: The page's pictures.
        style: Name of its style sheet.
        more: Further values for the template.
    """
    templates = environment(answered=_answered, mends=lines_that_mend)
    sheet = templates.get_template(style).render()
    script = (TEMPLATES / "gallery.js").read_text()
    return templates.get_template(template).render(
        # Both are files of this package; the policy names their digests, so that nothing else runs or styles the page.
        style=Markup(sheet),
        script=Markup(script),
        digest={"style": digest(sheet), "script": digest(script)},
        **_sections(record, album),
        **more,
    )


def _sections(record: AuditRecord, album: Album) -> dict[str, Any]:
    """What the sections of the page show."""
    groups = model_groups(record)
    panels = [panel for group in groups for panel in group.panels]
    titles = {panel.federation.id: panel.title for panel in panels if not panel.control}
    judged = [verdict for verdict in verdicts(record) if verdict.federation in titles]
    return {
        "record": record,
        "redact": album.redact,
        "overall": overall(judged),
        "advice": advice(record, judged),
        "groups": groups,
        "panels": panels,
        "audited": [panel for panel in panels if not panel.control],
        "guarantees": guaranteed(record, panels),
        "gallery": make_gallery(record, titles, album, LIMIT - _REST),
        "by_group": by_group(record, panels, redact=album.redact),
        "charts": _charts(record, groups),
        "leakage": determined(record, panels),
        "problems": _problems(record, panels, album),
        "command": command(record),
        "agrees": f"{AGREES:g}",
        "attacked": _attacked_updates(record),
        "glossary": GLOSSARY,
        "seconds": sum(summary.seconds for summary in record.summaries),
    }


def write_report(record: AuditRecord, *, folder: Path, out: Path, redact: bool = False) -> Path:
    """Write ``index.html``, readable by its owner only: it may show people's images.

    Args:
        record: The audit.
        folder: Where ``audit.json`` and ``images`` lie.
        out: Folder of the page; created.
        redact: Blur the pictures; see `render_page`.

    Returns:
        Absolute path of the page.

    Raises:
        OSError: If it cannot be written.
    """
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    return write_html(render_page(record, folder, redact=redact), out / PAGE_NAME)


def _attacked_updates(record: AuditRecord) -> dict[str, int]:
    """Federation to the number of its updates that were attacked."""
    return dict(
        Counter(
            federation
            for federation, _, _ in {(victim.federation, victim.round, victim.node) for victim in record.victims}
        )
    )


def _answered(attack: AttackDescription) -> str:
    """Which defences an attack takes into account, as a sentence."""
    if not attack.adaptive:
        return "It takes no account of a defence."
    if not attack.answers:
        return "It takes the defence into account."
    # A defence by its reference's settings is the same defence.
    same = {f"{defence}-reference" for defence in attack.answers}
    names = [defence for defence in attack.answers if defence not in same]
    return f"It takes into account: {wording.joined([wording.defence_name(defence) for defence in names])}."


def _charts(record: AuditRecord, groups: Sequence[ModelGroup]) -> dict[str, Any]:
    """Charts over all federations, with one style for each that is no control."""
    audited = [panel for group in groups for panel in group.audited]
    styles = {panel.federation.id: number for number, panel in enumerate(audited)}
    best = [
        (styles[panel.federation.id], panel.title, panel.federation, strongest)
        for panel in audited
        if (strongest := most_successful([row.summary for row in panel.attacks])) is not None
    ]
    steps = [wording.count(n) for n in sorted({p.federation.local_steps or 0 for p in audited} - {0})]
    charts: dict[str, Chart | None] = {
        "rounds": error_chart(smallest_errors(record, lambda _, number: number), styles, "round"),
        "steps": error_chart(
            smallest_errors(record, lambda federation, _: federation.local_steps), styles, "local steps"
        ),
        "trade": trade_chart(best),
    }
    return {**charts, "known_steps": wording.joined(steps)}


def _problems(record: AuditRecord, panels: Sequence[Panel], album: Album) -> list[tuple[str, list[str]]]:
    """Title and sentences of everything that went wrong, by federation; empty when nothing did."""
    problems = []
    for panel in panels:
        federation = panel.federation
        sentences = [f"Round {update.round}, client {update.node}: {update.reason}" for update in federation.left_out]
        sentences += [f"Tape: {problem}" for problem in federation.tape_problems]
        if federation.lost:
            sentences.append(f"Tape: {federation.lost} updates could not be recorded.")
        sentences += _attack_failures([row.summary for row in panel.attacks])
        if sentences:
            problems.append((panel.title, sentences))
    if album.problems:
        problems.append(("Pictures of this page", album.problems))
    return problems


def _attack_failures(summaries: Sequence[AttackSummary]) -> list[str]:
    return [
        f"{wording.capitalised(attack_title(row.attack))} failed on {row.failed} images: {'; '.join(row.reasons)}"
        for row in summaries
        if row.failed
    ]
