"""What one update gives away, by architecture, normalisation, mode, batch, local steps and image size: an honest map.

    OMP_NUM_THREADS=1 python -m benchmarks.architectures --out docs/results/architectures.json \\
        --page docs/results/architectures.md

One victim for each cell: two clients with images of their own are taped by the reference client's code, and one of the
two is audited by the real audit: by all formulas, and in *searched* cells by the same search everywhere, until the
budget ends. Labels are recovered from the tape besides, and what the equations of each layer determine is counted. A
budget is of the clock on the wall, as audits have it; seconds in the file are CPU seconds of this process.

A cell that stands in --out is not measured again: a run that was stopped goes on. ``--seconds`` begins no cell later
than that, ``--only TEXT`` takes the cells whose names hold it, and with ``--again`` measures them anew. What two cores
cannot answer is measured by ``--cells gpu --device cuda --budget 900``: cells that are not there, or were not searched
for want of time. Without ``--out`` cells are listed.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

import fl_precode as flp
from attacker.attacks.registry import ATTACKS
from attacker.attacks.selection import needs_defence
from attacker.audit.execution.machine import this_machine
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.record.counting import best_guess, counts
from attacker.audit.record.schema import AuditRecord, ImageResult
from attacker.labels.best import best_labels
from attacker.leakage.exactly_determined import position_rank, span_ranks
from attacker.leakage.rank import layer_ranks
from attacker.leakage.released import released
from attacker.victim import Victim
from benchmarks.simulated_tapes import Simulated, simulate
from benchmarks.transformers import photographs
from fl_precode.federation.config import Settings

logger = logging.getLogger("architectures")

Entry = dict[str, Any]

IMAGES: Final = 16
CLASSES: Final = 10
SEED: Final = 0
LARGE: Final = 224
SMALL: Final = 64
LOCAL_STEPS: Final = 4
LEARNING_RATE: Final = 0.01
SEARCH: Final = "inverting-gradients:iterations=300,learning_rate=0.1,total_variations=1e-6|1e-4"
"""Of the audit's plain search one start for each of two weights of the prior: what two cores can do everywhere."""
_MODELS: Final = "benchmarks.architecture_models"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the map.

    Attributes:
        network: As people call it.
        norm: Its normalisation, in words.
        model: Spec.
        mode: What clients normalise by: ``batch`` or ``buffers``; the same for networks without batch normalisation.
    """

    network: str
    norm: str
    model: str
    mode: str = "batch"


def _rows(name: str, network: str, factory: str) -> dict[str, Row]:
    """The three ways in which a convolutional network is normalised."""
    batch, group = (f"{_MODELS}:{factory}(norm='{norm}')" for norm in ("batch", "group"))
    return {
        f"{name} batch-norm": Row(network=network, norm="batch norm, training mode", model=batch),
        f"{name} running": Row(network=network, norm="batch norm, running statistics", model=batch, mode="buffers"),
        f"{name} group-norm": Row(network=network, norm="group norm", model=group),
    }


ROWS: Final[Mapping[str, Row]] = {
    "lenet": Row(network="LeNet (control)", norm="none", model="lenet"),
    **_rows("resnet20-4", "ResNet20-4", "residual_20"),
    **_rows("resnet18", "ResNet18", "residual_18"),
    **_rows("densenet121", "DenseNet121", "dense_121"),
    **_rows("efficientnet-b0", "EfficientNet-B0", "efficient_b0"),
    "efficientnet-b0 dropout": Row(
        network="EfficientNet-B0, dropout and depth",
        norm="batch norm, training mode",
        model=f"{_MODELS}:efficient_b0(random=1)",
    ),
    "convnext-tiny": Row(network="ConvNeXt-T", norm="layer norm", model=f"{_MODELS}:convnext"),
    "vit-b-32": Row(network="ViT-B/32", norm="layer norm", model=f"{_MODELS}:vit_b_32"),
    "vit-s": Row(network="ViT-S (patches of 8, at 224 of 16)", norm="layer norm", model=f"{_MODELS}:vit_s"),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One square of the map.

    Attributes:
        row: Name in `ROWS`.
        size: Height and width of the images, in pixels.
        batch: Images of the client.
        steps: Local steps on these images; with one the client sends a gradient.
        alter: ``swapped`` audits an update of the other client: a control.
        searched: Whether `SEARCH` runs as well as the formulas.
    """

    row: str
    size: int
    batch: int
    steps: int = 1
    alter: str = ""
    searched: bool = True

    @property
    def key(self) -> str:
        """Its name in the file."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        return " | ".join(
            [self.row, str(self.size), f"batch {self.batch}", steps, *([self.alter] if self.alter else [])]
        )


COLUMNS: Final = tuple(
    (size, batch, steps) for size in (SMALL, LARGE) for batch, steps in ((1, 1), (4, 1), (8, 1), (1, LOCAL_STEPS))
)
"""Size, batch and steps of the map's columns."""

