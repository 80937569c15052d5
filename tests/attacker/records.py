"""Records made by hand, for tests of what is said about them."""

from __future__ import annotations

from attacker.audit.record.schema import (
    AttackDescription,
    AttackSummary,
    AuditRecord,
    FederationSummary,
    ImageResult,
    LeftOut,
    Machine,
    RoundResult,
)
from attacker.audit.record.trials import share_interval

PLAIN, FIRST, ADAPTIVE = "inverting-gradients:iterations=9", "first-layer", "ignore"


def federation(identifier: str, defence: str = "none", *, model: str = "lenet", **changes: object) -> FederationSummary:
    content = {
        "id": identifier,
        "tape": "/runs/tape",
        "model": model,
        "defence": defence,
        "dataset": "faces",
        "shape": (1, 25, 25),
        "classes": 2,
        "protocol": "fedsgd",
        "local_steps": 1,
        "local_epochs": None,
        "learning_rate": 0.1,
        "batch_size": 1,
        "rounds": 2,
        "clients": 4,
        "updates": 8,
        "accuracy": [RoundResult(round=r, accuracy=0.5 + r / 10, loss=0.7, usable=4 if r else 0) for r in range(3)],
        "final_accuracy": 0.7,
        "final_loss": 0.7,
        "parameters": 606_930 if defence != "none" else 15_826,
        "parameters_undefended": 15_826,
        "payload_bytes": 2_427_720 if defence != "none" else 63_304,
        "payload_bytes_undefended": 63_304,
        "left_out": [],
        "tape_problems": [],
        "lost": 0,
        "truth_known": True,
        "truth_note": "",
        "labels": "granted",
        "settings": {"dataset": "faces"},
    }
    return FederationSummary.model_validate(content | changes)


def summary(identifier: str, attack: str, successes: int | None, images: int = 4, **changes: object) -> AttackSummary:
    known = successes is not None and images > 0
    content = {
        "federation": identifier,
        "attack": attack,
        "images": images,
        "not_applicable": 0,
        "failed": 0,
        "reasons": [],
        "successes": successes if known else None,
        "success_rate": successes / images if known else None,
        "interval": share_interval(successes, images, images) if known else None,
        "mean_ssim": 0.5 if known else None,
        "median_ssim": 0.5 if known else None,
        "baseline_successes": 0 if known else None,
        "label_accuracy": None,
        "seconds": 1.0,
    }
    return AttackSummary.model_validate(content | changes)


def record(federations: list[FederationSummary], summaries: list[AttackSummary], **changes: object) -> AuditRecord:
    content = {
        "created": "2026-01-01T00:00:00+00:00",
        "title": "An audit",
        "success_threshold": 0.6,
        "settings": {"labels": "granted", "victims": 4},
        "seeds": {"audit": 0},
        "versions": {"python": "3.11"},
        "machine": Machine(cpu="a processor", cores=2, memory_bytes=8_000_000_000, gpus=[]),
        "attacks": [
            AttackDescription(spec=spec, description="an attack", adaptive=spec == ADAPTIVE)
            for spec in dict.fromkeys(one.attack for one in summaries)
        ],
        "federations": federations,
        "victims": [],
        "results": [],
        "summaries": summaries,
    }
    return AuditRecord.model_validate(content | changes)


def each(identifier: str, attack: str, images: int = 64, **changes: object) -> list[ImageResult]:
    """As `rows`, every image in an update of its own, of a client of its own."""
    return rows(identifier, attack, images, **({"node": [str(number) for number in range(images)]} | changes))


def told(federations: list[FederationSummary], summaries: list[AttackSummary], **changes: object) -> AuditRecord:
    """A record whose results are those that its summaries tell of, each image in an update of its own.

    Results of an attack on a federation that are given as ``results`` take the place of those.
    """
    given = list(changes.pop("results", []))
    known = {(row.federation, row.attack) for row in given}
    made = [row for one in summaries if (one.federation, one.attack) not in known for row in _rows_of(one)]
    return record(federations, summaries, **({"results": [*given, *made]} | changes))


def _rows_of(one: AttackSummary) -> list[ImageResult]:
    back, flat = one.successes or 0, one.baseline_successes or 0
    known = one.successes is not None
    places = range(one.images)
    outcomes = ["failed" if place >= one.images - one.failed else "iteration_limit" for place in places]
    return each(
        one.federation,
        one.attack,
        one.images,
        outcome=outcomes,
        ssim=[(0.98 if place < back else 0.2) if known and outcomes[place] != "failed" else None for place in places],
        baseline_ssim=[(0.9 if place < flat else 0.1) if known else None for place in places],
    )


def left_out(node: str, reason: str) -> LeftOut:
    return LeftOut(round=1, node=node, reason=reason)


def rows(identifier: str, attack: str, images: int = 4, **changes: object) -> list[ImageResult]:
    """What one attack made of each image of one federation; a search that found its way, by default.

    A list as a value gives each image its own.
    """
    content = {
        "federation": identifier,
        "attack": attack,
        "model": "lenet",
        "defence": "none",
        "dataset": "faces",
        "round": 1,
        "node": "7",
        "image": 0,
        "outcome": "iteration_limit",
        "reason": "",
        "ssim": 0.2,
        "psnr": 12.0,
        "mse": 0.06,
        "baseline_ssim": 0.1,
        "label_accuracy": None,
        "matching_loss": 0.1,
        "seconds": 1.0,
        "iterations": 100,
        "reconstruction": None,
        "starting_loss": 1.0,
        "late_fall": 0.0,
        "starts": 2,
    }
    return [
        ImageResult.model_validate(
            content
            | {"victim_id": f"{identifier}-u{number}-i0"}
            | {key: value[number] if isinstance(value, list) else value for key, value in changes.items()}
        )
        for number in range(images)
    ]
