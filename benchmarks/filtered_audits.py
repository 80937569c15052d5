"""Audits of a small federation behind a deployed filter: what is reconstructed, and what its canaries refute.

The updates are those of the reference client's own code, one local step of SGD, on a real tape; audits are the
project's. For `benchmarks.guarantees`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attacker.audit.audit import audit
from attacker.audit.federations.federation import open_federations
from attacker.audit.record.counting import best_guess, counts
from attacker.audit.record.privacy import CanaryAudit
from attacker.audit.record.schema import AuditRecord
from attacker.audit.record.view import views
from attacker.audit.scoring.canaries import canary_audit
from attacker.audit.settings import AuditSettings
from benchmarks.simulated_tapes import Simulated, simulate
from fl_precode import TapeSource
from fl_precode.federation.config import Settings
from fl_precode.privacy.released import released_by

IMAGES: Final = 8
"""Of one audit."""

POOL: Final = 1_000
"""Images of one audit's federation, those that are attacked among them: guesses without the update come from here."""

LEARNING_RATE: Final = 0.1
CANARIES: Final = 1_000

LARGE: Final = 1_000.0
"""Norm of a canary where the whole update is clipped: beside it the images take no place."""

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

Stage = tuple[str, ...]
"""Attacks that run together; a later stage runs only where the earlier ones did not reconstruct every image."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A filter, a model, and how many images are behind one update.

    Attributes:
        spec: Spec of the filter; ``none`` for a control.
        model: Its name.
        batch: 1 or more, a divisor of `IMAGES`.
    """

    spec: str
    model: str
    batch: int


def stages(case: Case, iterations: int, *, formulas: bool) -> list[Stage]:
    """Formulas, then searches; the MLP's first layer is inverted by its own formula, which costs next to nothing.

    Args:
        case: What is audited.
        iterations: Iterations of matching; the other search has half of them.
        formulas: Whether those that invert a convolutional model layer by layer, half a minute for eight images and
            more, are among them.
    """
    search = "inverting-gradients" if case.spec == "none" else "defence-matched"
    priors = "total_variation=1e-4" if case.model == "mlp" else "total_variations=1e-6|1e-4|1e-2"
    matching = f"{search}:preset=precode-paper,iterations={iterations},learning_rate=0.1,{priors}"
    searches = (matching, f"dlg:iterations={iterations // 2}")
    if case.model == "mlp":
        return [("first-layer", "activation-span"), searches]
    if case.batch > 1 or not formulas:
        return [searches]
    return [("layerwise-inversion",), ("then-refine", *searches)]


