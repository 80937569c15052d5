"""Reconstruction of images from their exact features alone, through a known trunk.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/feature_images.py --out docs/results/feature-images.json

One image of CIFAR-100 at a time, behind trunks of `heads.py`. Searches:

adam      `feature-inversion` with its own prior (total variation), from two starts. Besides how near each is to the
          image, how near the two are to each other: unlike images of the same features say that the features
          do not determine an image.
gaussian  The likeliest image of a Gaussian whose covariance falls with frequency as photographs' does, under the
          condition that its features are the true ones: Gauss-Newton with the trunk's whole derivative, no data needed.

Missed: distance of the features from the true ones, relative to their size. CPU seconds of this process. Rows that are
in --out are not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

import command_line
from attacker.gradients.trace import trace
from fl_precode import Victim
from fl_precode.attacks import build_attack
from fl_precode.metrics import psnr, ssim
from heads import INPUTS, cifar100, seen_of, with_new_head
from page_tables import write_between
from training import cifar10, trained

SIDE = 32
NAMES = {"lenet:activation=relu": "LeNet with ReLU", "resnet20": "ResNet20", "heads:small_vit": "small ViT"}


def photographs_covariance(power: float = 2.2, spread: float = 0.06) -> Tensor:
    """(3072, 3072): power falls with frequency, and colours go together."""
    frequencies = torch.fft.fftfreq(2 * SIDE).double()
    radius = (frequencies[:, None].square() + frequencies.square()).sqrt()
    radius[0, 0] = 1 / (2 * SIDE)
    kernel = torch.fft.ifft2(radius**-power).real
    rows, columns = (axis.flatten() for axis in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    apart = [(axis[:, None] - axis) % (2 * SIDE) for axis in (rows, columns)]
    colours = spread * (0.9 * torch.ones(3, 3) + 0.1 * torch.eye(3)).double()
    covariance: Tensor = torch.kron(colours, (kernel / kernel[0, 0])[apart[0], apart[1]])
    return covariance


def likeliest(features: Callable[[Tensor], Tensor], wanted: Tensor, steps: int) -> tuple[Tensor, float]:
    """Gauss-Newton: the likeliest image (3072,) in [0, 1] with these features, and how much of them it misses."""
    covariance, mean = photographs_covariance(), torch.full((3 * SIDE * SIDE,), 0.45, dtype=torch.float64)
    x, damping = mean.clone(), 1e-2

    def missed(at: Tensor) -> float:
        return float((wanted - features(at)).norm() / wanted.norm())

    best = missed(x)
    for _ in range(steps):
        jacobian = jacrev(features)(x)
        spread = covariance @ jacobian.T
        seen = jacobian @ spread
        goal = wanted - features(x) + jacobian @ (x - mean)
        scale = float(seen.diagonal().mean()) * torch.eye(len(seen), dtype=torch.float64)
        target = mean + spread @ torch.linalg.solve(seen + damping * scale, goal)
        tried = [(missed(x + share * (target - x)), share) for share in (1.0, 0.5, 0.25, 0.1, 0.02)]
        least, share = min(tried)
        if least >= best:
            damping *= 10
            if damping > 1e3:
                break
            continue
        x, best, damping = x + share * (target - x), least, max(damping / 10, 1e-10)
        if best < 1e-6:
            break
    return x, best


def features_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """From a flat image in [0, 1] to what enters the last Linear layer."""
    model = deepcopy(model).double()
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    shift, scale = (torch.tensor(value).double()[:, None, None] for value in (INPUTS.mean, INPUTS.std))

    def features(flat: Tensor) -> Tensor:
        caught: list[Tensor] = []
        handle = last.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
        model((flat.view(1, 3, SIDE, SIDE) - shift) / scale)
        handle.remove()
        return caught[0][0]

    return features


def gaussian(model: nn.Module, image: Tensor, steps: int) -> dict[str, Any]:
    """Quality of the likeliest image."""
    features = features_of(model)
    with sdpa_kernel(SDPBackend.MATH):
        found, missed = likeliest(features, features(image.double().flatten()).detach(), steps)
    return quality(found.view(1, 3, SIDE, SIDE).float(), image) | {"missed": missed}


def adam(model: nn.Module, image: Tensor, label: Tensor, steps: int, prior: float) -> dict[str, Any]:
    """Quality of two searches, and how alike they are."""
    victim, seen = Victim(model=model, inputs=INPUTS), seen_of(model, INPUTS.normalise(image), label)
    attack = build_attack(f"feature-inversion:steps={steps},total_variation={prior}")
    results = [attack(victim, [seen], generator=torch.Generator().manual_seed(number))[0] for number in (0, 1)]
    images = [INPUTS.denormalise(result.inputs).clamp(0, 1) for result in results]
    features = features_of(model)
    wanted = features(image.double().flatten())
    missed = [float((features(one.double().flatten()) - wanted).norm() / wanted.norm()) for one in images]
    best = min((0, 1), key=lambda place: missed[place])
    alike = {"between": round(float(ssim(*images)), 3), "missed": min(missed), "missed_worse": max(missed)}
    return quality(images[best], image) | alike


def quality(found: Tensor, image: Tensor) -> dict[str, Any]:
    """Of one image."""
    restored = found.clamp(0, 1)
    return {"ssim": round(float(ssim(restored, image)), 3), "psnr": round(float(psnr(restored, image)), 1)}


def table(record: dict[str, Any]) -> str:
    """That of docs/results/heads.md."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in record["rows"]:
        case = row["case"]
        groups.setdefault((case["trunk"], case["trained"], case["features"], case["search"]), []).append(row)
    lines = [
        "| trunk | steps | features | search | SSIM | PSNR | missed | between | CPU s |",
        "| --- | ---: | ---: | --- | --- | --- | --- | --- | ---: |",
    ]
    for (trunk, steps, width, search), rows in groups.items():
        texts = [
            ", ".join(form.format(row[name]) for row in rows if name in row)
            for name, form in (("ssim", "{:.2f}"), ("psnr", "{:.1f}"), ("missed", "{:.0e}"), ("between", "{:.2f}"))
        ]
        seconds = f"{sum(row['cpu_seconds'] for row in rows) / len(rows):.0f}"
        lines.append(f"| {' | '.join([NAMES.get(trunk, trunk), str(steps), str(width), search, *texts, seconds])} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    trunks = ["lenet:activation=relu/200", "heads:small_vit/200", "resnet20/200", "lenet:activation=relu/0"]
    parser.add_argument("--trunks", nargs="+", default=trunks, help="model specs with steps of their training")
    parser.add_argument("--images", type=int, default=3, help="of each")
    parser.add_argument("--steps", type=int, default=1000, help="of a search by adam")
    parser.add_argument("--newton", type=int, default=30, help="steps of Gauss-Newton")
    parser.add_argument("--cache", type=Path, help="folder of weights")
    parser.add_argument("--table", type=Path, help="page whose table is replaced")
    options = command_line.parse(parser)
    pool, labels = cifar100()
    data = cifar10(train=10_000, test=1000)
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else {"rows": []}
    rows, done = known["rows"], [row["case"] for row in known["rows"]]
    for trunk in options.trunks:
        spec, _, steps = trunk.rpartition("/")
        made = trained(spec, data, steps=int(steps), seed=options.seed, cache=options.cache)
        model = with_new_head(made.model, options.seed).eval()
        width = trace(Victim(model=model, inputs=INPUTS)).layers[-1].module.in_features
        for number in range(100, 100 + options.images):
            image, label = pool[number : number + 1], labels[number : number + 1]
            searches: dict[str, Callable[[], dict[str, Any]]] = {
                f"adam {prior:g}": lambda p=prior, i=image, y=label, m=model: adam(m, i, y, options.steps, p)
                for prior in (1e-3, 1e-2)
            }
            searches["gaussian"] = lambda i=image, m=model: gaussian(m, i, options.newton)
            for name, search in searches.items():
                case = {"trunk": spec, "trained": int(steps), "features": width, "image": number, "search": name}
                if case in done:
                    continue
                began = time.process_time()
                row = search()
                rows.append({"case": case, **row, "cpu_seconds": round(time.process_time() - began, 1)})
                settings = {"steps": options.steps, "newton": options.newton, "torch": torch.__version__}
                record = {"measured": date.today().isoformat(), "settings": settings, "rows": rows}
                command_line.write_record(record, options)
                known = record
    if options.table:
        write_between(options.table, "feature images", table(known))


if __name__ == "__main__":
    main()
