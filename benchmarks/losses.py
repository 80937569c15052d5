"""What attacks reconstruct from clients that minimise other losses, replayed by the right loss and by cross-entropy.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/losses.py --out docs/results/losses.json

Each federation of `photos` is a real run, of Flower's SuperLink and Ray's workers, and its tape is audited twice: with
the loss that it names, and with cross-entropy; one that stands in the file is not run again. The labels are granted, as
no recovery reads them under other losses. In the last federation, an app of its own, an image has several of four
classes or none: whether the number of its photograph is even, prime, has a loop and is above four.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fl_precode as flp
from attacker.audit.record.schema import AuditRecord
from deploy.simulation.launch import launch
from deploy.simulation.submission import RunOutcome, Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from fl_precode import TapeSource
from fl_precode.federation.config import Settings
from fl_precode.observation import CROSS_ENTROPY

logger = logging.getLogger("losses")

ROOT = Path(__file__).resolve().parents[1]
SEVERAL_APP = ROOT / "tests" / "apps" / "own" / "several_classes"

LOSSES = {
    "cross-entropy": CROSS_ENTROPY,
    "label smoothing": "torch.nn:CrossEntropyLoss(label_smoothing=0.2)",
    "class weights": "benchmarks.losses:class_weighted",
    "focal": "benchmarks.losses:focal",
    "BCE, one class an image": "torch.nn:BCEWithLogitsLoss",
}
SEVERAL = "BCE, several classes an image"


def class_weighted(scores: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with class weights from 0.1 to 3."""
    return F.cross_entropy(scores, labels, weight=torch.linspace(0.1, 3.0, scores.shape[1]).to(scores))


def focal(scores: Tensor, labels: Tensor) -> Tensor:
    """The focal loss (Lin et al., ICCV 2017) with gamma 2."""
    each = F.cross_entropy(scores, labels, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def federation(options: argparse.Namespace, loss: str) -> Settings:
    """The federation of one loss."""
    return Settings(
        dataset=options.dataset,
        model=options.model,
        num_clients=options.clients,
        num_server_rounds=options.rounds,
        batch_size=options.batch_size,
        loss=loss,
        seed=options.seed,
    )


def launched(folder: Path, options: argparse.Namespace, loss: str) -> TapeSource:
    """The tape of the reference app, run by Flower's SuperLink and Ray's workers.

    Raises:
        RuntimeError: If the run did not complete.
    """
    run = folder / "run"
    settings = replace(federation(options, loss), output_dir=str(run), tape=str(run / "tape"))
    check_completed(launch(settings, environment={"PYTHONPATH": str(ROOT)}))
    return TapeSource(tape=run / "tape")


def launched_several(folder: Path, options: argparse.Namespace) -> TapeSource:
    """The tape of an own app whose images have several classes or none, run likewise; its clients record the truth.

    Raises:
        RuntimeError: If the run did not complete.
    """
    app, tape = folder / SEVERAL_APP.name, folder / "tape"
    shutil.copytree(SEVERAL_APP, app, ignore=shutil.ignore_patterns("__pycache__"))
    size = options.batch_size
    config = folder / "run.toml"
    config.write_text(
        to_toml(
            {
                "tape": str(tape),
                "images": options.dataset,
                "batch-size": size,
                "images-per-client": size,
                "num-server-rounds": options.rounds,
            }
        )
    )
    with OwnedSuperLink(environment={"PYTHONPATH": str(ROOT)}) as superlink:
        clients = f"num-supernodes={options.clients}"
        check_completed(Submission(superlink.flwr, CONNECTION).run(app, config, federation=clients))
    if str(SEVERAL_APP) not in sys.path:  # the loss is imported by its name
        sys.path.insert(0, str(SEVERAL_APP))
    return TapeSource(tape=tape)


def check_completed(outcome: RunOutcome) -> None:
    """Refuse a run that failed.

    Raises:
        RuntimeError: If it did not complete; the text is the reason.
    """
    if not outcome.completed:
        raise RuntimeError(f"the federation failed: {outcome.reason}")


def audited(source: TapeSource, out: Path, options: argparse.Namespace) -> AuditRecord:
    """The record of one tape, labels granted."""
    return flp.audit(
        source,
        attacks=options.attacks,
        victims=options.clients * options.rounds,
        out=out,
        seed=options.seed,
        know=["labels"],
    )


def rows_of(record: AuditRecord, name: str, replayed: str) -> list[dict[str, Any]]:
    """What an audit found, one row for each attack."""
    found = []
    for one in record.summaries:
        results = [row for row in record.results if row.attack == one.attack]
        matched = [row.matching_loss for row in results if row.matching_loss is not None]
        found.append(
            {
                "loss": name,
                "replayed": replayed,
                "attack": one.attack,
                "images": one.images,
                "came_back": one.successes,
                "guess": one.guess_successes,
                "median_ssim": one.median_ssim,
                "mean_distance": sum(matched) / len(matched) if matched else None,
                "reasons": one.reasons,
                "flags": sorted({flag.name for flag in record.flags}),
                "assumptions": [entry.code for entry in record.federations[0].assumptions],
            }
        )
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run what does not stand in the file yet; the record that is written, after each federation."""
    wanted = ("dataset", "model", "clients", "rounds", "batch_size", "seed", "attacks")
    record = {
        "measured": time.strftime("%Y-%m-%d"),
        "flwr": version("flwr"),
        "settings": {key: getattr(options, key) for key in wanted},
        "losses": LOSSES,
        "rows": [],
    }
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        record = earlier if earlier["settings"] == record["settings"] else record
    rows: list[dict[str, Any]] = record["rows"]
    makers: dict[str, Callable[[Path], TapeSource]] = {
        name: partial(launched, options=options, loss=spec) for name, spec in LOSSES.items()
    }
    makers[SEVERAL] = partial(launched_several, options=options)
    for name, make in makers.items():
        if any(row["loss"] == name for row in rows):
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            source = make(folder)
            rows += rows_of(audited(source, folder / "right", options), name, "announced")
            if name != CROSS_ENTROPY:
                wrong = replace(source, loss=CROSS_ENTROPY)
                rows += rows_of(audited(wrong, folder / "wrong", options), name, CROSS_ENTROPY)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        logger.info("%s: done", name)
    return record


def table(record: dict[str, Any]) -> str:
    """The table of docs/results/losses.md."""
    lines = ["| clients minimise | replayed | attack | reconstructed images | median SSIM | mean distance |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in record["rows"]:
        attack = row["attack"].partition(":")[0]
        ssim = "-" if row["median_ssim"] is None else f"{row['median_ssim']:.2f}"
        distance = "-" if row["mean_distance"] is None else f"{row['mean_distance']:.1e}"
        came = "not compared" if row["came_back"] is None else f"{row['came_back']} of {row['images']}"
        lines.append(f"| {row['loss']} | {row['replayed']} | {attack} | {came} | {ssim} | {distance} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("losses.json"))
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", nargs="+", default=["idlg:iterations=300", "inverting-gradients:iterations=500"])
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    record = measure(options)
    logger.info("%s", table(record))


if __name__ == "__main__":
    main()
