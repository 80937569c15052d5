"""Panels of the page, one a federation: its verdict, the flags beside it, and the success of each attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from attacker import wording
from attacker.audit.record.channels import ReplyChannel
from attacker.audit.record.counting import strength
from attacker.audit.record.privacy import AttackBound, CanaryAudit
from attacker.audit.record.schema import (
    AttackSummary,
    AuditRecord,
    FederationSummary,
    ImageResult,
    PlannedAttack,
    RankSummary,
)
from attacker.audit.record.view import FederationView, Union, confirms
from attacker.metrics.places import LEVEL
from attacker.report.figures import Chart, Histogram, accuracy_chart, histogram
from attacker.report.verdict import Verdict, is_defended, knows, verdicts

# Below this many uses of an image, an accuracy says more about the start of training than about a defence.
_EARLY_IMAGES = 10_000


_LOSS_NAMED_BY = {
    "tape": "as it was announced",
    "auditor": "as the auditor named it",
    "nobody": "which is assumed: nobody named the loss that the clients minimise",
}


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """One attack on one federation: its success, plain or adaptive, and how similar its images are.

    Attributes:
        summary: Summary of the record.
        kind: Plain or adaptive.
        histogram: Histogram of SSIM; None without truth.
        alone: What can be said of it where the true images are not known.
        first: How many true images were first among their candidates by pixels; empty where none were known.
        named: The same as a sentence, by each measure, with its interval and what chance makes of it.
    """

    summary: AttackSummary
    kind: str
    histogram: Histogram | None
    alone: str = ""
    first: str = ""
    named: str = ""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One federation on the page.

    Attributes:
        federation: Its figures.
        name: Defence, for people.
        title: Model, images and defence, for people.
        control: Whether this is the undefended control of another federation.
        verdict: What was found; None for a control, which is no finding of its own.
        cautions: Cautions of the verdict, without those that are flags.
        flags: Reasons to distrust a low score: name, and its sentences.
        attacks: All that were asked for.
        union: What all of them together reconstructed; None where there are not several.
        best: The most successful attack of each kind, with the kind's name: plain, adaptive, undefended control.
        planned: What was planned for it, in the plan's order.
        bound: What no attack exceeds; None where nothing is promised and nothing measured.
        canaries: What canaries measured; None without canaries.
        channels: What replies hold beside the update; empty in older records.
    """

    federation: FederationSummary
    name: str
    title: str
    control: bool
    verdict: Verdict | None
    cautions: tuple[str, ...]
    flags: tuple[tuple[str, tuple[str, ...]], ...]
    attacks: tuple[AttackRow, ...]
    union: Union | None
    best: tuple[tuple[str, AttackSummary], ...]
    planned: tuple[PlannedAttack, ...]
    bound: AttackBound | None = None
    canaries: CanaryAudit | None = None
    channels: tuple[ReplyChannel, ...] = ()

    @property
    def loss_named(self) -> str:
        """Who named the loss that was replayed, for people; empty where none can be, and in older records."""
        return _LOSS_NAMED_BY.get(self.federation.loss_named_by or "", "")

    @property
    def all_reconstructed(self) -> bool:
        """Whether every image was reconstructed by some attack, so that no low score is there to be distrusted."""
        if self.union is not None:
            return self.union.success_rate == 1
        return any(row.summary.success_rate == 1 for row in self.attacks)


@dataclass(frozen=True, kw_only=True)
class ModelGroup:
    """All federations of one model on one data set, undefended first, each followed by its control.

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

    @property
    def audited(self) -> tuple[Panel, ...]:
        """Those that are no control."""
        return tuple(panel for panel in self.panels if not panel.control)


def model_groups(record: AuditRecord) -> list[ModelGroup]:
    """The whole page's federations, by model and images."""
    verdicts_by_id = {verdict.federation: verdict for verdict in verdicts(record)}
    by_model: dict[tuple[str, str | None], list[FederationSummary]] = {}
    for federation in record.federations:
        by_model.setdefault((federation.model, federation.dataset), []).append(federation)
    groups = []
    for (model, dataset), federations in by_model.items():
        title = wording.model_name(model) + (f" on {wording.dataset_name(dataset)}" if dataset else "")
        shown = _ordered(record, federations)
        audited = [summary for summary in shown if not is_control(record, summary)]
        groups.append(
            ModelGroup(
                title=title,
                panels=tuple(_panel(record, summary, verdicts_by_id.get(summary.id), title) for summary in shown),
                chart=accuracy_chart(audited),
                note=_accuracy_note(audited),
            )
        )
    return groups


def is_control(record: AuditRecord, federation: FederationSummary) -> bool:
    """Whether it is the undefended control of a federation of this record."""
    return federation.control_of is not None and any(other.id == federation.control_of for other in record.federations)


def _ordered(record: AuditRecord, federations: Sequence[FederationSummary]) -> list[FederationSummary]:
    shown = []
    for federation in sorted((summary for summary in federations if not is_control(record, summary)), key=is_defended):
        shown += [federation, *(summary for summary in federations if summary.control_of == federation.id)]
    return shown + [summary for summary in federations if summary not in shown]


