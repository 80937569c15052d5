"""True images beside what the attacks made of them, and the success of each attack, for one federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attacker.audit.record import AttackSummary, AuditRecord, FederationSummary, ImageResult, VictimImage
from attacker.report import words
from attacker.report.pictures import Embedder
from attacker.report.verdict import Verdict


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One picture, or a box that says why there is none.

    Attributes:
        title: Above it.
        alt: Text for those who do not see it.
        uri: The picture, or None.
        placeholder: In place of a picture.
        caption: Lines below it.
        came_back: Whether the image counts as come back; None for a truth or when it is not known.
    """

    title: str
    alt: str
    uri: str | None
    placeholder: str
    caption: tuple[str, ...] = ()
    came_back: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One federation on the page.

    Attributes:
        federation: Its figures.
        name: Defence, for people.
        verdict: What was found.
        victims: For each attacked image where it came from, and its tiles, the truth first.
        hidden: Attacked images that the page has no room for.
        absent: Attacks that fit no update of this federation, with the reason; they have no tiles.
        summaries: Success of each attack.
    """

    federation: FederationSummary
    name: str
    verdict: Verdict
    victims: tuple[tuple[str, tuple[Tile, ...]], ...]
    hidden: int
    absent: tuple[str, ...]
    summaries: tuple[AttackSummary, ...]


def panels(
    record: AuditRecord,
    federations: Sequence[FederationSummary],
    verdicts: Mapping[str, Verdict],
    embedder: Embedder,
    budget: int,
) -> list[Panel]:
    """The panels of some federations; each embeds at most about ``budget`` bytes of pictures."""
    fitting = {(one.federation, one.attack) for one in record.summaries if one.images}
    rows: dict[str, list[ImageResult]] = {}
    for row in record.results:
        if (row.federation, row.attack) in fitting:
            rows.setdefault(row.victim_id, []).append(row)
    return [_panel(record, federation, verdicts[federation.id], rows, embedder, budget) for federation in federations]


def _panel(
    record: AuditRecord,
    federation: FederationSummary,
    verdict: Verdict,
    rows: Mapping[str, Sequence[ImageResult]],
    embedder: Embedder,
    budget: int,
) -> Panel:
    own = [victim for victim in record.victims if victim.federation == federation.id]
    summaries = tuple(one for one in record.summaries if one.federation == federation.id)
    floor = embedder.budget - budget
    shown = []
    for victim in own:
        if embedder.budget <= floor:
            break
        several = federation.batch_size != 1
        shown.append(_victim_tiles(record, victim, rows.get(victim.id, []), embedder, several=several))
    return Panel(
        federation=federation,
        name=words.capitalised(words.defence_name(federation.defence)),
        verdict=verdict,
        victims=tuple(shown),
        hidden=len(own) - len(shown),
        absent=tuple(_absence(one) for one in summaries if not one.images),
        summaries=summaries,
    )


def _absence(summary: AttackSummary) -> str:
    reasons = "; ".join(summary.reasons) or "there was no image to attack"
    return f"{words.capitalised(words.attack_name(summary.attack))} does not apply: {reasons}"


def _victim_tiles(
    record: AuditRecord, victim: VictimImage, rows: Sequence[ImageResult], embedder: Embedder, *, several: bool
) -> tuple[str, tuple[Tile, ...]]:
    place = f"Round {victim.round}, client {words.short_node(victim.node)}"
    if several:
        place += f", image {victim.image + 1}"
    truth = Tile(
        title="True image",
        alt=f"True image: round {victim.round}, client {victim.node}, image {victim.image + 1}",
        uri=embedder.data_uri(victim.truth),
        placeholder="not known",
        caption=(victim.label_name or (f"class {victim.label}" if victim.label is not None else ""),),
    )
    return place, (truth, *(_attack_tile(record, victim, row, embedder) for row in rows))


def _attack_tile(record: AuditRecord, victim: VictimImage, row: ImageResult, embedder: Embedder) -> Tile:
    name = words.attack_name(row.attack)
    came_back = None
    if row.baseline_ssim is not None and row.outcome != "not_applicable":
        came_back = row.ssim is not None and row.ssim >= record.success_threshold
    return Tile(
        title=words.capitalised(name),
        alt=f"Reconstruction by {name}: round {victim.round}, client {victim.node}, image {victim.image + 1}",
        uri=embedder.data_uri(row.reconstruction),
        placeholder=_why_no_picture(row),
        caption=_caption(row),
        came_back=came_back,
    )


def _why_no_picture(row: ImageResult) -> str:
    if row.outcome == "not_applicable":
        return "does not apply"
    return "the attack failed" if row.outcome in ("failed", "diverged") else "no picture"


def _caption(row: ImageResult) -> tuple[str, ...]:
    if row.mse is not None:
        return (f"SSIM {words.figure(row.ssim)}", f"PSNR {words.decibels(row.psnr, row.mse)}")
    if row.outcome == "not_applicable" or row.matching_loss is None:
        return ()
    return (f"matching loss {words.figure(row.matching_loss, 3)}",)