def measured(
    case: Case, seed: int, images: tuple[Pixels, Labels], iterations: int, *, formulas: bool = True
) -> dict[str, Any]:
    """One audit: what was reconstructed of `IMAGES` images, and what the canaries of another update refuted.

    Args:
        case: What is audited.
        seed: Seed of weights, partition, batches and attacks.
        images: (n, height, width, 3) bytes, and (n,) labels: `POOL` of them, or fewer.
        iterations: Iterations of the search.
        formulas: As of `stages`.
    """
    began = time.process_time()
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as control:
        folder = Path(place)
        settings = _settings(case, seed, images, folder)
        simulated = simulate(folder / "run", settings, clients=IMAGES // case.batch)
        row: dict[str, Any] = {
            "spec": case.spec, "model": case.model, "batch": case.batch, "seed": seed, "iterations": iterations,
            "as_it_was": _as_it_was(simulated, case, settings, Path(control)),
            **_came_back(folder, simulated, stages(case, iterations, formulas=formulas), seed),
        }  # fmt: skip
        if case.spec != "none":
            row["canaries"] = _canaries(case, settings, folder).model_dump(mode="json")
    row["cpu_seconds"] = round(time.process_time() - began, 1)
    return row


def _settings(case: Case, seed: int, images: tuple[Pixels, Labels], folder: Path) -> Settings:
    pixels, labels = images
    # Nobody measures an accuracy: a few of the same images serve as test images.
    few = {"test_images": pixels[:8], "test_labels": labels[:8]}
    np.savez(folder / "images.npz", images=pixels, labels=labels, **few)
    return Settings(
        dataset=f"npz:{folder / 'images.npz'}", device="cpu", model=case.model, defence=case.spec, protocol="fedavg",
        local_steps=1, num_server_rounds=1, num_clients=len(labels) // IMAGES, batch_size=case.batch,
        learning_rate=LEARNING_RATE, seed=seed,
    )  # fmt: skip


def _as_it_was(simulated: Simulated, case: Case, settings: Settings, folder: Path) -> float:
    """Share of the numbers of the first update that are not 0 and were sent as they were, but for rounding."""
    if case.spec == "none":
        return 1.0
    plain = simulate(folder / "plain", replace(settings, defence="none"), clients=1).seen[0]
    sent = simulated.seen[0]
    same, filled = 0, 0
    for name, value in plain.update.items():
        rounding = 2 * torch.finfo(value.dtype).eps * sent.parameters[name].abs()
        same += int(((value - sent.update[name]).abs() <= rounding)[value != 0].sum())
        filled += int((value != 0).sum())
    return same / max(1, filled)


def _came_back(folder: Path, simulated: Simulated, order: Sequence[Stage], seed: int) -> dict[str, Any]:
    """Of each image the best result of all attacks that ran, and what the best guess reaches without the update."""
    found: dict[str, dict[str, Any]] = {}
    tried: dict[str, dict[str, Any]] = {}
    for number, attacks in enumerate(order):
        record = audit(
            [TapeSource(tape=folder / "run" / "tape")],
            AuditSettings(attacks=attacks, victims=IMAGES, seed=seed, control=False),
            out=folder / f"audit-{number}", resumable=False,
        )  # fmt: skip
        _gather(record, found, tried)
        if found and all(one["back"] for one in found.values()):
            break
    return {
        "images": len(found) or IMAGES,
        "updates": len(simulated.seen),
        "back": sum(one["back"] for one in found.values()),
        "guessed": sum((one["guess_ssim"] or 0.0) >= record.success_threshold for one in found.values()),
        "threshold": record.success_threshold,
        "each": [
            [one["ssim"], one["by"], int(one["back"]), round(one["guess_ssim"] or 0.0, 4)] for one in found.values()
        ],
        "attacks": tried,
    }


def _gather(record: AuditRecord, found: dict[str, dict[str, Any]], tried: dict[str, dict[str, Any]]) -> None:
    (view,) = views(record)
    for row in view.compared:
        one = found.setdefault(row.victim_id, {"back": False, "ssim": None, "by": "", "guess_ssim": best_guess(row)})
        one["back"] |= counts(row, record.success_threshold)
        if row.ssim is not None and (one["ssim"] is None or row.ssim > one["ssim"]):
            one.update(ssim=round(row.ssim, 4), by=row.attack.partition(":")[0])
    for summary in record.summaries:
        tried[summary.attack] = {
            "images": summary.images, "back": summary.successes, "failed": summary.failed,
            "not_applicable": summary.not_applicable, "mean_ssim": summary.mean_ssim,
            "independent": view.independent(summary.attack), "codes": summary.reason_codes,
            "seconds": round(summary.seconds, 1),
        }  # fmt: skip


def _canaries(case: Case, settings: Settings, folder: Path) -> CanaryAudit:
    """What `CANARIES` canaries in one update refute; large ones where the whole update is clipped."""
    norm = 1.0 if released_by(case.spec) is None else LARGE
    told = replace(settings, canaries=f"count={CANARIES},norm={norm:g}")
    simulate(folder / "with-canaries", told, clients=1)
    source = TapeSource(tape=folder / "with-canaries" / "tape")
    plan = AuditSettings(attacks=("first-layer",), victims=1, control=False)
    (federation,) = open_federations([source], plan, folder / "controls")
    found = canary_audit(federation)
    assert found is not None
    return found


def images_of(pixels: Tensor, labels: Tensor, seed: int) -> tuple[Pixels, Labels]:
    """The images of one audit, none of which another audit has while there are enough."""
    places = [(seed * POOL + place) % len(labels) for place in range(min(POOL, len(labels) // IMAGES * IMAGES))]
    whole = (pixels[places].permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8)
    return whole.numpy(), labels[places].numpy()