_SEARCHED: Final = {
    "lenet": [(1, 1), (8, 1), (1, 4)],
    "vit-b-32": [(1, 1), (8, 1), (1, 4)],
    "vit-s": [(1, 1), (8, 1), (1, 4)],
    "resnet18 running": [(1, 1), (8, 1), (4, 1)],
    "resnet18 batch-norm": [(1, 1), (8, 1), (1, 4), (4, 1)],
    "resnet18 group-norm": [(1, 1), (8, 1), (1, 4)],
    "convnext-tiny": [(1, 1), (8, 1), (1, 4)],
    "efficientnet-b0 running": [(1, 1)],
    "efficientnet-b0 batch-norm": [(1, 1), (8, 1)],
    "efficientnet-b0 group-norm": [(1, 1)],
    "efficientnet-b0 dropout": [(1, 1)],
    "densenet121 running": [(1, 1)],
    "densenet121 batch-norm": [(1, 1), (8, 1)],
    "densenet121 group-norm": [(1, 1)],
    "resnet20-4 running": [(1, 1)],
    "resnet20-4 batch-norm": [(1, 1), (8, 1)],
    "resnet20-4 group-norm": [(1, 1)],
}
"""Batch and steps of the cells that two cores can search, at 64 pixels."""

_FORMULAS: Final = {
    "vit-b-32": [(1, 1), (8, 1), (1, 4)],
    "vit-s": [(1, 1), (8, 1), (1, 4)],
    "lenet": [(1, 1)],
    "resnet18 batch-norm": [(1, 1), (8, 1)],
    "resnet18 running": [(1, 1)],
    "densenet121 batch-norm": [(1, 1), (8, 1)],
    "efficientnet-b0 batch-norm": [(1, 1), (8, 1)],
    "convnext-tiny": [(1, 1), (8, 1)],
}
"""Batch and steps of the cells at 224 pixels in which the formulas and the labels are tried."""

_CONTROLS: Final = [("lenet", SMALL), ("vit-b-32", SMALL), ("resnet18 running", SMALL)]


def cells(which: str) -> list[Cell]:
    """The cells for two cores (``cpu``), the most telling first; or all, with a search everywhere (``gpu``)."""
    if which == "gpu":
        return [Cell(row=row, size=size, batch=batch, steps=steps) for row in ROWS for size, batch, steps in COLUMNS]
    searched = [Cell(row=row, size=SMALL, batch=b, steps=s) for row, own in _SEARCHED.items() for b, s in own]
    formulas = [
        Cell(row=row, size=LARGE, batch=b, steps=s, searched=False) for row, own in _FORMULAS.items() for b, s in own
    ]
    controls = [Cell(row=row, size=size, batch=1, alter="swapped") for row, size in _CONTROLS]
    first = [cell for cell in searched if (cell.batch, cell.steps) == (1, 1)]
    return [*first, *controls, *formulas, *[cell for cell in searched if cell not in first]]


def formulas() -> tuple[str, ...]:
    """Attacks that solve equations and search for nothing, without those that answer a defence."""
    return tuple(name for name, entry in ATTACKS.items() if entry.exact and not needs_defence(name))


def photographs_of(size: int, folder: Path) -> Path:
    """The photographs as an ``npz`` data set; each label is borne by one or two of them."""
    images = torch.stack(list(photographs(IMAGES)))
    if size != LARGE:
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    labels = np.arange(IMAGES) % CLASSES
    path = folder / f"photographs-{size}.npz"
    np.savez(path, images=pixels, labels=labels, test_images=pixels[:2], test_labels=labels[:2])
    return path


def taped(cell: Cell, folder: Path) -> Simulated:
    """Two clients of the federation, each with a batch of its own, and what they sent."""
    row = ROWS[cell.row]
    local: dict[str, Any] = {"protocol": "fedavg", "local_steps": cell.steps} if cell.steps > 1 else {}
    settings = Settings(
        dataset=f"npz:{photographs_of(cell.size, folder)}",
        model=row.model,
        batch_norm=row.mode,
        batch_size=cell.batch,
        num_clients=IMAGES // cell.batch,
        num_server_rounds=1,
        learning_rate=LEARNING_RATE,
        seed=SEED,
        device="cpu",
        **local,
    )
    return simulate(folder / "run", settings, alter=cell.alter, clients=2)


