"""What reaches the server under four kinds of privacy, and what an attack makes of it: `python wire_view.py TAPES`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor
from wire.task import CLIENTS, SETTINGS, Net, load_data

import fl_precode as flp
from fl_precode import Observation, Protocol
from fl_precode.metrics import match_batch, ssim

ATTACK = "inverting-gradients:iterations=1200"
# Several images behind one update need more smoothing.
OF_A_BATCH = "inverting-gradients:iterations=2400,total_variation=1e-2"


def attack(spec: str, observations: list[Observation]) -> Tensor:
    """Images found in updates, (3, 3, 32, 32) in [0, 1], in the order of the clients' true ones."""
    victim = flp.Victim(model=Net(), inputs=flp.InputSpec.parse("3x32x32", CLIENTS))
    found = flp.attacks.build_attack(spec)(victim, observations, generator=torch.Generator().manual_seed(0))
    images = torch.cat([one.inputs for one in found if one.inputs is not None]).clamp(0, 1)
    return images[match_batch(images, truth())]


def truth() -> Tensor:
    """The clients' images, for the comparison only."""
    return torch.cat([load_data(client)[0] for client in range(CLIENTS)])


def of_the_sum(folder: Path, protocol: Protocol) -> Observation:
    """The mean update, all that secure aggregation lets out: a step on all clients' images together."""
    before, after = (weights(folder / f"weights-{number}.npz") for number in (0, 1))
    return Observation(
        parameters=before,
        buffers={},
        update={name: after[name] - before[name] for name in before},
        kind="weights",
        batch_size=CLIENTS,
        protocol=replace(protocol, name="fedavg", batch_size=CLIENTS),
        round=1,
        node="all",
    )


def weights(file: Path) -> dict[str, Tensor]:
    """Weights by their names, as the server kept them."""
    names = [name for name, _ in Net().named_parameters()]
    with np.load(file) as arrays:
        return {name: torch.tensor(arrays[key], dtype=torch.float32) for name, key in zip(names, arrays, strict=True)}


def main() -> None:
    """Attack everything that was heard, print a table, write wire-view.png."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    pictures = {"true images": truth()}
    for name in SETTINGS:
        tape = flp.Tape(folder / name)
        pictures[name] = attack(ATTACK, list(tape.observations()))
    masked = flp.Tape(folder / "secure aggregation")
    print(f"secure aggregation: {len(masked.entries)} updates on the wire; {masked.failures[0].reason}")
    pictures["secure aggregation (sum)"] = attack(OF_A_BATCH, [of_the_sum(folder, tape.header.protocol)])
    figure, axes = plt.subplots(len(pictures), CLIENTS, figsize=(5.5, 1.3 * len(pictures)), dpi=80)
    for row, (name, images) in zip(axes, pictures.items(), strict=True):
        values = ssim(images, truth())
        print(f"{name:26}" + "  ".join(f"SSIM {value:5.2f}" for value in values))
        for axis, image in zip(row, images, strict=True):
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name.replace(" ", "\n"), rotation=0, ha="right", va="center")
    figure.tight_layout()
    figure.savefig("wire-view.png")


if __name__ == "__main__":
    main()
