"""Models by name and by import path, and what is said about those that do not fit."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fl_precode.models import MODELS, InputSpec, build_model, check_model

HERE = "tests.fl_precode.exotic_models"


def images(channels=3, side=32, classes=10):
    return InputSpec(
        channels=channels, height=side, width=side, classes=classes, mean=(0.5,) * channels, std=(0.5,) * channels
    )


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "parameters"), [("mlp", 4_206_602), ("lenet", 15_826)])
def test_parameter_counts_of_the_literature(name, parameters):
    model = build_model(name, images(), seed=0)
    assert size(model) == parameters
    assert isinstance(model, nn.Sequential)
    assert model.classifier.out_features == 10
    assert model.training


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet20"])
@pytest.mark.parametrize("inputs", [images(1, 8, 2), images(3, 25, 7), images(1, 1, 2), images(2, 64, 6)], ids=str)
def test_every_model_takes_every_image_size(name, inputs):
    assert build_model(name, inputs, seed=0)(torch.zeros(3, *inputs.shape)).shape == (3, inputs.classes)


def test_lenet_takes_images_that_are_not_square():
    inputs = InputSpec(channels=1, height=9, width=14, classes=3, mean=(0.0,), std=(1.0,))
    assert build_model("lenet", inputs, seed=0)(torch.zeros(2, 1, 9, 14)).shape == (2, 3)


def test_layers_are_those_of_the_papers():
    mlp, lenet = build_model("mlp", images(), seed=0), build_model("lenet", images(), seed=0)
    assert [m.out_features for m in mlp if isinstance(m, nn.Linear)] == [1024, 1024, 10]
    assert sum(isinstance(m, nn.ReLU) for m in mlp) == 2
    convolutions = [m for m in lenet if isinstance(m, nn.Conv2d)]
    assert [(m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0]) for m in convolutions] == [
        (12, 5, 2, 2),
        (12, 5, 2, 2),
        (12, 5, 1, 2),
    ]
    assert sum(isinstance(m, nn.Sigmoid) for m in lenet) == 3


def test_options_change_the_model():
    relu = build_model("lenet:activation=relu", images(), seed=0)
    assert sum(isinstance(m, nn.ReLU) for m in relu) == 3
    for name in ("mlp", "lenet"):
        uniform = torch.cat([p.flatten() for p in build_model(f"{name}:init=uniform", images(), seed=0).parameters()])
        assert uniform.abs().max() <= 0.5
        assert uniform.std().item() == pytest.approx(12**-0.5, rel=0.02)
        plain = build_model(f"{name}:init=default", images(), seed=0)
        assert torch.cat([p.flatten() for p in plain.parameters()]).std() < 0.1


@pytest.mark.parametrize("spec", ["lenet", "lenet:init=uniform", f"{HERE}:Plain", f"{HERE}:lazy"])
def test_the_seed_decides_and_the_global_generator_is_left_alone(spec):
    before = torch.random.get_rng_state()
    models = [build_model(spec, images(), seed=seed) for seed in (1, 1, 2)]
    first, again, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("use", [check_model, lambda spec: build_model(spec, images(), seed=1)], ids=["check", "build"])
def test_a_first_import_that_draws_random_numbers_shifts_nobodys(use, monkeypatch):
    """The module builds a layer when it is imported, which happens once in a process."""
    monkeypatch.delitem(sys.modules, HERE, raising=False)
    before = torch.random.get_rng_state()
    use(f"{HERE}:Plain")
    assert HERE in sys.modules
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_build_that_imports_equals_one_that_does_not(monkeypatch):
    monkeypatch.delitem(sys.modules, HERE, raising=False)
    first, second = (build_model(f"{HERE}:Plain", images(), seed=1).head.weight for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "attribute", ["with_spec", "with_optional_inputs", "Plain", "Plain.quiet", "lazy", "normalised"]
)
def test_models_by_import_path(attribute):
    model = build_model(f"{HERE}:{attribute}", images(), seed=0)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert model.training == (attribute != "Plain.quiet")


def test_the_trial_leaves_modes_and_statistics_as_they_were():
    model = build_model(f"{HERE}:normalised", images(), seed=0)
    assert model[1].num_batches_tracked == 0
    assert torch.equal(model[1].running_var, torch.ones(4))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("convnet:width=0", "'convnet:width=0': expected width to be at least 1, got 0"),
        ("resnet20:width=wide", "expected width to be a whole number, got 'wide'"),
        ("resnet20:width=1.5", "expected width to be a whole number, got '1.5'"),
        ("convnet:norm=layer", "norm to be one of batch, group, none, got 'layer'"),
        ("resnet20:norm=none", "norm to be one of batch, group, got 'none'"),
        ("convnet:init=uniform", "'convnet' has no option 'init'; it has norm, width"),
        (
            "resnet9000",
            "no model 'resnet9000'; expected one of mlp, lenet, convnet, resnet20, or package.module:factory",
        ),
        ("lenet:activation=tanh", "activation to be one of sigmoid, relu, got 'tanh'"),
        ("lenet:init=zero", "init to be one of default, uniform"),
        ("mlp:activation=relu", "'mlp' has no option 'activation'; it has init"),
        ("mlp:relu", "options of the form key=value"),
        ("", "form name or name:key=value"),
        ("nowhere.at_all:Net", "cannot import 'nowhere.at_all', there is no such module.*PYTHONPATH"),
        ("tests.nowhere:Net", "there is no such module"),
        (f"{HERE}:Missing", "has no 'Missing'; it has .*Plain"),
        (f"{HERE}:Plain.loud", "has no 'Plain.loud'"),
        (f"{HERE}:number", "class or function that builds a model, got a int"),
        (f"{HERE}:made", "class or function that builds a model, got a Linear"),
    ],
)
def test_specs_that_cannot_be_built_are_refused_beforehand(spec, message):
    with pytest.raises(ValueError, match=message):
        check_model(spec)
    with pytest.raises(ValueError, match=message):
        build_model(spec, images(), seed=0)


@pytest.mark.parametrize("code", ["import a_package_that_nobody_has", "1 / 0", "def ("])
def test_a_module_whose_import_fails_is_told_from_one_that_is_missing(code, tmp_path, monkeypatch):
    (tmp_path / "broken_module_of_a_user.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="'broken_module_of_a_user', importing it failed: [A-Z].*Error"):
        check_model("broken_module_of_a_user:Net")


@pytest.mark.parametrize("spec", ["mlp", "lenet:activation=relu", "resnet20:width=4,norm=group", f"{HERE}:Plain"])
def test_good_specs_pass_the_check(spec):
    check_model(spec)


@pytest.mark.parametrize(
    ("attribute", "inputs", "message"),
    [
        ("no_module", images(), "return a torch.nn.Module, got dict"),
        ("raising", images(), "building it from the InputSpec failed: RuntimeError: no weights today"),
        ("greedy", images(), "needs spec, depth; expected it to need at most one argument"),
        ("keyword_only", images(), "needs depth"),
        ("TwoHeads", images(), r"return \(batch, classes\) = \(2, 10\) for two images, got tuple"),
        ("Plain", images(classes=4), r"got \(2, 10\); this data set has 4 classes"),
        ("for_one_channel", images(), r"cannot take the images of this data set, 3x32x32.*built for 3 channel"),
        ("normalised", images(channels=1), r"cannot take the images of this data set, 1x32x32.*built for 1 channel"),
    ],
)
def test_models_that_do_not_fit_are_refused(attribute, inputs, message):
    with pytest.raises(ValueError, match=message):
        build_model(f"{HERE}:{attribute}", inputs, seed=0)


def test_the_registry_describes_itself():
    assert all("\n" not in entry.description and entry.description for entry in MODELS.values())
