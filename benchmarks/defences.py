"""What defences cost and leave: parameters, client time, accuracy, and how random each layer's gradient is.

Run: OMP_NUM_THREADS=1 python benchmarks/defences.py --out FILE
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clients.train import defended_gradient
from fl_precode import track_kl
from fl_precode.data import load_data
from fl_precode.defences.ppp import gradient_stochasticity
from fl_precode.defences.registry import apply_defence, gradient_defence
from fl_precode.models import build_model
from fl_precode.objective import training_loss
from fl_precode.randomness.seeding import seeded

SPECS = (
    "none",
    "precode",
    "cvb",
    "cvb-reference",
    "dropout",
    "noise:std=0.01",
    "laplace:std=0.01",
    "prune:share=0.9",
    "clip:max_norm=1",
    "quantise:bits=8",
    "sign",
    "soteria",
    "precode+ppp:std=0.01",
    "dp:max_norm=1,noise_multiplier=1.1",
)
RANDOM = (
    ("lenet", "precode"),
    ("lenet:activation=relu", "precode"),
    ("mlp", "precode"),
    ("lenet", "cvb"),
    ("lenet:activation=relu", "cvb"),
)
REPEATS, VICTIMS, EPOCHS = 12, 8, 20


def costs(model: str, batch: int) -> list[dict[str, Any]]:
    """CPU time of one defended gradient, defences in turn, median of the repeats after two."""
    data = load_data("photos", "")
    images, labels = data.train.batch(range(batch))
    images = data.inputs.normalise(images)
    plain = build_model(model, data.inputs, seed=0)
    models: dict[str, nn.Module] = {}
    for spec in SPECS:
        if not (spec.startswith("cvb") and model == "mlp"):
            models[spec] = apply_defence(spec, plain, data.inputs)
    times: dict[str, list[float]] = {spec: [] for spec in models}
    for repeat in range(REPEATS):
        for spec, defended in models.items():
            generator = torch.Generator().manual_seed(repeat)
            began = time.process_time()
            defended_gradient(defended, (images, labels), gradient_defence(spec), generator)
            times[spec].append(time.process_time() - began)
    base = statistics.median(times["none"][2:])
    return [
        {
            "model": model,
            "batch": batch,
            "defence": spec,
            "parameters": sum(p.numel() for p in models[spec].parameters()),
            "milliseconds": 1e3 * statistics.median(values[2:]),
            "times_undefended": statistics.median(values[2:]) / base,
        }
        for spec, values in times.items()
    ]


def stochasticity(model: str, spec: str) -> dict[str, list[float]]:
    """Least, mean and largest cosine between gradients of independent draws, over victims with weights of their own."""
    data = load_data("photos", "")
    found: dict[str, list[float]] = {}
    for victim in range(VICTIMS):
        images, labels = data.train.batch([7 * victim])
        defended = apply_defence(spec, build_model(model, data.inputs, seed=victim), data.inputs, seed=victim)
        batch = data.inputs.normalise(images), labels
        generator = torch.Generator().manual_seed(victim)
        for name, cosine in gradient_stochasticity(defended, training_loss, batch, generator=generator).items():
            found.setdefault(name, []).append(cosine)
    return {name: [min(values), sum(values) / VICTIMS, max(values)] for name, values in found.items()}


def accuracy(spec: str) -> dict[str, Any]:
    """Test accuracy on the digits after central training by Adam 1e-3 on defended gradients, batch 32."""
    data = load_data("digits", "")
    model = apply_defence(spec, build_model("lenet:activation=relu", data.inputs, seed=0), data.inputs)
    defence, generator = gradient_defence(spec), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    with seeded(0):
        for _ in range(EPOCHS):
            for indices in torch.randperm(len(data.train.labels)).split(32)[:-1]:
                images, labels = data.train.batch(indices.tolist())
                gradients, _ = defended_gradient(model, (data.inputs.normalise(images), labels), defence, generator)
                for name, parameter in model.named_parameters():
                    parameter.grad = gradients[name]
                optimiser.step()
    model.eval()
    images, labels = data.test.batch(range(len(data.test.labels)))
    with torch.no_grad(), track_kl() as kl:
        logits = model(data.inputs.normalise(images))
    return {
        "defence": spec,
        "accuracy": (logits.argmax(1) == labels).float().mean().item(),
        "kl_nats": kl.nats(logits).item(),
    }


def main() -> None:
    parts: dict[str, Callable[[], Any]] = {
        "costs": lambda: [row for model in ("lenet", "mlp") for batch in (1, 32) for row in costs(model, batch)],
        "stochasticity": lambda: {f"{model} {spec}": stochasticity(model, spec) for model, spec in RANDOM},
        "accuracy": lambda: [accuracy(spec) for spec in SPECS],
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {}
    for name in arguments.parts:
        result[name] = parts[name]()
        arguments.out.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