def measured(cell: Cell, *, budget: float, device: str) -> Entry:
    """One cell: tape, audit, labels."""
    began, wall = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        simulated = taped(cell, folder)
        ready = time.process_time()
        record, searched = _audited(cell, folder, budget=budget, device=device)
        audited = time.process_time()
        found = {**_found(record), **_labels(record, simulated, cell)}
    return {
        "row": cell.row, "size": cell.size, "batch": cell.batch, "steps": cell.steps, "alter": cell.alter,
        "searched": searched, "budget": budget, "device": device, "date": time.strftime("%Y-%m-%d"),
        **found,
        "audit_cpu_seconds": round(audited - ready, 1),
        "cpu_seconds": round(time.process_time() - began, 1),
        "wall_seconds": round(time.perf_counter() - wall, 1),
    }  # fmt: skip


def _audited(cell: Cell, folder: Path, *, budget: float, device: str) -> tuple[AuditRecord, bool]:
    """The audit of a taped cell, and whether its search was made: it is not where the budget has no room for it."""

    def audit(attacks: Sequence[str], out: Path) -> AuditRecord:
        return flp.audit(
            folder / "run" / "tape",
            attacks=attacks,
            victims=1,
            budget=budget,
            seed=SEED,
            control=False,
            device=device,
            out=out,
        )

    if cell.searched:
        try:
            record = audit((*formulas(), SEARCH), folder / "audit")
        except ValueError as error:
            if "no room for any attack" not in str(error):
                raise
        else:
            return record, any(one.attack == SEARCH and one.iterations for one in record.results)
    return audit(formulas(), folder / "formulas"), False


def _found(record: AuditRecord) -> Entry:
    """What of an audit's record goes into the map."""
    best: dict[int, ImageResult] = {}
    for result in record.results:
        if result.ssim is not None and (
            result.image not in best or _rank(result, record) > _rank(best[result.image], record)
        ):
            best[result.image] = result
    images = [
        {
            "attack": _name(one.attack),
            "ssim": _short(one.ssim),
            "psnr": _short(one.psnr),
            "guess_ssim": _short(best_guess(one)),
            "guess": one.guess,
            "came_back": counts(one, record.success_threshold),
        }
        for _, one in sorted(best.items())
    ]
    (verdict,) = record.verdicts
    return {
        "came_back": sum(bool(one["came_back"]) for one in images),
        "best": images,
        "fits": sorted(_name(one.attack) for one in record.plan if one.status == "run" and not one.iterations),
        "refused": {
            _name(one.attack): list(one.reason_codes)
            for one in record.plan
            if one.status == "not_applicable" and ATTACKS[_name(one.attack)].exact and not needs_defence(one.attack)
        },
        "attempts": list(_attempts(record)),
        "flags": sorted({one.name for one in record.flags if one.weak}),
        "verdict": verdict.verdict,
    }


def _rank(result: ImageResult, record: AuditRecord) -> tuple[bool, float]:
    return counts(result, record.success_threshold), result.ssim or 0.0


def _attempts(record: AuditRecord) -> Iterator[Entry]:
    """A line for each attack that was made."""
    for attack in dict.fromkeys(one.attack for one in record.results):
        own = [one for one in record.results if one.attack == attack and one.outcome != "not_applicable"]
        if not own:
            continue
        made = [one for one in own if one.ssim is not None]
        yield {
            "attack": _name(attack),
            "spec": attack,
            "outcome": own[0].outcome,
            "codes": list(own[0].reason_codes),
            "iterations": own[0].iterations,
            "cut": own[0].cut,
            "ssim": _short(sum(one.ssim or 0.0 for one in made) / len(made)) if made else None,
            "came_back": sum(counts(one, record.success_threshold) for one in own),
            "starting_loss": _short(own[0].starting_loss),
            "matching_loss": _short(own[0].matching_loss),
        }


