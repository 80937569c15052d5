"""A record with everything that a report can show, and its pictures: drawn, not audited."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from attacker.audit.record.schema import (
    AttackDescription,
    AuditRecord,
    Flag,
    ImageResult,
    InfluenceGroup,
    LayerLeakage,
    LeakageSummary,
    PlannedAttack,
    RoundResult,
    ThreatModel,
    VerdictEntry,
    VictimImage,
)
from tests.attacker.records import federation, record, summary

PLAIN = ("layerwise-inversion", "inverting-gradients:iterations=600", "dlg")
ADAPTIVE = ("ignore:iterations=600", "through-bottleneck")
_DEFENCES = {"f1": "none", "f2": "precode", "f3": "none"}
"""No defence, a defence, and the defence's undefended control."""


def rich_record(
    folder: Path, *, victims: int = 12, side: int = 32, nodes: tuple[str, ...] = ("7", "8", "9", "10"), rounds: int = 3
) -> AuditRecord:
    """Three federations, ``victims`` images of each, in colour, attacked by five attacks, in ``folder/images``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, rows = [], []
    for number in range(victims):
        truth = _scene(rng, side)
        for own, defence in _DEFENCES.items():
            place = {"federation": own, "round": number // len(nodes) % rounds + 1, "node": nodes[number % len(nodes)]}
            place["image"] = number // (len(nodes) * rounds)
            name = f"{own}-v{number}"
            picture = f"images/{name}-truth.png"
            _save(folder / picture, truth)
            label = {"label": number % 3, "label_name": f"class <b>{number % 3}</b>", "baseline": "images/mean.png"}
            images.append(VictimImage(id=name, truth=picture, **place, **label))
            rows += [
                _result(folder, name, place, spec, defence, truth, rng, number, rounds) for spec in _specs(defence)
            ]
    _save(folder / "images" / "mean.png", np.full((side, side, 3), 120.0))
    return _assemble(images, rows, rounds)


def _specs(defence: str) -> tuple[str, ...]:
    return PLAIN + ADAPTIVE if defence != "none" else PLAIN


def _scene(rng: np.random.Generator, side: int) -> np.ndarray:
    """A smooth picture with edges, (side, side, 3) in [0, 255]."""
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=float)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    disc = (x - rng.integers(side)) ** 2 + (y - rng.integers(side)) ** 2 < (side / 4) ** 2
    smooth[disc] = rng.integers(0, 256, 3)
    return smooth


def _save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, optimize=True)


def _result(
    folder: Path,
    name: str,
    place: dict[str, object],
    spec: str,
    defence: str,
    truth: np.ndarray,
    rng: np.random.Generator,
    number: int,
    rounds: int,
) -> ImageResult:
    weak = spec in PLAIN and defence != "none"
    noise = 90.0 if weak else 8.0 + 25.0 * float(rng.random()) + 10.0 * number / rounds / 12
    seen = truth + rng.normal(0, noise, truth.shape)
    picture = f"images/{name}-a{(PLAIN + ADAPTIVE).index(spec)}.png"
    _save(folder / picture, seen)
    ssim = 0.02 + 0.001 * (number % 50) if weak else max(0.05, 0.95 - noise / 60)
    mse = float(((np.clip(seen, 0, 255) - truth) ** 2).mean() / 255**2)
    figures = {"psnr": -10 * float(np.log10(mse)), "mse": mse, "baseline_ssim": 0.1, "label_accuracy": None}
    rest = {"matching_loss": 0.1, "seconds": 1.5, "iterations": 600, "starting_loss": 1.0, "late_fall": 0.001}
    return ImageResult(
        victim_id=name,
        attack=spec,
        model="lenet",
        defence=defence,
        dataset="faces",
        outcome="iteration_limit",
        reason="",
        ssim=ssim,
        reconstruction=picture,
        **place,
        **figures,
        **rest,
    )


def _assemble(images: list[VictimImage], rows: list[ImageResult], rounds: int) -> AuditRecord:
    accuracy = [RoundResult(round=r, accuracy=0.3 + 0.4 * r / rounds, loss=0.7, usable=4) for r in range(rounds + 1)]
    nothing = {"accuracy": [], "final_accuracy": None, "final_loss": None}
    known = {"shape": (3, 32, 32), "accuracy": accuracy, "rounds": rounds}
    federations = [
        federation("f1", final_accuracy=0.7, **known),
        federation("f2", "precode", final_accuracy=0.6, **known),
        federation("f3", control_of="f2", **(known | nothing)),
    ]
    sums = []
    for own in federations:
        for spec in _specs(own.defence):
            mine = [r.ssim or 0.0 for r in rows if r.federation == own.id and r.attack == spec]
            more = {"mean_ssim": float(np.mean(mine)), "median_ssim": float(np.median(mine))}
            sums.append(summary(own.id, spec, sum(one >= 0.6 for one in mine), len(mine), **more))
    answers = ["precode", "cvb"]
    return record(
        federations,
        sums,
        victims=images,
        results=rows,
        attacks=[AttackDescription(spec=one, description="an attack", adaptive=False) for one in PLAIN]
        + [AttackDescription(spec=one, description="an attack", adaptive=True, answers=answers) for one in ADAPTIVE],
        threat_model=ThreatModel(
            name="Parameter-Aware Eavesdropper, labels granted",
            granted=["labels", "batch-size", "defence"],
            withheld=["buffers", "learning-rate", "auxiliary-data"],
        ),
        **_evidence(),
    )


def _evidence() -> dict[str, object]:
    doubt = "The distance of 5 of 12 searches was still falling at their end"
    return {
        "plan": [
            *(_planned(own, one) for own, defence in _DEFENCES.items() for one in _specs(defence)),
            _planned("f2", "spear", status="not_applicable", reason="the first layer is a Conv2d", iterations=None),
            _planned("f2", "hybrid", status="refused", reason="it needs auxiliary images", iterations=None),
            _planned("f2", "portfolio", status="over_budget", reason="it would take 20 minutes more", iterations=900),
        ],
        "flags": [
            Flag(federation="f2", name="still-falling", attack=one, sentence=f"{doubt} ({one}).") for one in PLAIN[1:]
        ]
        + [Flag(federation="f2", name="few-victims", attack=None, sentence="Only 12 images were attacked.")],
        "verdicts": [
            VerdictEntry(federation="f1", verdict="leaks", sentence="Undefended LeNet leaks.", cautions=[]),
            VerdictEntry(
                federation="f2",
                verdict="leaks to an adaptive attacker",
                sentence="LeNet with PRECODE leaks to an adaptive attacker.",
                cautions=["Only 12 images were attacked.", "The average image alone reaches SSIM >= 0.6 on 1 of them."],
            ),
            VerdictEntry(federation="f3", verdict="leaks", sentence="The control leaks.", cautions=[]),
        ],
        "leakage": [
            LeakageSummary(
                federation="f2",
                unknowns=3072,
                jacobian_rank=2900,
                unit_rmse=4.2,
                solubility=-120.5,
                layers=[
                    LayerLeakage(name="conv1", kind="Conv2d", unknowns=3072, rank=900),
                    LayerLeakage(name="classifier", kind="Linear", unknowns=768, rank=768),
                ],
                influence=[
                    InfluenceGroup(group="node", name="7", images=3, mean=0.2, largest=0.4),
                    InfluenceGroup(group="class", name="<i>face</i>", images=6, mean=0.1, largest=0.2),
                ],
                correlation=0.4,
                correlation_interval=(0.1, 0.6),
                reason="",
            )
        ],
    }


def _planned(
    own: str, attack: str, *, status: str = "run", reason: str = "", iterations: int | None = 600
) -> PlannedAttack:
    role = "adaptive" if attack not in PLAIN and own == "f2" else "plain"
    content = {"federation": own, "attack": attack, "role": role, "status": status, "reason": reason}
    return PlannedAttack.model_validate(content | {"updates": 12, "iterations": iterations, "expected_seconds": 40.0})
