"""What attacks bring back from clients that minimise other losses, replayed by the right loss and by cross-entropy.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/losses.py --out docs/losses.json

Each federation of `photos` is taped with the reference client's code and audited twice: with the loss that the tape
names, and with cross-entropy; one that stands in the file is not run again. The labels are granted, as no recovery
reads them under other losses. In the last federation an image has several of four classes or none: whether the number
of its photograph is even, prime, has a loop and is above four.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fl_precode as flp
from attacker.audit.record.schema import AuditRecord
from benchmarks.simulated_tapes import simulate
from fl_precode import TapeSource
from fl_precode.federation.config import Settings
from fl_precode.federation.federation import prepare
from fl_precode.local_training import batch_gradient
from fl_precode.loss import criterion
from fl_precode.observation import CROSS_ENTROPY
from fl_precode.tape import TapeHeader, TapeWriter

logger = logging.getLogger("losses")

LOSSES = {
    "cross-entropy": CROSS_ENTROPY,
    "label smoothing": "torch.nn:CrossEntropyLoss(label_smoothing=0.2)",
    "class weights": "benchmarks.losses:class_weighted",
    "focal": "benchmarks.losses:focal",
    "BCE, one class an image": "torch.nn:BCEWithLogitsLoss",
}
SEVERAL = "BCE, several classes an image"
_EVEN, _PRIME, _LOOP, _LARGE = {0, 2, 4, 6, 8}, {2, 3, 5, 7}, {0, 6, 8, 9}, {5, 6, 7, 8, 9}


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


def attributes(labels: Tensor) -> Tensor:
    """(batch, 4) of zeros and ones: what is true of each number."""
    rows = [[int(number in one) for one in (_EVEN, _PRIME, _LOOP, _LARGE)] for number in labels.tolist()]
    return torch.tensor(rows)


def tape_attributes(folder: Path, options: argparse.Namespace) -> TapeSource:
    """A round of clients whose images have several classes, and the truth beside its tape."""
    settings = federation(options, LOSSES["BCE, one class an image"])
    whole = prepare(settings)
    inputs = replace(whole.data.inputs, classes=4)
    torch.manual_seed(options.seed)
    model = replace(whole, data=replace(whole.data, inputs=inputs)).model()
    protocol = settings.announced
    writer = TapeWriter(
        folder / "tape",
        TapeHeader(model=options.model, defence="none", kind="gradient", protocol=protocol, inputs=inputs),
    )
    images, rows, nodes, rounds = [], [], [], []
    loss = criterion(settings.loss, 4)
    assert loss is not None
    for number in range(1, options.rounds + 1):
        writer.write_round(number, {name: value.detach().numpy() for name, value in model.named_parameters()})
        step = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
        for client in range(options.clients):
            pixels, numbers = whole.data.train.batch(whole.batches(client, number)[0])
            sets = attributes(numbers)
            sent, _ = batch_gradient(model, (inputs.normalise(pixels), sets.float()), loss=nn.BCEWithLogitsLoss())
            arrays = {name: value.detach().numpy() for name, value in sent.items()}
            writer.write_observation(number, str(client + 1), arrays, batch_size=len(numbers), buffers=())
            step = {name: value + sent[name] / options.clients for name, value in step.items()}
            images.append(pixels.numpy())
            rows.append(sets.numpy())
            nodes += [str(client + 1)] * len(numbers)
            rounds += [number] * len(numbers)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value -= settings.learning_rate * step[name]
    truth = folder / "truth.npz"
    np.savez(truth, images=np.concatenate(images), labels=np.concatenate(rows), node=nodes, round=rounds)
    return TapeSource(tape=folder / "tape", truth=f"npz:{truth}")


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
    record = {"settings": {key: getattr(options, key) for key in wanted}, "losses": LOSSES, "rows": []}
    if options.out.exists():
        earlier = json.loads(options.out.read_text())
        record = earlier if earlier["settings"] == record["settings"] else record
    rows: list[dict[str, Any]] = record["rows"]
    makers: dict[str, Callable[[Path], TapeSource]] = {
        name: lambda folder, spec=spec: TapeSource(  # type: ignore[misc]
            tape=simulate(folder, federation(options, spec)).folder / "tape"
        )
        for name, spec in LOSSES.items()
    }
    makers[SEVERAL] = lambda folder: tape_attributes(folder, options)
    for name, make in makers.items():
        if any(row["loss"] == name for row in rows):
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            source = make(folder)
            rows += rows_of(audited(source, folder / "right", options), name, "announced")
            if name not in (CROSS_ENTROPY, SEVERAL):
                wrong = replace(source, loss=CROSS_ENTROPY)
                rows += rows_of(audited(wrong, folder / "wrong", options), name, CROSS_ENTROPY)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
        logger.info("%s: done", name)
    return record


def table(record: dict[str, Any]) -> str:
    """The table of docs/losses.md."""
    lines = ["| clients minimise | replayed | attack | images that came back | median SSIM | mean distance |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in record["rows"]:
        attack = row["attack"].partition(":")[0]
        ssim = "-" if row["median_ssim"] is None else f"{row['median_ssim']:.2f}"
        distance = "-" if row["mean_distance"] is None else f"{row['mean_distance']:.1e}"
        came = f"{row['came_back']} of {row['images']}"
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
