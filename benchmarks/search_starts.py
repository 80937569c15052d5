"""Other starts and steps of a gradient search, at as many iterations as the search that time to quality begins with.

    OMP_NUM_THREADS=1 python benchmarks/search_starts.py --models lenet:init=uniform --images 16 --iterations 100 \\
        --out docs/results/search-starts.json

Clients hold one image each, from 32 on by default, so that none is a victim of `benchmarks/time_to_quality.py`. Labels
are granted. A search from other images gets half of the iterations; the images before it take the other half, or 200
steps without a second derivative. Finished pieces stay in the file and are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import command_line
from attacker.attacks.gradient_matching.attack import GradientMatching
from attacker.attacks.registry import build_attack
from attacker.optim.initialisation import Start
from attacker.optim.random_streams import Draws
from attacker.simulate import observe
from fl_precode import Victim
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation
from images import first_images
from quality import Setting, build_victim, figures
from time_to_quality import LARGE_STEPS

FIRST = 32
"""Number of the first image."""
FEATURE_STEPS = 200
Row = dict[str, Any]


@dataclass(frozen=True)
class Given(Start):
    """Images that something else made.

    Attributes:
        images: (victims, channels, height, width), normalised.
    """

    images: Tensor

    @property
    def name(self) -> str:
        """No name of specs: these starts come from code only."""
        return "given"

    def candidates(self, inputs: InputSpec, batch: int, *, draws: Draws, like: Tensor) -> Tensor:
        """One candidate for each victim."""
        return self.images.reshape(-1, 1, batch, *inputs.shape).to(like)


@dataclass(frozen=True, kw_only=True)
class Clients:
    """Updates of one image each, with the truth, which only the comparison sees."""

    victim: Victim
    images: Tensor
    labels: Tensor
    iterations: int
    seed: int

    def seen(self) -> Sequence[Observation]:
        """The updates."""
        return observe(self.victim, self.victim.inputs.normalise(self.images), self.labels, batch_size=1)

    def search(self, share: float = 1.0, **options: Any) -> GradientMatching:
        """The first search of time to quality with other options, and a share of the iterations."""
        attack = build_attack(LARGE_STEPS)
        assert isinstance(attack, GradientMatching)
        return attack.with_options(iterations=round(share * self.iterations), **options)

    def found(self, attack: Any, victim: Victim | None = None) -> Tensor:
        """One image of each client, (clients, channels, height, width), zeros where none was found."""
        generator = torch.Generator().manual_seed(self.seed)
        results = attack(victim or self.victim, self.seen(), generator=generator, labels=self.labels.split(1))
        shape = (1, *(victim or self.victim).inputs.shape)
        return torch.cat([torch.zeros(shape) if one.inputs is None else one.inputs for one in results])

    def after(self, images: Tensor) -> Tensor:
        """The search from these images, with half of the iterations."""
        return self.found(replace(self.search(0.5), init=Given(images)))

    def coarse(self) -> Tensor:
        """Images of half the side, found through a model that enlarges them first; then enlarged."""
        inputs = self.victim.inputs
        model = deepcopy(self.victim.model)
        model.register_forward_pre_hook(lambda _, given: (_enlarged(given[0], inputs),))
        small = replace(inputs, height=inputs.height // 2, width=inputs.width // 2)
        return _enlarged(self.found(self.search(0.5), Victim(model=model, inputs=small, name="coarse")), inputs)

    def by_features(self) -> Tensor:
        """Images whose input of the last layer is what its gradient says."""
        return self.found(build_attack(f"feature-inversion:any_trunk=true,steps={FEATURE_STEPS}"))


def _enlarged(images: Tensor, inputs: InputSpec) -> Tensor:
    return F.interpolate(images, size=(inputs.height, inputs.width), mode="bilinear")


VARIANTS: dict[str, Callable[[Clients], Tensor]] = {
    "as it is": lambda clients: clients.found(clients.search()),
    "without signs": lambda clients: clients.found(clients.search(signed=False)),
    "steps twice as large": lambda clients: clients.found(clients.search(learning_rate=1.0)),
    "steps half as large": lambda clients: clients.found(clients.search(learning_rate=0.25)),
    "a third of the total variation": lambda clients: clients.found(clients.search(total_variation=0.03)),
    "from a grey image": lambda clients: clients.found(clients.search(start="grey")),
    "the deeper half of the layers": lambda clients: clients.found(clients.search(layers="deeper:0.5")),
    "images of half the side first": lambda clients: clients.after(clients.coarse()),
    "from the last layer's features": lambda clients: clients.after(clients.by_features()),
}


def measured(clients: Clients, variant: str) -> Row:
    """Mean SSIM, and CPU seconds of one client."""
    began = time.process_time()
    found = VARIANTS[variant](clients)
    seconds = (time.process_time() - began) / len(clients.images)
    pairs = zip(found.split(1), clients.images.split(1), strict=True)
    ssims = [figures(clients.victim, one, truth)["ssim"][0] for one, truth in pairs]
    return {"ssim": ssims, "cpu": seconds, "iterations": clients.iterations}


def table(content: Row) -> str:
    """A line for each variant, two columns for each setting."""
    settings = dict.fromkeys(name.partition(" | ")[0] for name in content["pieces"])
    lines = [f"| search | {' | '.join(f'{setting}, SSIM | CPU s' for setting in settings)} |"]
    lines.append("| --- |" + " ---: | ---: |" * len(settings))
    for variant in VARIANTS:
        cells = [_cells(content["pieces"].get(f"{setting} | {variant}")) for setting in settings]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(piece: Row | None) -> str:
    return "– | –" if piece is None else f"{sum(piece['ssim']) / len(piece['ssim']):.2f} | {piece['cpu']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet:init=uniform"], help="specs")
    parser.add_argument("--first", type=int, default=FIRST, help="number of the first image")
    parser.add_argument("--images", type=int, default=16, help="one for each client")
    parser.add_argument("--iterations", type=int, default=100, help="of each search")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = command_line.parse(parser)
    content: Row = {"pieces": {}}
    if options.out and options.out.exists():
        content = json.loads(options.out.read_text(encoding="utf-8"))
    for model in options.models:
        setting = Setting(group="", model=model, steps=0, attack="", batch=1)
        _, images, labels, _ = first_images(options.first + options.images)
        clients = Clients(
            victim=build_victim(setting, argparse.Namespace(weights=Path())), images=images[options.first :],
            labels=labels[options.first :], iterations=options.iterations, seed=options.seed,
        )  # fmt: skip
        where = f"`{model}`: {options.images} images from {options.first} on, {options.iterations} iterations"
        for variant in options.variants:
            name = f"{where}{f', seed {options.seed}' if options.seed else ''} | {variant}"
            if name not in content["pieces"]:
                content["pieces"][name] = measured(clients, variant)
                content |= {"measured": date.today().isoformat(), "torch": torch.__version__}
                command_line.write_record(content, options)
                print(f"{name}: {_cells(content['pieces'][name])}")
    print(table(content))


if __name__ == "__main__":
    main()
