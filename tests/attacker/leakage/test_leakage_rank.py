"""Ranks of layers and of J against the values that were found for the nets of the literature."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.leakage import Jacobian, layer_ranks, released, solubility, spectrum
from attacker.victim import Victim
from fl_precode.models import InputSpec
from tests.attacker import literature

LABEL = torch.tensor([9])


def layers(name, **options):
    return layer_ranks(released(literature.victim(name), LABEL), literature.image(), **options)


def jacobian_spectrum(name):
    return spectrum(Jacobian(released(literature.victim(name), LABEL), literature.image()))


def test_cnn2_c2():
    first, last = layers("cnn2_c2")
    assert (first.unknowns, first.weight_rows, first.gradient_rows, first.dependent_rows) == (3072, 1350, 288, 36)
    assert first.predicted == first.rank == 1602
    assert first.gap is not None
    assert first.gap[0] > 1e-6 > 1e-13 > first.gap[1]
    assert (last.kind, last.missing) == ("Linear", 0)
    assert solubility((first, last)) == -1470
    assert first.missing == 1470


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cnn2_c1", 0),
        ("cnn3_c1", -2266.5),
        ("cnn3_c2", -1995),
        ("cnn4_c1", -2772),
        ("cnn4_c2", -18632 / 3),
        ("cnn4_c3", -220),
    ],
)
def test_solubility_of_chen_campbell(name, value):
    assert solubility(layers(name, dense=4800)) == pytest.approx(value)


@pytest.mark.slow
def test_cnn4_c3_second_layer():
    assert layers("cnn4_c3", dense=4800)[1].rank == 4374


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "missing"), [("cnn6", 0, 0), ("cnn6-d", -700 / 3, 280)])
def test_rgap(name, value, missing):
    found = layers(name)
    assert solubility(found) == pytest.approx(value)
    assert found[1].missing == missing
    if missing:  # the one layer known where counting is too high: -88 against -280
        assert found[1].unknowns - found[1].predicted == 88


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank"),
    [("cnn2_c2", 1602), ("cnn3_c1", 1029), ("cnn3_c2", 588), ("cnn4_c1", 1236), ("cnn4_c2", 2883), ("cnn4_c3", 2883)],
)
def test_rank_of_the_jacobian(name, rank):
    found = jacobian_spectrum(name)
    assert found.rank == rank
    assert found.gap[1] is not None
    assert found.gap[1] < 1e-14 < 1e-10 < found.gap[0]


def test_untouched_pixels_are_lost():
    spec = InputSpec(channels=3, height=8, width=8, classes=4, mean=(0.5,) * 3, std=(1.0,) * 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 20, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(80, 4)).double()
    of = released(Victim(model=model, inputs=spec), torch.tensor([1]))
    (first, _), found = layer_ranks(of, literature.image(0, spec)), spectrum(Jacobian(of, literature.image(0, spec)))
    assert first.untouched == 3 * (64 - 49) == first.missing
    assert found.rank == 192 - 45
    lost = found.lost()[0]
    torch.testing.assert_close(lost[:, :7, :7], torch.zeros(3, 7, 7, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(lost[:, 7], torch.ones(3, 8, dtype=torch.float64))
    torch.testing.assert_close(lost[:, :, 7], torch.ones(3, 8, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 2, 2, 9, 2), (2, 3, 1, 40, 2), (4, 1, 1, 30, 1), (2, 4, 3, 5, 1)])
def test_the_dependency_is_counted_right(shape):
    """Rows minus rank when there are more unknowns than equations can bind, or more outputs than all else."""
    channels, side, kernel, outputs, stride = shape
    spec = InputSpec(
        channels=channels, height=side, width=side, classes=3, mean=(0.5,) * channels, std=(1.0,) * channels
    )
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, outputs, kernel, stride)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)).double()
    model(torch.zeros(1, *spec.shape, dtype=torch.float64))
    of = released(Victim(model=model, inputs=spec), torch.tensor([1]))
    first = layer_ranks(of, literature.image(0, spec))[0]
    assert first.rank == first.predicted


def test_large_layers_are_counted_only():
    (first, _) = layers("cnn2_c2", dense=1000)
    assert (first.rank, first.gap, first.missing) == (None, None, 1470)


def test_linear_layers_over_tokens_are_convolutions_of_one_pixel():
    spec = InputSpec(channels=2, height=4, width=4, classes=3, mean=(0.5,) * 2, std=(1.0,) * 2)
    torch.manual_seed(0)
    of = released(Victim(model=literature.small("attention", spec).double(), inputs=spec), torch.tensor([1]))
    found = {layer.name: layer for layer in layer_ranks(of, literature.image(0, spec))}
    assert (found["0.mixed"].unknowns, found["0.mixed"].weight_rows, found["0.mixed"].gradient_rows) == (32, 96, 192)
    assert found["0.patches"].rank == 32


def test_batches_are_refused():
    with pytest.raises(ValueError, match="expected one image, got 2"):
        layer_ranks(released(literature.victim("cnn2_c2"), LABEL), literature.image().repeat(2, 1, 1, 1))
