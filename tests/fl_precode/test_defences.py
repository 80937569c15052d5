"""Defences by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fl_precode.bottleneck import VariationalBottleneck
from fl_precode.defences import DEFENCES, apply_defence, check_defence
from fl_precode.models import InputSpec, build_model

INPUTS = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture
def lenet():
    return build_model("lenet", INPUTS, seed=0)


def bottleneck_of(model):
    (found,) = [module for module in model.modules() if isinstance(module, VariationalBottleneck)]
    return found


@pytest.mark.parametrize(("name", "parameters"), [("mlp", 4_994_570), ("lenet", 606_930)])
def test_parameter_counts_with_precode(name, parameters):
    defended = apply_defence("precode", build_model(name, INPUTS, seed=0), INPUTS)
    assert sum(p.numel() for p in defended.parameters()) == parameters
    assert defended(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_none_is_an_equal_copy(lenet):
    same = apply_defence("none", lenet, INPUTS)
    assert same is not lenet
    assert all(torch.equal(value, lenet.state_dict()[name]) for name, value in same.state_dict().items())
    assert same.state_dict().keys() == lenet.state_dict().keys()


def test_options_reach_the_bottleneck(lenet):
    found = bottleneck_of(apply_defence("precode:latent=8,beta=0.5,before=conv2", lenet, INPUTS))
    assert (found.latent, found.beta, found.features) == (8, 0.5, 12 * 16 * 16)
    reference = bottleneck_of(apply_defence("precode-reference:before=act3", lenet, INPUTS))
    assert (reference.latent, reference.beta, reference.features) == (256, pytest.approx(1e-3 / math.log(2)), 768)
    plain = bottleneck_of(apply_defence("precode", lenet, INPUTS))
    assert (plain.latent, plain.beta) == (256, 1e-3)


def test_the_seed_decides_the_new_layers_and_nothing_else(lenet):
    before = torch.random.get_rng_state()
    first, again, other = (
        bottleneck_of(apply_defence("precode", lenet, INPUTS, seed=s)).encoder.weight for s in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_with_equal_seeds_the_new_layers_do_not_repeat_the_models_random_numbers():
    mlp = build_model("mlp", INPUTS, seed=5)
    encoder = bottleneck_of(apply_defence("precode", mlp, INPUTS, seed=5)).encoder.weight.detach().flatten()
    first_layer = mlp.fc1.weight.detach().flatten()[: len(encoder)]
    correlation = torch.corrcoef(torch.stack([encoder, first_layer]))[0, 1]
    assert correlation.abs() < 0.01


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("precodes", "no defence 'precodes'; expected one of none, precode, precode-reference"),
        ("precode+noise", "no defence 'precode\\+noise'; expected one of none"),
        ("precode:lattent=3", "'precode' has no option 'lattent'; it has before, beta, latent"),
        ("precode-reference:latent=3", "'precode-reference' has no option 'latent'; it has before"),
        ("none:latent=3", "'none' has no option 'latent'; it has none"),
        ("precode:latent=many", "latent to be a whole number, got 'many'"),
        ("precode:latent=0", "positive latent, got 0"),
        ("precode:latent=-5", "positive latent, got -5"),
        ("precode:beta=-1", "finite beta of 0 or more, got -1"),
        ("precode:beta=nan", "finite beta"),
        ("precode:beta", "form key=value"),
        ("", "form name or name:key=value"),
    ],
)
def test_bad_specs_are_refused_beforehand(spec, message, lenet):
    with pytest.raises(ValueError, match=message):
        check_defence(spec)
    with pytest.raises(ValueError, match=message):
        apply_defence(spec, lenet, INPUTS)


@pytest.mark.parametrize("spec", ["none", "precode", "precode:latent=1,beta=0,before=anything", "precode-reference"])
def test_good_specs_pass_the_check(spec):
    check_defence(spec)


def test_a_check_draws_no_random_numbers():
    before = torch.random.get_rng_state()
    check_defence("precode:latent=8,beta=0.5")
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_that_cannot_carry_the_defence_is_refused(lenet):
    with pytest.raises(ValueError, match="no module named 'convv2'; did you mean 'conv2'"):
        apply_defence("precode:before=convv2", lenet, INPUTS)
    convolutions = nn.Sequential(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"no torch.nn.Linear layer"):
        apply_defence("precode", convolutions, INPUTS)


def test_double_precision_models_are_defended():
    model = build_model("lenet", INPUTS, seed=0).double()
    assert bottleneck_of(apply_defence("precode", model, INPUTS)).encoder.weight.dtype == torch.float64


def test_the_registry_describes_itself():
    assert all("\n" not in entry.description and entry.description for entry in DEFENCES.values())
