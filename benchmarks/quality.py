"""Quality of reconstructions, ours and research code's, on the same images, models, gradients and settings.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/quality.py --out quality.json --table quality.md \
        --images 8 --iterations 4800 --invertinggradients CHECKOUT --peer-images 2

Labels are granted to both. Images are reconstructed in any order within a batch and are matched by the smallest squared
error. What the JSON file already holds is not run again, so that a run can be stopped and taken up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacker.simulate import observe
from fl_precode import Victim
from fl_precode.attacks import GradientMatching, build_attack
from fl_precode.metrics import match_batch, psnr, ssim
from fl_precode.models import build_model
from images import first_images
from peers import InvertingGradients, load

OURS = "ours"
PEER = InvertingGradients.name
DLG, DEEP, BATCHES = "lenet:init=uniform", ("convnet", "resnet20:width=4"), ("lenet", "mlp")
MODELS = (DLG, *DEEP, *BATCHES)
# One step of the research code's L-BFGS is up to so many evaluations; ours counts evaluations.
EVALUATIONS = 20


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Model, steps of its training (0: untrained), attack, images of one client and which random start."""

    group: str
    model: str
    steps: int
    attack: str
    batch: int
    start: int = 0

    def __str__(self) -> str:
        state = f"trained {self.steps} steps" if self.steps else "untrained"
        start = f" | start {self.start}" if self.start else ""
        return f"{self.model} | {state} | {self.attack} | batch {self.batch}{start}"


def settings(options: argparse.Namespace) -> list[Setting]:
    """Everything that is compared, of the groups asked for."""
    adam = f"inverting-gradients:iterations={options.iterations}"
    lbfgs = f"idlg:iterations={EVALUATIONS * options.steps}"
    found = [Setting(group="dlg", model=DLG, steps=0, attack=lbfgs, batch=1)]
    for model in DEEP:
        for steps in (0, options.training_steps):
            found.append(Setting(group="deep", model=model, steps=steps, attack=adam, batch=1))
    for model in BATCHES:
        for batch in (4, 8):
            found.append(Setting(group="batches", model=model, steps=0, attack=adam, batch=batch))
    chosen = [one for one in found if one.group in options.groups and one.model in options.models]
    if not chosen:
        sys.exit(f"--models {' '.join(options.models)}: none of these is in --groups {' '.join(options.groups)}")
    return [replace(one, start=start) for one in chosen for start in range(options.starts)]


def build_victim(setting: Setting, options: argparse.Namespace) -> Victim:
    """The model, with the weights of a short training where the setting has it trained."""
    _, _, _, inputs = first_images(1)
    if not setting.steps:
        return Victim(model=build_model(setting.model, inputs, seed=0), inputs=inputs, name=setting.model)
    from training import cifar10, trained

    # The images to be found, the first ones, must not be among those that the model has seen.
    data = cifar10(skip=1000, test=1000)
    made = trained(setting.model, data, steps=setting.steps, seed=0, cache=options.weights)
    print(f"{setting.model}: accuracy {made.accuracy:.3f} on {len(data.test)} test images", file=sys.stderr)
    return Victim(model=made.model, inputs=inputs, name=setting.model)