def _labels(record: AuditRecord, simulated: Simulated, cell: Cell) -> Entry:
    """Labels that are recovered from the attacked update, beside those of its batch."""
    attacked = record.victims[0].node
    subject = open_subject(TapeSource(tape=simulated.folder / "tape", truth=False))
    (entry,) = [one for one in subject.tape.entries if one.node == attacked]
    generator = torch.Generator().manual_seed(SEED)
    probes = 256 if cell.size == SMALL else 16  # images of noise that the model sees
    labels, how = best_labels(subject.victim, subject.tape.load(entry), generator=generator, probes=probes)
    (truth,) = [one.labels.tolist() for one in simulated.seen if one.node == attacked]
    if labels is None:
        return {"images": len(truth), "labels_right": 0, "labels_by": "", "labels_refused": str(how)}
    left, right = list(truth), 0
    for label in labels.tolist():
        if label in left:
            left.remove(label)
            right += 1
    return {"images": len(truth), "labels_right": right, "labels_by": how}


def equations(row: str, size: int) -> Entry:
    """What the layers' own equations leave open of one image, counted: the rank index of ``analyse``."""
    from fl_precode.models import InputSpec, build_model

    began = time.process_time()
    inputs = InputSpec(channels=3, height=size, width=size, classes=CLASSES, mean=(0.0,) * 3, std=(1.0,) * 3)
    victim = Victim(model=build_model(ROWS[row].model, inputs, seed=SEED).eval(), inputs=inputs, name=row)
    (image,) = photographs(1)
    pixels = F.interpolate(image[None], size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    of = released(victim, torch.tensor([0]))
    layers = layer_ranks(of, pixels, dense=0)
    positions, spans = position_rank(of, pixels), span_ranks(of, pixels)
    return {
        "positions": None if positions is None else {"rank": positions.rank, "patches": positions.patches},
        "spans": [{"first": one.first, "images": one.images, "each": one.each, "most": one.most} for one in spans],
        "layers": len(layers),
        "open": sum(layer.missing > 0 for layer in layers),
        "first": {"layer": layers[0].name, "unknowns": layers[0].unknowns, "missing": layers[0].missing},
        "missing": sum(layer.missing for layer in layers),
        "unknowns": sum(layer.unknowns for layer in layers),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def _name(spec: str) -> str:
    return spec.partition(":")[0]


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def measure(options: argparse.Namespace, content: Entry) -> None:
    """Run what is not in the file yet; it is written after each cell."""
    began = time.monotonic()
    content.setdefault("cells", {})
    content.setdefault("equations", {})
    wanted = chosen(cells(options.cells), options.only)
    for cell in wanted:
        if time.monotonic() - began > options.seconds:
            return
        if options.again or is_missing(cell, content, options.budget):
            logger.info("%s", cell.key)
            content["cells"][cell.key] = measured(cell, budget=options.budget, device=options.device)
            _write(content, options.out)
    for row, size in dict.fromkeys((cell.row, cell.size) for cell in wanted):
        if time.monotonic() - began > options.seconds:
            return
        if (counted := f"{row} | {size}") not in content["equations"] or options.again:
            content["equations"][counted] = equations(row, size)
            _write(content, options.out)


def is_missing(cell: Cell, content: Entry, budget: float) -> bool:
    """Whether the file does not have the cell, or has it without the search for which there is more time now."""
    known = content["cells"].get(cell.key)
    return known is None or bool(cell.searched and not known["searched"] and budget > known["budget"])


def chosen(wanted: Sequence[Cell], only: str) -> list[Cell]:
    """Those whose name holds a text.

    >>> [cell.key for cell in chosen(cells("cpu"), "lenet | 64 | batch 8")]
    ['lenet | 64 | batch 8 | 1 step']
    """
    return [cell for cell in wanted if only in cell.key]


def _write(content: Entry, out: Path) -> None:
    machine = this_machine()
    content |= {
        "measured": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "gpus": machine.gpus},
        "seed": SEED,
        "torch": torch.__version__,
    }
    out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", choices=("cpu", "gpu"), default="cpu", help="which cells")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--again", action="store_true", help="measure cells that are there, too")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no cell is begun")
    parser.add_argument("--budget", type=float, default=50.0, help="seconds of each audit")
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--page", type=Path, help="page that gets the tables; the picture goes beside it")
    parser.add_argument("--table", action="store_true", help="write the page from --out, and measure nothing")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if options.out is None:
        logger.info("%s", "\n".join(cell.key for cell in chosen(cells(options.cells), options.only)))
        return
    content = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    if not options.table:
        measure(options, content)
    if options.page is not None:
        from benchmarks.architecture_map import write_page

        write_page(content, options.page)


if __name__ == "__main__":
    main()
