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


def test_a_transformer_is_cut_into_whole_patches():
    model = build_model("vit:patch=8,width=100,depth=2", images(), seed=0)
    assert model(torch.zeros(3, 3, 32, 32)).shape == (3, 10)
    assert (model.positions.shape, model.blocks[0].attention.heads) == ((1, 17, 100), 1)
    with pytest.raises(ValueError, match="patches of 16x16 and expects them to fill 25x25.*such as vit:patch=25"):
        build_model("vit", images(side=25), seed=0)


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
            "no model 'resnet9000'; expected one of mlp, lenet, convnet, resnet20, vit, or package.module:factory",
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
        (f"{HERE}:made", "got a Linear; every run needs a model of its own, so name the class, or write a function"),
        (f"{HERE}:greedy", r"it needs depth, .*as a setting, '.*:greedy\(depth=\.\.\.\)', or name a function without"),
        (f"{HERE}:keyword_only", "it needs depth"),
        (f"{HERE}:of_a_configuration", "it needs cfg, and nothing known of the images is called so"),
        (f"{HERE}:Sized(4)", r"settings by keyword, such as Net\(num_classes=10.*values without a name"),
        (f"{HERE}:Sized(width=open('x'))", r"expected width to be a literal .*got \"open\('x'\)\""),
        (f"{HERE}:Sized(**options)", "to be a literal|'\\*\\*' is not read"),
        (f"{HERE}:Sized(width=)", "cannot be read"),
        (f"{HERE}:Sized(width=1)(2)", "by keyword"),
        (
            f"{HERE}:Sized(depth=3)",
            "it has no argument 'depth'; it takes num_classes, width, name, sizes, bias by name",
        ),
        (f"{HERE}:Sized:num_classes=10,width=3", r"in parentheses: '.*:Sized\(num_classes=10,width=3\)'"),
    ],
)
def test_specs_that_cannot_be_built_are_refused_beforehand(spec, message):
    with pytest.raises(ValueError, match=message):
        check_model(spec)
    with pytest.raises(ValueError, match=message):
        build_model(spec, images(), seed=0)


@pytest.mark.parametrize(
    "attribute",
    ["with_classes", "get_model", "by_pixels", "annotated", "annotated_in_text", "Sized", "get_model(num_labels=10)"],
)
def test_what_a_factory_needs_is_filled_in_by_name(attribute):
    assert build_model(f"{HERE}:{attribute}", images(), seed=0)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_settings_are_literals_by_keyword_and_keep_the_rest_as_it_is():
    spec = f"{HERE}:Sized(width=0.5, name='a, (b)', sizes=[3, (4, None)], bias=False)"
    check_model(spec)
    model = build_model(spec, images(classes=5), seed=0)
    assert model.settings == (0.5, "a, (b)", [3, (4, None)], False)
    assert model.head.out_features == 5
    assert build_model(f"{HERE}:Plain(classes=4)", images(classes=4), seed=0).head.out_features == 4


def test_one_number_for_images_that_are_not_square_is_refused():
    inputs = InputSpec(channels=3, height=9, width=14, classes=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(ValueError, match="it is 9 x 14"):
        build_model(f"{HERE}:get_model", inputs, seed=0)


LENIENT = [
    ("Named", 10),
    ("InAnObject", 10),
    ("Pair", 10),
    ("FeaturesFirst", 10),
    ("OneLogit", 2),
    ("OneLogit(squeezed=True)", 2),
    ("Autoencoder", 10),
    ("Autoencoder(flat=True)", 10),
    ("Variational", 10),
]


@pytest.mark.parametrize(("attribute", "classes"), LENIENT)
def test_other_people_s_outputs_are_taken_by_an_audit_and_refused_by_the_reference_app(attribute, classes):
    inputs = images(classes=classes)
    build_model(f"{HERE}:{attribute}", inputs, seed=0, strict=False)
    with pytest.raises(ValueError, match=r"to return \(batch, classes\)"):
        build_model(f"{HERE}:{attribute}", inputs, seed=0)


@pytest.mark.parametrize(
    ("attribute", "classes", "message"),
    [
        ("Plain", 4, r"scores of 4 classes for each image, got \(2, 10\).*the number of classes is 10.*num_classes=4"),
        ("OneLogit", 10, "the number of classes is 2 .one logit decides between two"),
        ("OneLogit(squeezed=True)", 10, r"got \(2,\).*the number of classes is 2"),
        ("with_transforms", 10, "got a tuple of Plain, str; name a class, or a function that returns the model and"),
    ],
)
def test_outputs_that_cannot_be_right_are_refused_by_an_audit_too(attribute, classes, message):
    with pytest.raises(ValueError, match=message):
        build_model(f"{HERE}:{attribute}", images(classes=classes), seed=0, strict=False)


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
        ("raising", images(), r"building it by raising\(spec=InputSpec\) failed: RuntimeError: no weights today"),
        ("TwoHeads", images(), r"= \(2, 10\) for two images, got a tuple of \(2, 3\), \(1,\)"),
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
