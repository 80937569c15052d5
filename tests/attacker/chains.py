"""Random convolutional chains whose every layer has more equations than unknowns, and what attacks make of them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import nn

from attacker.analytic.linear_systems import LayerSystem, Patches
from attacker.attacks import build_attack
from tests.attacker import tiny

ACTIVATIONS = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky": lambda: nn.LeakyReLU(0.2),
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


@st.composite
def soluble(draw):
    """A spec and a model: one or two convolutions of full column rank with a margin, and a classifier."""
    side, channels = draw(st.integers(5, 8)), draw(st.integers(1, 2))
    spec = tiny.inputs(channels=channels, side=side)
    shape, layers = spec.shape, []
    for _ in range(draw(st.integers(1, 2))):
        kernel, stride, dilation = draw(st.integers(2, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
        groups = draw(st.sampled_from([1, shape[0]]))
        padding = draw(st.integers(0, kernel - 1))
        for outputs in range(groups * 2, 200, groups):
            layer = nn.Conv2d(
                shape[0], outputs, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
                bias=draw(st.booleans()),
            )  # fmt: skip
            patches = Patches.of(layer, shape)
            if min(patches.output_size) < 2 or patches.untouched:
                break
            # Overdetermined with a margin: at the bound a system may be as ill-conditioned as it likes.
            if patches.weight_rows >= 1.5 * patches.unknowns:
                break
        if min(patches.output_size) < 2 or patches.weight_rows < 1.5 * patches.unknowns or patches.untouched:
            continue
        layers += [layer, ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]()]
        shape = (outputs, *patches.output_size)
    features = shape[0] * shape[1] * shape[2]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, spec.classes, bias=draw(st.booleans())))
    return spec, model


def condition(spec, model):
    """The largest condition number of the weight constraints of the convolutions."""
    shape, found = spec.shape, 1.0
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            patches = Patches.of(layer, shape)
            nothing = torch.zeros(1, patches.outputs, *patches.output_size, dtype=torch.float64)
            dense = LayerSystem(patches=patches, weight=layer.weight.detach().double()[None], delta=nothing).dense()[0]
            values = torch.linalg.svdvals(dense)
            found = max(found, float(values[0] / values[-1]))
            shape = (patches.outputs, *patches.output_size)
    return found


def attacked(spec, model, *, method="layerwise-inversion", dtype=torch.float64, label=1, count=1, **changes):
    """Truths and results of one call for ``count`` clients."""
    victim = tiny.victim(model, spec, dtype=dtype)
    truths = [tiny.images(spec, 1, seed=index, dtype=dtype) for index in range(count)]
    seen = [tiny.observe(victim, x, [label], **changes) for x in truths]
    return victim, truths, build_attack(method)(victim, seen, generator=torch.Generator().manual_seed(0))
