"""Figures and page of the comparison of analytic inversion with searches."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.execution.files import png_bytes
from attacker.audit.execution.machine import this_machine, versions
from attacker.audit.record.counting import counts
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.experiments.hybrid import figures
from attacker.experiments.hybrid.experiment import R_GAP, Inversion, Inversions, InvertedUpdates, Ranks, searches
from attacker.experiments.hybrid.summary import AttackFigures, InversionSummary, NetFigures
from attacker.experiments.precode.page import svg_uri, templates, write_outcome
from attacker.experiments.store import Store

SHOWN = 2
"""Images of each net on the page."""

Shot = tuple[bytes | None, float | None, bool]


def attack_name(spec: str) -> str:
    """The name in the papers, or ours.

    >>> attack_name("layerwise-inversion"), attack_name("then-refine:iterations=0")
    ('R-GAP (matrix-free)', 'Layer-wise, refined')
    """
    name = spec.partition(":")[0]
    paper_names = {R_GAP: "R-GAP (matrix-free)", "then-refine": "Layer-wise, refined", "hybrid": "Hybrid (ours)"}
    return paper_names.get(name, wording.capitalised(attack_title(spec)))


def finish_inversions(comparison: Inversions, folder: Path) -> tuple[InversionSummary, Path]:
    """Write ``results.json`` and the page.

    Returns:
        The figures, and where the page is.

    Raises:
        ValueError: If a piece is missing or was altered.
        OSError: If something cannot be written.
    """
    store = Store(folder)
    summary = summarise_inversions(comparison, store)
    pictures = {
        "nets": (svg_uri(figures.by_net(summary.nets, attack_name)), "PSNR by net and attack, as in the table below"),
    }
    if summary.noise:
        curve = "PSNR by standard deviation: " + "; ".join(
            f"{attack_name(row.attack)} at {row.std:g}: {wording.figure(row.psnr, 1)}" for row in summary.noise
        )
        pictures["noise"] = (svg_uri(figures.by_noise(summary.noise, attack_name)), curve)
    text = templates(attack_name=attack_name).get_template("inversions.html.j2")
    shown = text.render(s=summary, headline=headline(summary), pictures=pictures, gallery=_gallery(comparison, store))
    return summary, write_outcome(summary, shown, store.folder)


def summarise_inversions(comparison: Inversions, store: Store) -> InversionSummary:
    """The figures of a comparison whose pieces are all finished.

    Raises:
        ValueError: If a piece is missing or was altered.
    """
    pieces, scale = comparison.pieces(), comparison.scale
    made = {piece: store.result(piece, comparison.recipe(piece), piece.made) for piece in pieces}
    nets, noise = [], []
    for net in scale.nets:
        ranks = made.get(Inversion(net=net))
        known = ranks if isinstance(ranks, Ranks) else None
        nets.append(
            NetFigures(
                name=net,
                unknowns=known.unknowns if known else 0,
                rank=known.rank if known else 0,
                solubility=known.solubility if known else 0.0,
                missing=known.missing if known else [],
                attacks=[
                    _figures(piece, run)
                    for piece, run in made.items()
                    if isinstance(run, InvertedUpdates) and (piece.net, piece.part) == (net, "nets")
                ],
            )
        )
    noise = [
        _figures(piece, run)
        for piece, run in made.items()
        if isinstance(run, InvertedUpdates) and piece.part == "noise"
    ]
    counts = {spec.partition(":")[0]: spec.partition("iterations=")[2] for spec in scale.attacks}
    return InversionSummary(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        scale=scale.name,
        data=comparison.data,
        attacks=list(scale.attacks),
        nets=nets,
        noise=noise,
        settings={
            "seed": comparison.seed,
            "images": scale.images,
            "dlg_iterations": counts.get("dlg", ""),
            "cosine_iterations": counts.get("inverting-gradients", ""),
        },
        versions=versions(),
        machine=this_machine(),
        seconds=sum(result.seconds for result in made.values()),
    )


def _figures(piece: Inversion, run: InvertedUpdates) -> AttackFigures:
    values = [image.psnr for image in run.images if image.psnr is not None]
    alike = [image.ssim for image in run.images if image.ssim is not None]
    return AttackFigures(
        attack=piece.attack,
        std=piece.std,
        images=len(values),
        psnr=sum(values) / len(values) if values else None,
        least=min(values, default=None),
        most=max(values, default=None),
        each=values,
        ssim=sum(alike) / len(alike) if alike else None,
        cpu_seconds=sum(image.cpu_seconds for image in run.images) / len(run.images),
        reason=next((image.reason for image in run.images if image.psnr is None), ""),
    )


def headline(summary: InversionSummary) -> str:
    """The page's first sentence, from the figures."""
    ahead = exact = 0
    for net in summary.nets:
        best = {
            kind: max(
                (result.psnr for result in net.attacks if searches(result.attack) is kind and result.psnr is not None),
                default=0.0,
            )
            for kind in (True, False)
        }
        ahead += best[False] > best[True]
        exact += any(result.attack == R_GAP and (result.least or 0.0) > 60 for result in net.attacks)
    count = wording.number_word(len(summary.nets))
    return (
        f"On {wording.number_word(ahead)} of {count} nets equations come closer than searches from random pixels; on "
        f"{wording.number_word(exact)} they alone give every image exactly."
    )


def _gallery(comparison: Inversions, store: Store) -> list[tuple[str, bytes, list[Shot]]]:
    scale = comparison.scale
    truth, _ = comparison.truth(min(SHOWN, scale.images))
    rows = []
    pieces = [inversion for inversion in comparison.pieces() if inversion.attack and inversion.part == "nets"]
    for net in scale.nets:
        runs_by_attack = {}
        for piece in pieces:
            if piece.net == net:
                run = store.result(piece, comparison.recipe(piece), InvertedUpdates)
                runs_by_attack[piece.attack] = run, store.load(run.pictures) if run.pictures else {}
        for number, image in enumerate(truth):
            shots = [_shot(runs_by_attack.get(attack), number) for attack in scale.attacks]
            rows.append((net, png_bytes(image), shots))
    return rows


def _shot(outcome: tuple[InvertedUpdates, dict[str, Tensor]] | None, number: int) -> Shot:
    if outcome is None or str(number) not in outcome[1]:
        return None, None, False
    score = outcome[0].images[number]
    return png_bytes(outcome[1][str(number)][0].nan_to_num(0.0)), score.psnr, counts(score, SUCCESS_THRESHOLD)
