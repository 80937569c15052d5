"""Defences by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from attacker.cli.main import app
from fl_precode.defences.on_gradients import Quantise
from fl_precode.defences.ppp import PartialNoise
from fl_precode.defences.precode import VariationalBottleneck
from fl_precode.defences.registry import (
    DEFENCES,
    apply_defence,
    changes_model,
    check_defence,
    check_gradient_defence,
    gradient_defence,
    perturbation_generator,
)
from fl_precode.defences.soteria import Soteria
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
        ("precode+", "no defence 'precode\\+'; expected one of none"),
        ("precode+nois", "no defence 'nois'; expected one of none"),
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


@pytest.mark.parametrize(
    "spec",
    ["none", "precode", "precode:latent=1,beta=0,before=any|thing", "precode-reference", "cvb+ppp:std=1", "soteria"],
)
def test_good_specs_pass_the_check(spec):
    check_defence(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("noise", "'noise' needs std; write noise:std=..."),
        ("dp", "'dp' needs max_norm, noise_multiplier; write dp:max_norm=...,noise_multiplier=..."),
        ("noise:std=0", "positive, finite std, got 0"),
        ("laplace:std=much", "std to be a number, got 'much'"),
        ("noise:scale=1", "'noise' has no option 'scale'; it has std"),
        ("prune:share=1", "less than 1, got 1"),
        ("clip:max_norm=-1", "positive, finite max_norm"),
        ("quantise:bits=1", "use the defence 'sign'"),
        ("quantise:bits=2.5", "bits to be a whole number"),
        ("sign:bits=1", "'sign' has no option 'bits'; it has none"),
        ("soteria:share=1.5", "less than 1, got 1.5"),
        ("dp:max_norm=1,noise_multiplier=-1", "noise_multiplier of 0 or more"),
        ("precode+ppp:std=0.1,threshold=3", "threshold"),
        ("cvb:latent=0", "positive latent, got 0"),
        ("cvb:kernel=4", "odd, positive kernel"),
        ("cvb:beta=-1", "finite beta"),
        ("dropout:p=1", "dropout p between 0 and 1"),
        ("none+noise:std=1", "'none' stands alone"),
        ("noise:std=1+noise:std=2", "'noise' is given twice; give it once$"),
        ("precode+precode:before=conv2", "'precode' is given twice.*write before=a|b"),
        ("precode+precode-reference", "one bottleneck with two settings"),
        ("cvb+cvb-reference", "one bottleneck with two settings"),
        ("noise:std=1+laplace:std=1", "laplace and noise both add noise"),
        ("precode+ppp:std=1+noise:std=1", "noise and ppp both add noise"),
        ("ppp:std=1", "there is none; use precode\\+ppp"),
        ("dropout+ppp:std=1", "there is none; use precode\\+ppp"),
        ("dp:max_norm=1,noise_multiplier=1+noise:std=1", "raise noise_multiplier"),
        ("soteria+dp:max_norm=1,noise_multiplier=1", "which dp's epsilon does not count"),
        ("quantise:bits=4+sign", "choose quantise or sign"),
        ("noise:std=1+soteria", "soteria works on the gradient of a batch.*name it first"),
        ("clip:max_norm=1+dp:max_norm=1,noise_multiplier=1", "dp works on the gradient of a batch.*name it first"),
    ],
)
def test_bad_settings_and_contradictions_are_refused_with_advice(spec, message):
    with pytest.raises(ValueError, match=message):
        check_defence(spec)


def test_a_chain_acts_from_left_to_right():
    values = {"w": torch.tensor([3.0, 4.0, 0.1])}

    def run(spec):
        return gradient_defence(spec)(values, generator=torch.Generator().manual_seed(1))["w"]

    clipped_first, clipped_last = run("clip:max_norm=1+noise:std=5"), run("noise:std=5+clip:max_norm=1")
    assert clipped_last.norm().item() == pytest.approx(1.0)
    assert clipped_first.norm() > 1.5
    noise = run("noise:std=5") - values["w"]
    assert torch.allclose(clipped_first, values["w"] / values["w"].norm() + noise)
    assert torch.equal(run("noise:std=5e+0"), run("noise:std=5"))


def test_specs_become_model_and_gradient_defences():
    assert gradient_defence("none") is None
    assert gradient_defence("precode+dropout:p=0.1") is None
    both = gradient_defence("precode:latent=3+soteria:share=0.7,layer=fc+ppp:std=0.01,threshold=0.4+quantise:bits=4")
    assert both.parts == (
        Soteria(share=0.7, layer="fc"),
        PartialNoise(std=0.01, threshold=0.4),
        Quantise(bits=4),
    )
    assert both.of_steps().parts == both.parts[:1]
    assert both.of_update().parts == both.parts[1:]
    assert gradient_defence("sign").of_steps() is None
    assert gradient_defence("soteria").of_update() is None
    assert gradient_defence("dp:max_norm=2,noise_multiplier=0.5").bounds_examples
    assert not both.bounds_examples
    assert not changes_model("noise:std=1")
    assert not changes_model("none")
    assert changes_model("cvb+noise:std=1")


def test_model_parts_are_applied_together_and_gradient_parts_leave_the_model_alone(lenet):
    defended = apply_defence(
        "cvb:latent=3,kernel=3,beta=0.2+precode:latent=5+dropout:p=0.25+noise:std=1", lenet, INPUTS
    )
    assert (defended.conv2.bottleneck.latent, defended.conv2.bottleneck.kernel) == (3, 3)
    assert defended.classifier.bottleneck.latent == 5
    assert defended.classifier.layer.dropout.p == 0.25
    assert apply_defence("cvb-reference", lenet, INPUTS).conv2.bottleneck.reference_kl
    plain = apply_defence("noise:std=1", lenet, INPUTS)
    assert plain is not lenet
    assert plain.state_dict().keys() == lenet.state_dict().keys()
    several = apply_defence("precode:latent=4,before=conv2|classifier", lenet, INPUTS)
    assert several.conv2.bottleneck.latent == several.classifier.bottleneck.latent == 4
    with pytest.raises(ValueError, match="'conv2' has a bottleneck in front of it already"):
        apply_defence("cvb+precode:before=conv2", lenet, INPUTS)


def test_models_that_cannot_have_a_gradient_defence_are_refused(lenet):
    check_gradient_defence("noise:std=1", lenet)
    check_gradient_defence("none", lenet)
    with pytest.raises(ValueError, match=r"none named 'fc'; it has classifier"):
        check_gradient_defence("soteria:layer=fc+noise:std=1", lenet)
    with pytest.raises(ValueError, match="batch normalisation or running statistics"):
        check_gradient_defence("dp:max_norm=1,noise_multiplier=1", nn.Sequential(nn.BatchNorm2d(3)))


def test_generators_differ_for_every_client_and_round_and_from_torchs_own():
    def first(*identity):
        return torch.randn(4, generator=perturbation_generator(*identity))

    assert torch.equal(first(0, 1, 2), first(0, 1, 2))
    drawn = [tuple(first(seed, client, rnd).tolist()) for seed in range(3) for client in range(3) for rnd in range(3)]
    assert len(set(drawn)) == 27
    torch.manual_seed(0)
    assert not torch.equal(first(0, 0, 0), torch.randn(4))


@pytest.mark.parametrize(
    ("spec", "lenet_size", "mlp_size"),
    [
        ("none", 15_826, 4_206_602),
        ("precode", 606_930, 4_994_570),
        (
            "precode:latent=64",
            15_826 + 768 * 128 + 128 + 64 * 768 + 768,
            4_206_602 + 1024 * 128 + 128 + 64 * 1024 + 1024,
        ),
        ("cvb", 15_826 + 3600 + 72, None),
        ("dropout", 15_826, 4_206_602),
        ("noise:std=0.01", 15_826, 4_206_602),
    ],
)
def test_parameters_and_payload_of_each_defence(spec, lenet_size, mlp_size):
    for name, size in (("lenet", lenet_size), ("mlp", mlp_size)):
        if size is None:
            with pytest.raises(ValueError, match="needs feature maps"):
                apply_defence(spec, build_model(name, INPUTS, seed=0), INPUTS)
            continue
        defended = apply_defence(spec, build_model(name, INPUTS, seed=0), INPUTS)
        assert sum(p.numel() for p in defended.parameters()) == size
        assert sum(value.nbytes for value in defended.state_dict().values()) == 4 * size


def test_the_command_line_lists_every_defence():
    shown = CliRunner().invoke(app, ["defences"]).stdout
    assert [line.split()[0] for line in shown.splitlines()] == list(DEFENCES)


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


PLACE = "tests.fl_precode.own_defences"


def test_a_defence_is_named_by_the_place_of_its_class():
    defend = gradient_defence(f"{PLACE}:Halved(part=0.25)+clip:max_norm=100")
    assert float(defend({"w": torch.ones(1)})["w"]) == 0.25
    assert not changes_model(f"{PLACE}:Halved")
    with pytest.raises(ValueError, match="'.*Halved' is given twice"):
        check_defence(f"{PLACE}:Halved+{PLACE}:Halved")
    for wrong, words in (
        (f"{PLACE}:torch", "expected a subclass of GradientDefence"),
        (f"{PLACE}:Gone", "has no 'Gone'"),
    ):
        with pytest.raises(ValueError, match=words):
            check_defence(wrong)


def test_a_defence_that_changes_shapes_is_refused():
    with pytest.raises(
        ValueError, match=r"Misshapen must return every gradient .* expected 'w' of shape \(2, 2\), got \(3,\)"
    ):
        gradient_defence(f"{PLACE}:Misshapen")({"w": torch.ones(2, 2)})
