"""Pictures of a few victims for the page: the true images and the most similar reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attacker.audit.files import png_bytes
from attacker.reproduce.cells import AttackRun, Setup
from attacker.reproduce.experiment import Experiment
from attacker.reproduce.image_sets import images
from attacker.reproduce.page import Gallery
from attacker.reproduce.store import Store

VICTIMS = 6
"""Shown for each model on each image set."""

Shot = tuple[bytes | None, float | None]


def galleries(experiment: Experiment, setups: Sequence[Setup], store: Store) -> dict[tuple[str, str], Gallery]:
    """By name of the image set and model.

    Raises:
        ValueError: If a file of images is missing or was altered.
    """
    found = {}
    for data, model in dict.fromkeys((one.data, one.model) for one in setups):
        own = [one for one in setups if (one.data, one.model) == (data, model)]
        loaded = images(data, experiment.data_root)
        rows = []
        shown: list[int] = []
        for setup in own:
            for epoch in experiment.scale.attacked:
                cells = [cell for cell in experiment.cells([setup]) if cell.kind == "attack" and cell.epoch == epoch]
                runs = [store.result(cell, experiment.recipe(cell), AttackRun) for cell in cells]
                shown = [one.image for one in runs[0].victims[:VICTIMS]]
                rows.append((setup.defence, epoch, _shots(experiment, setup, runs, store, len(shown))))
        truth = loaded.train.batch(shown)[0]
        found[loaded.name, model] = Gallery(truth=[png_bytes(one) for one in truth], rows=rows)
    return found


def _shots(experiment: Experiment, setup: Setup, runs: Sequence[AttackRun], store: Store, count: int) -> list[Shot]:
    inputs = images(setup.data, experiment.data_root).inputs
    kept = [store.load(run.images) if run.images else {} for run in runs]
    shots: list[Shot] = []
    for place in range(count):
        tried = [
            (score.ssim if score.ssim is not None else -2.0, number)
            for number, run in enumerate(runs)
            if (score := run.victims[place]) and f"{place}.inputs" in kept[number]
        ]
        if not tried:
            shots.append((None, None))
            continue
        _, best = max(tried)
        restored = inputs.denormalise(kept[best][f"{place}.inputs"].to(torch.float32)).clamp(0, 1)[0]
        shots.append((png_bytes(restored), runs[best].victims[place].ssim))
    return shots
