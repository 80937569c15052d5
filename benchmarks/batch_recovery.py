"""How far closed forms reach through PRECODE for batches: features, noise, and the images behind them.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/batch_recovery.py --out batch_recovery.json

For each batch the features of every image and the client's noise are solved for, by
`attacker.analytic.bottleneck_batches`. Errors are relative: of features to the distance of the nearest other image of
the batch, since features of different images may be close; noise as mean squared error, 1 for none. With
``--iterations`` the images are then looked for by L-BFGS on the gradients of the convolutions at the noise found, with
and without the features as targets, beside the same search on the undefended model and one at noise of its own. Labels
are given to all of them alike.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacker.analytic.bottleneck_batches import bottleneck_gradient, features_of_batch
from attacker.gradients.trace import trace
from fl_precode import Observation, Protocol, Victim, sample_noise
from fl_precode.defences.registry import apply_defence
from fl_precode.metrics import match_batch, psnr, ssim
from fl_precode.models import build_model
from images import first_images

logger = logging.getLogger("batch_recovery")


def gradients(victim: Victim, x: Tensor, y: Tensor, noise: list[Tensor], *, graph: bool = False) -> dict[str, Tensor]:
    """By name; at the noise given, one tensor for each bottleneck."""
    parameters = dict(victim.model.named_parameters())
    with sample_noise(values=noise):
        loss = victim.training_loss(x, y)
    found = torch.autograd.grad(loss, list(parameters.values()), create_graph=graph)
    return dict(zip(parameters, found, strict=True))


def observation(victim: Victim, update: dict[str, Tensor], batch: int) -> Observation:
    """What the server sees."""
    return Observation(
        parameters={name: value.detach() for name, value in victim.model.named_parameters()},
        buffers={},
        update=update,
        kind="gradient",
        batch_size=batch,
        protocol=Protocol(name="fedsgd"),
        round=1,
        node="1",
    )


def features(victim: Victim, x: Tensor) -> Tensor:
    """What enters the classifier's place, (batch, features)."""
    for name, module in victim.model.named_children():
        if name == "classifier":
            break
        x = module(x)
    return x.flatten(1)


def search(victim: Victim, start: Tensor, loss: Callable[[Tensor], Tensor], iterations: int) -> Tensor:
    """Images by L-BFGS with a line search, kept near the box by clamping at the end."""
    x = start.clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([x], max_iter=iterations, history_size=50, line_search_fn="strong_wolfe",
                                  tolerance_grad=0, tolerance_change=0)  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss(x)
        value.backward(inputs=[x])
        return value

    optimiser.step(closure)
    return victim.inputs.clamp(x.detach())


def relative(found: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    """Squared distance over the convolutions, each tensor's relative to itself."""
    names = [name for name in target if name.startswith("conv")]
    return torch.stack([(found[n] - target[n]).square().sum() / target[n].square().sum() for n in names]).sum()


def one(options: argparse.Namespace, model: str, batch: int, number: int, dtype: torch.dtype) -> dict[str, Any]:
    """One batch."""
    _, images, y, inputs = first_images(batch * (number + 1))
    images, y = images[-batch:], y[-batch:]
    x = inputs.normalise(images).to(dtype)
    plain = Victim(model=build_model(model, inputs, seed=options.seed).to(dtype), inputs=inputs)
    defended = apply_defence(options.defence, build_model(model, inputs, seed=options.seed), inputs, seed=options.seed)
    victim = Victim(model=defended.to(dtype), inputs=inputs)
    draw = torch.Generator().manual_seed(1000 + number)
    eps = torch.randn(batch, *trace(victim).latents[0], generator=draw, dtype=torch.float64).to(dtype)
    update = gradients(victim, x, y, [eps])
    began = time.process_time()
    seen = bottleneck_gradient(trace(victim), observation(victim, update, batch))
    found = seen if isinstance(seen, str) else features_of_batch(seen, torch.Generator().manual_seed(number))
    row: dict[str, Any] = {"cpu_seconds": round(time.process_time() - began, 2)}
    if isinstance(found, str):
        return row | {"reason": found}
    with torch.no_grad():
        truth = features(victim, x).double()
    far = torch.cdist(truth, truth).fill_diagonal_(float("inf")).amin(dim=1)
    near = torch.cdist(truth, found.features).argmin(dim=1)
    errors = torch.linalg.vector_norm(found.features[near] - truth, dim=1) / far
    row |= {
        "feature_error": float(errors.max()),
        "noise_mse": float((found.noise[near] - eps).square().mean(dim=1).max()),
        "residual": found.residual,
    }
    if not options.iterations:
        return row
    target = found.features[near].to(dtype)
    scale = target.square().sum()
    start = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(dtype)
    recovered, own = found.noise[near].to(dtype), torch.randn(eps.shape, generator=draw, dtype=torch.float64).to(dtype)
    bare = gradients(plain, x, y, [])
    losses: dict[str, Callable[[Tensor], Tensor]] = {
        "undefended": lambda z: relative(gradients(plain, z, y, [], graph=True), bare),
        "noise of its own": lambda z: relative(gradients(victim, z, y, [own], graph=True), update),
        "noise recovered": lambda z: relative(gradients(victim, z, y, [recovered], graph=True), update),
        "noise and features": lambda z: (
            relative(gradients(victim, z, y, [recovered], graph=True), update)
            + options.feature_weight * (features(victim, z) - target).square().sum() / scale
        ),
    }
    for name, loss in losses.items():
        restored = inputs.denormalise(search(victim, start, loss, options.iterations)).float()
        order = match_batch(restored, images)
        row[name] = {
            "psnr": [round(value, 1) for value in psnr(restored[order], images).tolist()],
            "ssim": [round(value, 2) for value in ssim(restored[order], images).tolist()],
        }
    return row


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["lenet", "lenet:init=uniform", "lenet:activation=relu"])
    parser.add_argument("--defence", default="precode", help="defence spec")
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 4, 8], help="images of a batch")
    parser.add_argument("--batches", type=int, default=5, help="of each size")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="of models and updates")
    parser.add_argument("--iterations", type=int, default=0, help="of the search for images, 0 for none")
    parser.add_argument("--feature-weight", type=float, default=1.0, help="beside the convolutions' gradients")
    parser.add_argument("--seed", type=int, default=0, help="of the models")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for model in options.models:
            for size in options.sizes:
                for number in range(options.batches):
                    row = one(options, model, size, number, getattr(torch, dtype))
                    rows.append({"model": model, "dtype": dtype, "batch": size, "number": number} | row)
                    logger.info("%s", json.dumps(rows[-1]))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    if options.out:
        options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
