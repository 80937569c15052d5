"""The two deep families: their layers, their normalisation, and what a defence and training make of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_precode.defences.registry import apply_defence
from fl_precode.local_training import local_training
from fl_precode.models import build_model
from fl_precode.models.norm import norm_layer
from fl_precode.models.resnet import BasicBlock
from tests.fl_precode.test_models import images, size

SMALL = [
    "convnet:width=2",
    "convnet:width=2,norm=group",
    "convnet:width=2,norm=none",
    "resnet20",
    "resnet20:norm=group",
]


def layers(model, kind):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]


@pytest.mark.parametrize(
    ("spec", "parameters"),
    [
        # Counted in the code of Inverting Gradients: ConvNet64, ResNet20, ResNet20-4.
        ("convnet", 2_904_970),
        ("resnet20", 272_474),
        ("resnet20:width=4", 4_327_754),
        ("convnet:norm=group", 2_904_970),  # a scale and a shift for each channel, as in batch normalisation
        ("convnet:norm=none", 2_904_970 - 2 * 64 * (1 + 2 + 2 + 4 + 4 + 4 + 4 + 4)),
        ("resnet20:norm=group", 272_474),
    ],
)
def test_parameter_counts_of_the_literature(spec, parameters):
    model = build_model(spec, images(), seed=0)
    assert size(model) == parameters
    assert model.classifier.out_features == 10


def test_the_convnets_layers_stand_in_the_papers_order():
    model = build_model("convnet", images(), seed=0)
    convolution = ["Conv2d", "BatchNorm2d", "ReLU"]
    expected = 6 * convolution + ["MaxPool2d"] + 2 * convolution + ["MaxPool2d", "Flatten", "Linear"]
    assert [type(module).__name__ for module in model] == expected
    convolutions = [module for _, module in layers(model, nn.Conv2d)]
    assert [module.out_channels for module in convolutions] == [64, 128, 128, 256, 256, 256, 256, 256]
    assert all(module.padding == (1, 1) and module.bias is not None for module in convolutions)
    assert model.classifier.in_features == 36 * 64


def test_the_resnets_stages_halve_the_image_and_double_the_channels():
    model = build_model("resnet20:width=2", images(), seed=0).eval()
    hidden = model.relu1(model.norm1(model.conv1(torch.zeros(1, 3, 32, 32))))
    shapes = []
    for stage in (model.stage1, model.stage2, model.stage3):
        hidden = stage(hidden)
        shapes.append(tuple(hidden.shape))
    assert shapes == [(1, 32, 32, 32), (1, 64, 16, 16), (1, 128, 8, 8)]
    assert len(layers(model, BasicBlock)) == 9
    projections = [name for name, module in layers(model, nn.Conv2d) if module.kernel_size == (1, 1)]
    assert projections == ["stage2.block1.shortcut.conv", "stage3.block1.shortcut.conv"]
    assert all(module.bias is None for _, module in layers(model, nn.Conv2d))


def test_a_block_adds_its_shortcut_before_the_last_relu():
    torch.manual_seed(0)
    block = BasicBlock(3, 5, stride=2, norm="group").double()
    x = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    hidden = F.relu(F.group_norm(F.conv2d(x, block.conv1.weight, stride=2, padding=1), 1))
    main = F.group_norm(F.conv2d(hidden, block.conv2.weight, padding=1), 1)
    shortcut = F.group_norm(F.conv2d(x, block.shortcut.conv.weight, stride=2), 1)
    torch.testing.assert_close(block(x), F.relu(main + shortcut), rtol=0, atol=1e-12)


def test_the_resnets_convolutions_start_as_he_et_al_propose():
    weight = build_model("resnet20:width=4", images(), seed=0).stage3.block2.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (16, 8), (12, 4), (6, 2), (3, 1), (1, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert norm_layer("group", channels).num_groups == groups


@pytest.mark.parametrize("spec", SMALL)
@pytest.mark.parametrize("inputs", [images(1, 9, 2), images(3, 25, 7), images(1, 28, 10)], ids=str)
def test_every_channel_and_size_fits(spec, inputs):
    assert build_model(spec, inputs, seed=0)(torch.rand(2, *inputs.shape)).shape == (2, inputs.classes)


@pytest.mark.parametrize("side", [1, 8])
def test_images_too_small_for_the_pools_are_refused_with_advice(side):
    with pytest.raises(ValueError, match=f"at least 9x9 pixels, got {side}x{side}; choose .*resnet20"):
        build_model("convnet", images(1, side), seed=0)


@pytest.mark.parametrize("spec", SMALL)
def test_in_evaluation_images_do_not_mix(spec):
    model = build_model(spec, images(), seed=0).double().eval()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-10)
    changed = model(torch.cat([x[:1], 1 - x[1:]]))
    torch.testing.assert_close(changed[0], alone[0], rtol=0, atol=1e-10)
    assert (changed[1:] - alone[1:]).abs().max() > 1e-6


@pytest.mark.parametrize(("spec", "mixes"), [(spec, "norm" not in spec) for spec in SMALL])
def test_in_training_only_batch_normalisation_mixes_images_and_fills_buffers(spec, mixes):
    model = build_model(spec, images(), seed=0).double()
    before = {name: value.clone() for name, value in model.named_buffers()}
    assert bool(before) == mixes
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    together, alone = model(x)[0], model(x[:1])[0]
    assert ((together - alone).abs().max() > 1e-3) == mixes
    assert not any(torch.equal(value, before[name]) for name, value in model.named_buffers())


@pytest.mark.parametrize("spec", SMALL)
def test_layers_with_parameters_run_once_and_each_gets_a_gradient(spec):
    model = build_model(spec, images(), seed=0)
    runs: dict[str, int] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
    assert set(runs.values()) == {1}
    assert set(runs) == {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("spec", SMALL)
def test_a_defence_finds_its_place_and_the_model_trains(spec):
    inputs = images(1, 12, 3)
    defended = apply_defence("precode:latent=4", build_model(spec, inputs, seed=0), inputs)
    assert [name for name, _ in defended.classifier.named_children()] == ["bottleneck", "layer"]
    before = {name: value.clone() for name, value in defended.named_parameters()}
    torch.manual_seed(0)
    local_training(defended, [(torch.rand(6, 1, 12, 12), torch.arange(6) % 3)], learning_rate=0.1)
    # The mean that a normalisation takes off makes a convolution's own bias idle.
    idle = {name for name in before if name.startswith("conv") and name.endswith(".bias")}
    still = {name for name, value in defended.named_parameters() if torch.equal(value, before[name])}
    assert still <= idle
    assert all(value.isfinite().all() for value in defended.state_dict().values())
