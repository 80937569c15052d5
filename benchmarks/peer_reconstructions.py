"""Attacks a tape by the code of breaching or LeakPro, from a checkout, and writes what `fl-precode score` reads.

    python benchmarks/peer_reconstructions.py breaching ~/breaching TAPE --iterations 1000 --out found.npz
    python benchmarks/peer_reconstructions.py leakpro ~/LeakPro TAPE --iterations 1000 --out found.npz

Nothing of theirs is part of this repository. They attack gradients of one batch; local training is refused.
Both are given the labels that our attacks recover, because LeakPro's attack takes them as known, and both work on the
model as clients ran it. LeakPro returns the image that is most like the truth; here, where nobody has that, it is the
image with the smallest loss, which LeakPro keeps as well.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__":
    # In place of this folder, whose modules have names that LeakPro's packages have.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.gradients.client_mode import uses_batch_statistics
from attacker.labels import best_labels
from attacker.standard.reconstructions import name_of
from benchmarks.peers import Breaching, load
from fl_precode import Victim
from fl_precode.observation import Gradients, Observation
from fl_precode.randomness.random_layers import sample_noise

Reconstruct = Callable[[Victim, Gradients, Tensor, bool], Tensor]
"""From victim, gradient, labels and whether clients normalised by their batch: images (batch, C, H, W), normalised."""

BREACHING: Final = "invertinggradients"
LEAKPRO_ITERATIONS: Final = 8_000
"""Of LeakPro's own preset."""


def breaching(checkout: Path, preset: str, iterations: int) -> tuple[Reconstruct, int]:
    """The attack by one of breaching's presets, with so many iterations, and how many the preset has."""
    library = load(checkout, "breaching")
    config = Breaching(library).preset(preset)
    whole = int(config.optim.max_iterations)
    config.optim.max_iterations = iterations or whole
    config.optim.callback = config.optim.max_iterations

    def reconstruct(victim: Victim, update: Gradients, labels: Tensor, by_batch: bool) -> Tensor:
        return Breaching(library, training=by_batch).attack(victim, update, labels, config)

    return reconstruct, whole


def leakpro(checkout: Path, iterations: int) -> tuple[Reconstruct, int]:
    """LeakPro's Inverting Gradients with its own settings, but so many iterations, and how many these have."""
    _quiet()
    module = load(checkout, "leakpro.attacks.gia_attacks.invertinggradients")
    optimisers = load(checkout, "leakpro.fl_utils.gia_optimizers")
    loaders = torch.utils.data

    def reconstruct(victim: Victim, update: Gradients, labels: Tensor, by_batch: bool) -> Tensor:
        if by_batch and any(True for _ in victim.model.buffers()):
            raise ValueError("LeakPro's attack normalises by running statistics, and these clients by their batch")
        rate = optimisers.MetaSGD().lr
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (victim.inputs.mean, victim.inputs.std))
        nothing = loaders.TensorDataset(torch.zeros(len(labels), *victim.inputs.shape), labels)
        attack = module.InvertingGradients(
            victim.model, loaders.DataLoader(nothing, batch_size=32), mean, std,
            configs=module.InvertingConfig(at_iterations=iterations or LEAKPRO_ITERATIONS),
        )  # fmt: skip
        attack.prepare_attack()
        # What they compute from the client's images is a step of SGD; here it is the client's own.
        attack.client_gradient = [-rate * update[name] for name, _ in victim.model.named_parameters()]
        for _ in attack.run_attack():
            pass
        return attack.best_reconstruction.dataset.reconstruction.detach()

    return reconstruct, LEAKPRO_ITERATIONS


def attack_tape(tape: Path, reconstruct: Reconstruct) -> tuple[dict[str, np.ndarray], list[str]]:
    """Images in [0, 1] for every update of a tape, grey where there are none, and why.

    Raises:
        ValueError: If its clients send something else than the gradient of one batch of known size.
    """
    subject = open_subject(TapeSource(tape=tape, truth=False))
    found, problems = {}, []
    for number, entry in enumerate(subject.tape.entries):
        observation = subject.tape.load(entry)
        if observation.kind != "gradient" or observation.batch_size is None:
            raise ValueError(f"{entry.file}: expected the gradient of a batch of known size, got {observation.kind}")
        name, inputs = name_of(entry.file), subject.victim.inputs
        images = torch.full((observation.batch_size, *inputs.shape), 0.5)
        labels, why = best_labels(subject.victim, observation, generator=torch.Generator().manual_seed(number))
        try:
            if labels is None:
                raise ValueError(f"no labels were recovered: {why}")
            with torch.random.fork_rng(), sample_noise():
                torch.manual_seed(number)
                normalised = _attacked(subject.victim, observation, labels, reconstruct)
            images = inputs.denormalise(normalised).nan_to_num(0.5).clamp(0, 1)
        except Exception as error:  # their code, on models that it does not know
            problems.append(f"{name}: {type(error).__name__}: {error}")
        found[name] = images.numpy()
    return found, problems


def _attacked(victim: Victim, observation: Observation, labels: Tensor, reconstruct: Reconstruct) -> Tensor:
    model = copy.deepcopy(victim.model)
    model.load_state_dict({**observation.buffers, **observation.parameters}, strict=False)
    by_batch = uses_batch_statistics(victim, observation)
    return reconstruct(replace(victim, model=model), observation.update, labels, by_batch)


def _quiet() -> None:
    import logging

    logging.disable(logging.INFO)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("breaching", "leakpro"))
    parser.add_argument("checkout", type=Path, help="of the peer's repository")
    parser.add_argument("tape", type=Path)
    parser.add_argument("--preset", default=BREACHING, help="of breaching: invertinggradients, modern, ...")
    parser.add_argument("--iterations", type=int, default=0, help="0: as many as the preset has")
    parser.add_argument("--out", type=Path, required=True, help=".npz of reconstructions; a .json about it beside")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkout, tape, out = (path.expanduser().absolute() for path in (options.checkout, options.tape, options.out))
    # LeakPro makes folders where it is called.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        if options.peer == "breaching":
            reconstruct, whole = breaching(checkout, options.preset, options.iterations)
        else:
            reconstruct, whole = leakpro(checkout, options.iterations)
        began = time.process_time()
        found, problems = attack_tape(tape, reconstruct)
        spent = time.process_time() - began
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        np.savez(file, **found)
    iterations = options.iterations or whole
    about: dict[str, Any] = {
        "peer": options.peer, "preset": options.preset if options.peer == "breaching" else "InvertingConfig",
        "iterations": iterations, "preset_iterations": whole, "cpu_seconds": round(spent, 1),
        "extrapolated_cpu_seconds": round(spent * whole / iterations, 1), "problems": problems,
    }  # fmt: skip
    out.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