def _panel(record: AuditRecord, federation: FederationSummary, verdict: Verdict | None, group: str) -> Panel:
    control = is_control(record, federation)
    name = wording.capitalised(wording.defence_name(federation.defence))
    if control:
        parent = next(candidate for candidate in record.federations if candidate.id == federation.control_of)
        name = f"Undefended control of {wording.defence_name(parent.defence)}"
    summaries = [summary for summary in record.summaries if summary.federation == federation.id]
    sentences: dict[str, list[str]] = {}
    for flag in record.flags:
        if flag.federation == federation.id:
            sentences.setdefault(flag.name, []).append(flag.sentence)
    flagged = {sentence for texts in sentences.values() for sentence in texts}
    return Panel(
        federation=federation,
        name=name,
        title=f"{group}, {name[:1].lower() + name[1:] if control or not is_defended(federation) else name}",
        cautions=tuple(caution for caution in verdict.cautions if caution not in flagged)
        if verdict is not None
        else (),
        control=control,
        verdict=None if control else verdict,
        flags=tuple((flag_name, tuple(dict.fromkeys(texts))) for flag_name, texts in sentences.items()),
        attacks=tuple(_attack_row(record, federation, summary) for summary in summaries),
        union=FederationView(record=record, federation=federation).together,
        best=tuple(_best(record, federation, summaries)),
        planned=tuple(planned for planned in record.plan if planned.federation == federation.id),
        bound=next((bound for bound in record.bounds if bound.federation == federation.id), None),
        canaries=next((found for found in record.canaries if found.federation == federation.id), None),
        channels=tuple(one for one in record.channels if one.federation == federation.id),
    )


def _attack_row(record: AuditRecord, federation: FederationSummary, summary: AttackSummary) -> AttackRow:
    rows = [row for row in record.results if row.federation == federation.id and row.attack == summary.attack]
    values = [row.ssim for row in rows if row.ssim is not None]
    kind = _kind(record, federation, summary.attack)
    ranks = summary.identification
    return AttackRow(
        summary=summary,
        kind=kind,
        histogram=histogram(values),
        alone=_alone(summary, rows),
        first=f"{ranks[0].first:.3g} of {ranks[0].images}" if ranks else "",
        named="; ".join(map(_named, ranks)),
    )


def _named(ranks: RankSummary) -> str:
    chance = "less than 0.001" if ranks.chance < LEVEL else f"{ranks.chance:.2g}"
    middle = "" if ranks.median_rank is None else f", median place {ranks.median_rank:,.4g}"
    return (
        f"by {ranks.measure} {ranks.first:.3g} of {ranks.images} first of {wording.count(ranks.candidates)} "
        f"({wording.interval(*ranks.first_interval)}){middle}, by chance {chance}"
    )


def _alone(summary: AttackSummary, rows: Sequence[ImageResult]) -> str:
    """What an attack came to where no true image is known."""
    parts = [f"{summary.images} attacked; without the truth nothing can be counted"]
    loss, start = (wording.middle(getattr(row, name) for row in rows) for name in ("matching_loss", "starting_loss"))
    if loss is not None:
        began = f" from {wording.distance(start)}" if start is not None else ""
        parts.append(f"matching loss{began}{' to' if began else ''} {wording.distance(loss)} (median)")
    if sure := sum(map(confirms, rows)):
        parts.append(f"the update itself confirms {wording.counted(sure, 'image')}")
    return "; ".join(parts)


def _kind(record: AuditRecord, federation: FederationSummary, spec: str) -> str:
    """Plain or adaptive; without a defence there is nothing to adapt to."""
    if not is_defended(federation):
        return "–"
    return "adaptive" if knows(record, federation, spec) else "plain"


def most_successful(summaries: Sequence[AttackSummary]) -> AttackSummary | None:
    """The attack that reconstructed the most images; None when none is known."""
    scored = [summary for summary in summaries if summary.successes is not None]
    return max(scored, key=lambda summary: strength(summary.successes, summary.images, summary.mean_ssim), default=None)


def _best(
    record: AuditRecord, federation: FederationSummary, summaries: Sequence[AttackSummary]
) -> list[tuple[str, AttackSummary]]:
    adaptive = [summary for summary in summaries if knows(record, federation, summary.attack)]
    controls = {other.id for other in record.federations if other.control_of == federation.id}
    kinds = (
        (
            "Best plain attack" if is_defended(federation) else "Best attack",
            [o for o in summaries if o not in adaptive],
        ),
        ("Best adaptive attack", adaptive),
        ("Undefended control", [summary for summary in record.summaries if summary.federation in controls]),
    )
    return [(name, best) for name, candidates in kinds if (best := most_successful(candidates)) is not None]


def images_used(federation: FederationSummary) -> int | None:
    """How often an image was used in training, over all clients and rounds; None when it is not known."""
    usable = [point.usable for point in federation.accuracy if point.usable is not None]
    if federation.protocol != "fedsgd" or federation.batch_size is None or not usable:
        return None
    return sum(usable) * federation.batch_size


def _accuracy_note(federations: Sequence[FederationSummary]) -> str:
    used = [images_used(federation) for federation in federations]
    known = [number for number in used if number is not None]
    if not known:
        return (
            "How many images the training has used is not known. Compare accuracies only once both have levelled off."
        )
    most = max(known)
    if most < _EARLY_IMAGES:
        return (
            f"These are first steps of training: it has used {wording.count(most)} images so far. Accuracy at this "
            "point says nothing about what the defence costs in use."
        )
    return f"The training has used {wording.count(most)} images. Compare accuracies only once both have levelled off."
