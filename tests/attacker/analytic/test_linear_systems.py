"""The equations of one layer, against autograd, dense matrices and the counts known for published nets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.analytic.linear_systems import LayerSystem, Patches

# "same" with an even kernel is one of the cases.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

LAYERS = [
    (nn.Conv2d(3, 4, 3), (3, 7, 6)),
    (nn.Conv2d(3, 4, 5, stride=2, padding=2), (3, 8, 8)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2, bias=False), (4, 9, 8)),
    (nn.Conv2d(2, 2, 4, padding="same"), (2, 6, 5)),
    (nn.Conv2d(2, 3, 3, padding="valid", dilation=2), (2, 7, 7)),
    (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    (nn.Conv2d(2, 12, 2, stride=2), (2, 6, 6)),  # more outputs than numbers in a patch
    (nn.Conv2d(1, 5, 4), (1, 5, 5)),  # more outputs than positions
    (nn.Linear(6, 4), (6,)),
    (nn.Linear(12, 3, bias=False), (12,)),
]


def system_of(layer, shape, *, victims=2):
    """A system with random deltas, and the pieces it is made of."""
    patches = Patches.of(layer, shape)
    generator = torch.Generator().manual_seed(1)
    delta = torch.randn(victims, patches.outputs, *patches.output_size, generator=generator, dtype=torch.float64)
    x = torch.randn(victims, *patches.shape, generator=generator, dtype=torch.float64)
    return LayerSystem(patches=patches, weight=layer.weight.detach().double()[None], delta=delta), x


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_blocks_are_what_autograd_computes(layer, shape):
    system, x = system_of(layer, shape)
    layer = layer.double()
    for index in range(2):
        one = x[index : index + 1].reshape(1, *shape).requires_grad_(True)
        z = layer(one)
        delta = system.delta[index].reshape(z.shape)
        into, weight = torch.autograd.grad(z, [one, layer.weight], delta)
        bias = 0 if layer.bias is None else layer(torch.zeros_like(one))
        got_z, got_gradient = system.apply(x)
        torch.testing.assert_close(got_z[index].reshape(z.shape), z - bias, rtol=0, atol=1e-10)
        torch.testing.assert_close(got_gradient[index], weight.flatten(), rtol=0, atol=1e-10)
        torch.testing.assert_close(system.input_gradient()[index].reshape(one.shape), into, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_the_transpose_is_the_transpose_of_the_dense_matrix(layer, shape):
    system, x = system_of(layer, shape)
    dense = system.dense()
    z, gradient = system.apply(x)
    rows = torch.cat([z.flatten(1), gradient], dim=1)
    torch.testing.assert_close((dense @ x.flatten(1).unsqueeze(2)).squeeze(2), rows, rtol=0, atol=1e-8)
    back = system.transposed(z, gradient).flatten(1)
    torch.testing.assert_close((dense.mT @ rows.unsqueeze(2)).squeeze(2), back, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_rows_depend_on_each_other_as_counted(layer, shape):
    """``sum_w W[j] K(o) = sum_r d[o] T(j)`` within each group, and the rank is what the counts say."""
    system, x = system_of(layer, shape, victims=1)
    z, gradient = system.apply(x)
    groups, per_group = system.patches.groups, system.patches.outputs // system.patches.groups
    weight = system.weight.reshape(groups, per_group, -1)
    delta, z = (part.reshape(groups, per_group, -1) for part in (system.delta, z))
    gradient = gradient.reshape(groups, per_group, -1)
    torch.testing.assert_close(gradient @ weight.mT, delta @ z.mT, rtol=0, atol=1e-8)
    assert int(torch.linalg.matrix_rank(system.dense()[0], rtol=1e-9)) == system.patches.rank_bound


@pytest.mark.parametrize(
    ("layer", "shape", "untouched", "rank"),
    [
        (nn.Conv2d(3, 6, 4, stride=2, bias=False), (3, 32, 32), 0, 1602),
        (nn.Conv2d(3, 6, 3, bias=False), (3, 32, 32), 0, 3072),
        (nn.Conv2d(3, 12, 5, stride=2, bias=False), (3, 32, 32), 189, 2883),
        (nn.Conv2d(6, 16, 5, stride=2, bias=False), (6, 28, 28), 330, 4374),
    ],
)
def test_counts_of_published_nets(layer, shape, untouched, rank):
    patches = Patches.of(layer, shape)
    assert (patches.untouched, patches.rank_bound) == (untouched, rank)


def test_other_padding_is_refused():
    with pytest.raises(ValueError, match="padding_mode='reflect'"):
        Patches.of(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (1, 5, 5))
    with pytest.raises(ValueError, match="expected 4 numbers"):
        Patches.of(nn.Linear(4, 2), (5,))
    with pytest.raises(ValueError, match="expected 4 numbers"):
        Patches.of(nn.Linear(4, 2), (3, 4))
    with pytest.raises(ValueError, match="expected .channels, height, width."):
        Patches.of(nn.Conv2d(1, 1, 3), (25,))
