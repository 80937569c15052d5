"""Random layers in models not shaped for them: torchvision's, and one in the manner of Flower's quickstart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fl_precode import ConvBottleneck, VariationalBottleneck, extend, extend_conv, extend_dropout, sample_noise
from fl_precode.objective import training_loss
from tests.fl_precode.architectures import ARCHITECTURES

DEFENCES = {
    "precode": lambda model, x: extend(model, x, latent=16),
    "cvb": extend_conv,
    "dropout": lambda model, x: extend_dropout(model, x, p=0.5),
}
PLACES = {
    ("quickstart", "precode"): "fc3.bottleneck",
    ("quickstart", "cvb"): "conv2.bottleneck",
    ("quickstart", "dropout"): "fc3.dropout",
    ("resnet18", "precode"): "fc.bottleneck",
    ("resnet18", "cvb"): "layer1.0.bottleneck",  # inside the block, its shortcut would pass by
    ("resnet18", "dropout"): "fc.dropout",
    ("resnet18-group-norm", "precode"): "fc.bottleneck",
    ("resnet18-group-norm", "cvb"): "layer1.0.bottleneck",
    ("vgg11", "precode"): "classifier.3.bottleneck",
    ("vgg11", "cvb"): "features.3.bottleneck",
    ("vit", "precode"): "heads.head.bottleneck",
    ("vit", "dropout"): "heads.head.dropout",
}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([3, 7])


@pytest.mark.parametrize(("name", "defence"), PLACES)
def test_a_defended_model_trains_copies_loads_and_exports(name, defence):
    model = ARCHITECTURES[name]()
    defended = DEFENCES[defence](model, X[:1])
    place = PLACES[name, defence]
    kinds = {"precode": VariationalBottleneck, "cvb": ConvBottleneck, "dropout": nn.Dropout}
    assert isinstance(defended.get_submodule(place), kinds[defence])

    defended.train()
    before = {key: value.clone() for key, value in defended.named_parameters()}
    optimiser = torch.optim.SGD(defended.parameters(), lr=1e-3)
    training_loss(defended, X, Y).backward()
    optimiser.step()
    still = [key for key, value in defended.named_parameters() if torch.equal(value, before[key])]
    assert not still, "every parameter, before and behind the random layer, takes part"

    twin = copy.deepcopy(defended).eval()
    fresh = DEFENCES[defence](ARCHITECTURES[name](), X[:1]).eval()
    fresh.load_state_dict(defended.state_dict())
    outs = []
    for one in (defended.eval(), twin, fresh):
        with torch.no_grad(), sample_noise(torch.Generator().manual_seed(5)):
            outs.append(one(X))
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])
    assert outs[0].shape == (2, 10)

    # The default from torch 2.7 on; the strict way of torch 2.6 cannot read where the KL terms are collected.
    exported = torch.export.export(defended, (X,), strict=False).module()
    torch.manual_seed(2)
    first = exported(X)
    torch.manual_seed(2)
    again, other = exported(X), exported(X)
    assert torch.equal(first, again)
    assert torch.equal(again, other) == (defence == "dropout"), "a bottleneck's noise stays fresh, dropout sleeps"


def test_vit_has_one_convolution_so_that_a_place_must_be_named():
    with pytest.raises(ValueError, match=r"only one torch.nn.Conv2d layer.*before=.*'conv_proj'"):
        extend_conv(ARCHITECTURES["vit"](), X[:1])
    defended = extend_conv(ARCHITECTURES["vit"](), X[:1], before="conv_proj", kernel=3)
    assert defended.conv_proj.bottleneck.latent == 8
    assert defended(X).shape == (2, 10)


def test_several_places_get_a_bottleneck_each():
    model = ARCHITECTURES["quickstart"]()
    defended = extend(model, X[:1], latent=4, before=["conv2", "fc3", "fc1"])
    found = [name for name, module in defended.named_modules() if isinstance(module, VariationalBottleneck)]
    assert found == ["conv2.bottleneck", "fc1.bottleneck", "fc3.bottleneck"]
    with sample_noise(values=[torch.zeros(2, 4)] * 3):
        defended(X)
    inside = extend(nn.Sequential(model), X[:1], latent=4, before=["0", "0.fc3"])
    found = [name for name, module in inside.named_modules() if isinstance(module, VariationalBottleneck)]
    assert found == ["0.bottleneck", "0.layer.fc3.bottleneck"]
    with pytest.raises(ValueError, match="different places.*'fc3', 'fc3'"):
        extend(model, X[:1], before=["fc3", "fc3"])
    with pytest.raises(ValueError, match="at least one"):
        extend(model, X[:1], before=[])


def test_dropout_goes_behind_a_bottleneck_too_and_only_while_training():
    defended = extend_dropout(extend(ARCHITECTURES["quickstart"](), X[:1], latent=4), X[:1], p=0.9)
    assert [name for name, _ in defended.fc3.layer.named_children()] == ["dropout", "layer"]
    plain = extend_dropout(ARCHITECTURES["quickstart"](), X[:1], p=0.9)
    assert torch.equal(plain.eval()(X), plain(X))
    assert not torch.equal(plain.train()(X), plain(X))
    for p in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="dropout p between 0 and 1"):
            extend_dropout(ARCHITECTURES["quickstart"](), X[:1], p=p)
