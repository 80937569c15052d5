"""Layer by layer: how many equations a gradient gives for what entered each layer, and how many of them count.

The systems are those of R-GAP (Zhu, Blaschko, ICLR 2021) and of Chen, Campbell (arXiv 2111.10178): see
`attacker.analytic.linear_systems`. A layer by itself is no security test. Later gradients bind the image through
several layers at once: a net with a deeply deficient layer can be inverted nearly whole. The sound test is the rank of
J = d(gradient)/d(pixels), see `attacker.leakage.spectrum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attacker.analytic.linear_systems import LayerSystem, Patches
from attacker.gradients.uncompared_parameters import constants_of
from attacker.leakage.record import LayerRank
from attacker.leakage.released import Released

DENSE = 4096
"""Equations or unknowns, whichever are fewer, up to which a rank is computed."""
_TOLERANCE = 1e-12
_CHUNK = 128


def layer_ranks(of: Released, pixels: Tensor, *, dense: int = DENSE) -> tuple[LayerRank, ...]:
    """Equations of every convolution and Linear layer, in order of execution.

    Args:
        of: The gradient as a function of the image; one image, since a batch mixes the equations.
        pixels: (1, channels, height, width) in [0, 1].
        dense: Equations or unknowns, whichever are fewer, up to which a convolution's rank is computed; 0 for none.

    Raises:
        ValueError: If there is more than one image.
    """
    if len(pixels) != 1:
        raise ValueError(f"expected one image, got {len(pixels)}: the gradient of a batch is a sum over its images")
    return tuple(
        _layer_rank(name, layer, tensors, dense, moved=_moved(of, name, layer))
        for name, layer, tensors in _backpropagated(of, pixels)
    )


def solubility(layers: Sequence[LayerRank]) -> float:
    """The metric c(M) of Chen, Campbell (arXiv 2111.10178): sum of ``(d - i + 1) / d * (rank - unknowns)``.

    Over the d convolutions, i = 1 nearest to the image; 0 when each is soluble by itself, more negative for what the
    paper calls more secure. For comparison with the literature only: it is **not sound**. Of the paper's own nets one
    (16-6-32 channels) scores -6211, by far the most secure, although its gradient determines all of the image but
    189 border numbers.
    """
    convolutions = [layer for layer in layers if layer.kind == "Conv2d"]
    count = len(convolutions)
    return 0.0 - sum((count - place) * layer.missing for place, layer in enumerate(convolutions)) / max(count, 1)


def _backpropagated(
    of: Released, pixels: Tensor
) -> list[tuple[str, nn.Conv2d | nn.Linear, tuple[Tensor, Tensor, Tensor]]]:
    """Each layer with its input, its weight and the gradient with respect to its output."""
    runs: list[tuple[str, nn.Conv2d | nn.Linear, Tensor, Tensor, Tensor]] = []
    handles = []
    for name, module in of.replay.victim.model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue

        def record(layer: Any, arguments: Any, output: Tensor, name: str = name) -> None:
            runs.append((name, layer, arguments[0].detach(), layer.weight.detach(), output))

        handles.append(module.register_forward_hook(record))
    try:
        with torch.enable_grad():
            loss = of.loss({}, pixels.detach().requires_grad_(True), of.noise)
    finally:
        for handle in handles:
            handle.remove()
    deltas = torch.autograd.grad(loss, [run[-1] for run in runs], materialize_grads=True)
    return [(name, layer, (x, weight, delta)) for (name, layer, x, weight, _), delta in zip(runs, deltas, strict=True)]


def _moved(of: Released, name: str, layer: nn.Module) -> bool:
    """Whether the gradient of a layer's weight is released: a constant one gives no equations but the forward ones."""
    return (f"{name}.weight" if name else "weight") in of.matched or not constants_of(layer)


def _layer_rank(
    name: str,
    layer: nn.Conv2d | nn.Linear,
    tensors: tuple[Tensor, Tensor, Tensor],
    dense: int,
    *,
    moved: bool,
) -> LayerRank:
    x, weight, delta = tensors
    patches = _geometry(layer, x)
    if isinstance(layer, nn.Linear) and patches.positions > 1:
        delta = delta.flatten(0, -2).T
    delta = delta.reshape(1, patches.outputs, *patches.output_size)
    rank_and_gap = None
    gradient_rows = patches.gradient_rows if moved else 0
    equations = patches.weight_rows + gradient_rows
    predicted = patches.rank_bound
    if not moved:
        delta = torch.zeros_like(delta)
        predicted = min(patches.unknowns - patches.untouched, patches.independent_weight_rows)
    if isinstance(layer, nn.Conv2d) and min(equations, patches.unknowns) <= dense:
        rank_and_gap = _rank(LayerSystem(patches=patches, weight=_balanced(weight, delta)[None], delta=delta))
    return LayerRank(
        name=name,
        kind="Conv2d" if isinstance(layer, nn.Conv2d) else "Linear",
        unknowns=patches.unknowns,
        weight_rows=patches.weight_rows,
        gradient_rows=gradient_rows,
        dependent_rows=patches.dependent_rows if moved else patches.weight_rows - patches.independent_weight_rows,
        untouched=patches.untouched,
        predicted=predicted,
        rank=None if rank_and_gap is None else rank_and_gap[0],
        gap=None if rank_and_gap is None else rank_and_gap[1],
    )


def _geometry(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Patches:
    if isinstance(layer, nn.Conv2d) or x.dim() == 2:
        return Patches.of(layer, tuple(x.shape[1:]))
    # A Linear layer that runs over tokens: each is a position of a 1x1 convolution.
    return Patches(
        shape=(layer.in_features, x.numel() // layer.in_features, 1),
        kernel=(1, 1),
        stride=(1, 1),
        padding=(0, 0, 0, 0),
        dilation=(1, 1),
        groups=1,
        outputs=layer.out_features,
    )


def _balanced(weight: Tensor, delta: Tensor) -> Tensor:
    """The weight made as small as the gradient often is, so that no row looks like rounding beside the others."""
    size, steepness = float(weight.norm()), float(delta.norm())
    return weight * (steepness / size) if size and steepness else weight


def _rank(system: LayerSystem) -> tuple[int, tuple[float, float | None]]:
    """Rank and gap, from the eigenvalues of A A^T or A^T A, whichever is smaller, in float64."""
    double = LayerSystem(patches=system.patches, weight=system.weight.double(), delta=system.delta.double())
    columns = []
    units = torch.eye(system.patches.unknowns, dtype=torch.float64, device=system.delta.device)
    for some in torch.split(units, _CHUNK):
        z, gradient = double.apply(some.reshape(-1, *system.patches.shape))
        columns.append(torch.cat([z.flatten(1), gradient], dim=1))
    matrix = torch.cat(columns)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).flip(0)
    shares = values / values[0] if float(values[0]) > 0 else torch.zeros_like(values)
    rank = int((shares > _TOLERANCE).sum())
    after = float(shares[rank].clamp(min=0)) if rank < len(shares) else None
    return rank, (float(shares[rank - 1]) if rank else 0.0, after)
