"""Pictures of a few victims for the page: the true images and the most similar reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from attacker.audit.execution.files import png_bytes
from attacker.experiments.cells import AttackedVictims, Setup
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.precode.page import VictimGallery
from attacker.experiments.store import Store

VICTIMS = 6
"""Shown for each model on each image set."""

Shot = tuple[bytes | None, float | None]


def galleries(experiment: Experiment, setups: Sequence[Setup], store: Store) -> dict[tuple[str, str], VictimGallery]:
    """By name of the image set and model.

    Raises:
        ValueError: If a file of images is missing or was altered.
    """
    galleries_by_model = {}
    for data, model in dict.fromkeys((defended.data, defended.model) for defended in setups):
        model_setups = [defended for defended in setups if (defended.data, defended.model) == (data, model)]
        loaded = images(data, experiment.data_root)
        rows = []
        shown: list[int] = []
        for setup in model_setups:
            for epoch in experiment.scale.attacked:
                cells = [cell for cell in experiment.cells([setup]) if cell.kind == "attack" and cell.epoch == epoch]
                runs = [store.result(cell, experiment.recipe(cell), AttackedVictims) for cell in cells]
                shown = [victim.image for victim in runs[0].victims[:VICTIMS]]
                rows.append((setup.defence, epoch, _shots(experiment, setup, runs, store, len(shown))))
        truth = loaded.train.batch(shown)[0]
        galleries_by_model[loaded.name, model] = VictimGallery(truth=[png_bytes(image) for image in truth], rows=rows)
    return galleries_by_model


def _shots(
    experiment: Experiment, setup: Setup, runs: Sequence[AttackedVictims], store: Store, count: int
) -> list[Shot]:
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