def figures(victim: Victim, found: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """PSNR and SSIM of each image of a batch, in the order of the truth."""
    images = victim.inputs.denormalise(found).clamp(0, 1)
    images = images[match_batch(images, truth)]
    return {"psnr": [min(value, 999.0) for value in psnr(images, truth).tolist()], "ssim": ssim(images, truth).tolist()}


@dataclass(frozen=True)
class Cell:
    """One entry of the JSON file: who attacks which clients.

    Attributes:
        key: Says everything that the figures depend on.
        first: The first client.
        count: How many.
        attack: Attacks a victim's images and labels of these clients.
    """

    key: str
    first: int
    count: int
    attack: Callable[[Victim, Tensor, Tensor], list[dict[str, Any]]]


def cells(setting: Setting, peer: InvertingGradients | None, options: argparse.Namespace) -> Iterator[Cell]:
    """All clients together by ours, the first ones one by one by the research code."""
    clients = max(1, options.images // setting.batch)
    yield Cell(f"{setting} | {OURS} | {clients} clients", 0, clients, lambda *problem: ours(setting, *problem))
    for client in range(min(clients, options.peer_images) if peer is not None else 0):
        attack = partial(theirs, peer, setting, client)
        yield Cell(f"{setting} | {PEER} | client {client}", client, 1, attack)


def ours(setting: Setting, victim: Victim, images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """All clients together."""
    seen = observe(victim, victim.inputs.normalise(images), labels, batch_size=setting.batch)
    granted, truth = labels.split(setting.batch), images.split(setting.batch)
    attack = build_attack(setting.attack)
    generator = torch.Generator().manual_seed(setting.start)
    found = attack(victim, seen, generator=generator, labels=granted, progress=show(setting))
    return [
        {"matching_loss": one.matching_loss, "outcome": str(one.outcome), "reason": one.reason}
        | ({} if one.inputs is None else figures(victim, one.inputs, true))
        for one, true in zip(found, truth, strict=True)
    ]


def theirs(
    peer: Any, setting: Setting, client: int, victim: Victim, images: Tensor, labels: Tensor
) -> list[dict[str, Any]]:
    """One client."""
    (seen,) = observe(victim, victim.inputs.normalise(images), labels, batch_size=setting.batch)
    attack = build_attack(setting.attack)
    assert isinstance(attack, GradientMatching)
    torch.manual_seed(client + 1000 * setting.start)
    found = peer.reconstruct(victim, seen.update, labels, attack)
    if not bool(found.isfinite().all()):
        return [{"outcome": "diverged"}]
    return [figures(victim, found, images)]


def show(setting: Setting) -> Callable[[float, float | None], None]:
    """A progress line on a terminal."""

    def report(done: float, best: float | None) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{setting}: {done:4.0%}" + ("" if best is None else f" best {best:.2e}"))

    return report


def write_table(content: dict[str, Any], write: Callable[[str], object]) -> None:
    """Markdown: means over the clients that both attacked, over all of ours, and CPU seconds a client."""
    write(
        f"| setting | images compared | ours PSNR / SSIM | {PEER} PSNR / SSIM | ours, all images | CPU s a client |\n"
    )
    write("| --- | ---: | ---: | ---: | ---: | ---: |\n")
    by_setting: dict[str, dict[str, list[Any]]] = {}
    for key, cell in content["cells"].items():
        setting, who, _ = key.rsplit(" | ", 2)
        by_setting.setdefault(setting, {}).setdefault(who, []).append(cell)
    for setting, found in by_setting.items():
        own = [client for cell in found.get(OURS, [])[-1:] for client in cell["clients"]]
        peer = [client for cell in found.get(PEER, []) for client in cell["clients"]]
        both = own[: len(peer)]
        seconds = [
            sum(cell["cpu_seconds"] for cell in part) / max(1, sum(len(cell["clients"]) for cell in part))
            for part in (found.get(OURS, [])[-1:], found.get(PEER, []))
        ]
        shown = setting.replace(" | ", ", ")
        images = sum(len(one.get("psnr", ())) for one in both)
        times = f"{seconds[0]:.1f}" + (f" / {seconds[1]:.1f}" if peer else "")
        write(f"| {shown} | {images} | {mean(both)} | {mean(peer)} | {mean(own)} | {times} |\n")


def mean(clients: list[dict[str, Any]]) -> str:
    values = [[value for one in clients for value in one.get(name, ())] for name in ("psnr", "ssim")]
    if not values[0]:
        return "–"
    return f"{sum(values[0]) / len(values[0]):.1f} dB / {sum(values[1]) / len(values[1]):.2f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", choices=["dlg", "deep", "batches"], default=["dlg", "deep", "batches"])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="of these groups")
    parser.add_argument("--images", type=int, default=8, help="for each setting")
    parser.add_argument(
        "--peer-images", type=int, default=2, help="clients that the research code attacks, as it is slow"
    )
    parser.add_argument("--starts", type=int, default=1, help="random starts, each attacked by itself")
    parser.add_argument("--iterations", type=int, default=4800, help="of signed Adam")
    parser.add_argument("--steps", type=int, default=300, help=f"of L-BFGS, {EVALUATIONS} evaluations each")
    parser.add_argument("--training-steps", type=int, default=1500)
    parser.add_argument("--weights", type=Path, default=Path("outputs/weights"), help="folder of trained weights")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--invertinggradients", type=Path, help="a checkout of that repository")
    parser.add_argument("--table", type=Path, help="markdown file")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; taken up where it ends")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    peer = (
        InvertingGradients(load(options.invertinggradients, InvertingGradients.package))
        if options.invertinggradients
        else None
    )
    content: dict[str, Any] = {"data": first_images(1)[0], "torch": torch.__version__, "cells": {}}
    if options.out.exists():
        content = json.loads(options.out.read_text())
    for setting in settings(options):
        open_cells = [cell for cell in cells(setting, peer, options) if cell.key not in content["cells"]]
        victim = build_victim(setting, options) if open_cells else None
        for cell in open_cells:
            assert victim is not None
            images, labels = (
                part[cell.first * setting.batch : (cell.first + cell.count) * setting.batch]
                for part in first_images((cell.first + cell.count) * setting.batch)[1:3]
            )
            began, cpu = time.perf_counter(), time.process_time()
            clients = cell.attack(victim, images, labels)
            content["cells"][cell.key] = {
                "clients": clients,
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
            }
            print(f"{cell.key}: {mean(clients)}, {time.process_time() - cpu:.0f} s", file=sys.stderr)
            part = options.out.with_suffix(".part")
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            part.replace(options.out)
    write_table(content, sys.stdout.write)
    if options.table is not None:
        with options.table.open("w", encoding="utf-8") as target:
            write_table(content, target.write)


if __name__ == "__main__":
    main()
