"""The report: ``report/index.html``, one self-contained file made from an audit record and its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from attacker.audit.record import AttackDescription, AttackSummary, AuditRecord, FederationSummary
from attacker.report import words
from attacker.report.figures import Chart, accuracy_chart
from attacker.report.gallery import Panel, panels
from attacker.report.glossary import GLOSSARY
from attacker.report.pictures import Embedder
from attacker.report.verdict import Verdict, is_defended, knows, overall, verdicts
from fl_precode.private_file import write_private

_TEMPLATES = Path(__file__).parent / "templates"
PAGE_NAME = "index.html"
# Below this many uses of an image, an accuracy says more about the start of training than about a defence.
_EARLY_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class ModelGroup:
    """All federations of one model on one data set, undefended first.

    Attributes:
        title: For people.
        panels: One for each federation.
        chart: Accuracy by round, or None when it is not known.
        note: What the accuracies are worth.
    """

    title: str
    panels: tuple[Panel, ...]
    chart: Chart | None
    note: str


def render_page(record: AuditRecord, folder: Path) -> str:
    """The page as HTML text.

    Args:
        record: The audit.
        folder: Where ``audit.json`` lies; the pictures are found from there.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = words
    environment.globals["kind"] = lambda federation, spec: _kind(record, federation, spec)
    environment.globals["answered"] = _answered
    embedder = Embedder(folder)
    found = verdicts(record)
    groups = _groups(record, found, embedder)
    return environment.get_template("page.html.j2").render(
        record=record,
        overall=overall(found),
        groups=groups,
        rows=[(group, panel) for group in groups for panel in group.panels],
        defended=[one for one in record.federations if is_defended(one)],
        problems=_problems(record, embedder),
        glossary=GLOSSARY,
        seconds=sum(one.seconds for one in record.summaries),
    )


def _kind(record: AuditRecord, federation: FederationSummary, spec: str) -> str:
    """Plain or adaptive; without a defence there is nothing to adapt to."""
    if not is_defended(federation):
        return "–"
    return "adaptive" if knows(record, federation, spec) else "plain"


def _answered(attack: AttackDescription) -> str:
    """Which defences an attack takes into account, as a sentence."""
    if not attack.adaptive:
        return "It takes no account of a defence."
    if not attack.answers:
        return "It takes the defence into account."
    return f"It takes into account: {words.joined([words.defence_name(one) for one in attack.answers])}."


def write_report(record: AuditRecord, *, folder: Path, out: Path) -> Path:
    """Write ``index.html``, readable by its owner only: it may show people's images.

    Args:
        record: The audit.
        folder: Where ``audit.json`` and ``images`` lie.
        out: Folder of the page; created.

    Returns:
        Absolute path of the page.

    Raises:
        OSError: If it cannot be written.
    """
    out = out.expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = out / PAGE_NAME
    write_private(path, render_page(record, folder).encode())
    return path


def _groups(record: AuditRecord, found: Sequence[Verdict], embedder: Embedder) -> list[ModelGroup]:
    by_model: dict[tuple[str, str | None], list[FederationSummary]] = {}
    for federation in record.federations:
        by_model.setdefault((federation.model, federation.dataset), []).append(federation)
    verdict_of = {verdict.federation: verdict for verdict in found}
    budget = embedder.budget // max(len(record.federations), 1)
    groups = []
    for (model, dataset), own in by_model.items():
        federations = sorted(own, key=is_defended)
        groups.append(
            ModelGroup(
                title=words.model_name(model) + (f" on {dataset}" if dataset else ""),
                panels=tuple(panels(record, federations, verdict_of, embedder, budget)),
                chart=accuracy_chart(federations),
                note=_accuracy_note(federations),
            )
        )
    return groups


def images_used(federation: FederationSummary) -> int | None:
    """How often an image was used in training, over all clients and rounds; None when it is not known."""
    usable = [one.usable for one in federation.accuracy if one.usable is not None]
    if federation.protocol != "fedsgd" or federation.batch_size is None or not usable:
        return None
    return sum(usable) * federation.batch_size


def _accuracy_note(federations: Sequence[FederationSummary]) -> str:
    used = [images_used(one) for one in federations]
    known = [one for one in used if one is not None]
    if not known:
        return (
            "How many images the training has used is not known. Compare accuracies only once both have levelled off."
        )
    most = max(known)
    if most < _EARLY_IMAGES:
        return (
            f"These are first steps of training: it has used {words.count(most)} images so far. Accuracy at this point "
            "says nothing about what the defence costs in use."
        )
    return f"The training has used {words.count(most)} images. Compare accuracies only once both have levelled off."


def _problems(record: AuditRecord, embedder: Embedder) -> list[tuple[str, list[str]]]:
    """Title and sentences of everything that went wrong, by federation; empty when nothing did."""
    found = []
    for federation in record.federations:
        own = [f"Round {one.round}, client {one.node}: {one.reason}" for one in federation.left_out]
        own += [f"Tape: {problem}" for problem in federation.tape_problems]
        if federation.lost:
            own.append(f"Tape: {federation.lost} updates could not be recorded.")
        own += _attack_failures([one for one in record.summaries if one.federation == federation.id])
        if own:
            title = f"{words.model_name(federation.model)} with {words.defence_name(federation.defence)}"
            found.append((title, own))
    if embedder.problems:
        found.append(("Pictures of this page", embedder.problems))
    return found


def _attack_failures(summaries: Sequence[AttackSummary]) -> list[str]:
    return [
        f"{words.capitalised(words.attack_name(one.attack))} failed on {one.failed} images: {'; '.join(one.reasons)}"
        for one in summaries
        if one.failed
    ]
