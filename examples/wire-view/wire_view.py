"""What reaches the server under four kinds of privacy, and what an attack makes of it: ``python wire_view.py``."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import torch
from federations import SETTINGS, run_secure_aggregation, run_settings
from photographs import CLIENTS, LEARNING_RATE, Net, load_data
from torch import Tensor

import fl_precode as flp
from fl_precode import Observation, Protocol
from fl_precode.metrics import match_batch, ssim

ATTACK = "inverting-gradients:iterations=600"
OF_A_BATCH = f"{ATTACK},total_variation=1e-2"  # several images behind one update need more smoothing


def attack(spec: str, observations: list[Observation]) -> Tensor:
    """Images found in updates, (3, 3, 32, 32) in [0, 1], in the order of the clients' true ones."""
    victim = flp.Victim(model=Net(), inputs=flp.InputSpec.parse("3x32x32", CLIENTS))
    found = flp.attacks.build_attack(spec)(victim, observations, generator=torch.Generator().manual_seed(0))
    images = torch.cat([one.inputs for one in found if one.inputs is not None]).clamp(0, 1)
    return images[match_batch(images, truth())]


def truth() -> Tensor:
    """The clients' images, for the comparison only."""
    return torch.cat([load_data(client)[0] for client in range(CLIENTS)])


def of_the_sum(before: list[Tensor], after: list[Tensor]) -> Observation:
    """The mean update, all that secure aggregation lets out: a step on all clients' images together."""
    names = [name for name, _ in Net().named_parameters()]
    return Observation(
        parameters=dict(zip(names, before, strict=True)),
        buffers={},
        update={name: b - a for name, a, b in zip(names, before, after, strict=True)},
        kind="weights",
        batch_size=CLIENTS,
        protocol=Protocol(name="fedavg", learning_rate=LEARNING_RATE, local_epochs=1, batch_size=CLIENTS),
        round=1,
        node="all",
    )


def main() -> None:
    """Run everything, print a table, write wire-view.png."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    pictures = {"true images": truth()}
    with TemporaryDirectory() as folder:
        run_settings(Path(folder))
        for name in SETTINGS:
            pictures[name] = attack(ATTACK, list(flp.Tape(Path(folder, name)).observations()))
        tape = Path(folder, "secure-aggregation")
        before, after = run_secure_aggregation(tape)
        on_tape = flp.Tape(tape)
        print(f"secure aggregation: {len(on_tape.entries)} updates on the wire; {on_tape.failures[0].reason}")
        pictures["secure aggregation (sum)"] = attack(OF_A_BATCH, [of_the_sum(before, after)])
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
