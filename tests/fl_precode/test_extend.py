"""Extending models of many shapes: what changes, what must not, and what is refused."""

from __future__ import annotations

import copy
import math
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fl_precode import VariationalBottleneck, extend, sample_noise, track_kl
from tests.fl_precode.small_models import Model, Net, lin, plain

X = torch.zeros(2, 4)


def test_the_last_linear_in_execution_order_gets_the_bottleneck():
    model = Model(lambda m, x: m.first(m.second(x)), first=lin(), second=lin())
    defended = extend(model, X, latent=3)
    assert [name for name, _ in defended.first.named_children()] == ["bottleneck", "layer"]
    assert isinstance(defended.second, nn.Linear)
    assert isinstance(defended.first.bottleneck, VariationalBottleneck)


def test_outside_the_bottleneck_nothing_changes():
    model = Net().eval()
    defended = extend(model, torch.zeros(1, 1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    state = {name.replace("head.layer", "head"): value for name, value in defended.state_dict().items()}
    own = {name for name in state if ".bottleneck." in name}
    assert own == {f"head.bottleneck.{layer}.{kind}" for layer in ("encoder", "decoder") for kind in ("weight", "bias")}
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name
    defended.head.bottleneck = nn.Identity()
    assert torch.equal(defended(x), model(x))


def test_the_argument_and_the_random_numbers_of_others_are_untouched():
    model = Net()
    hook_calls = []
    model.head.register_forward_hook(lambda *_: hook_calls.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    names = [name for name, _ in model.named_modules()]
    torch.manual_seed(3)
    defended = extend(model, torch.randn(2, 1, 8, 8), latent=4)
    torch.manual_seed(3)
    torch.randn(2, 1, 8, 8)
    expected = VariationalBottleneck(4 * 8 * 8, latent=4)
    after_extend, after_init = torch.rand(1), torch.rand(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert [name for name, _ in model.named_modules()] == names
    assert not any(p.grad is not None or not p.requires_grad for p in model.parameters())
    # Only the new layers' initialisation draws from the global generator: dropout and noise of the trials do not.
    assert torch.equal(defended.head.bottleneck.encoder.weight, expected.encoder.weight)
    assert torch.equal(defended.head.bottleneck.decoder.weight, expected.decoder.weight)
    assert not torch.equal(after_extend, after_init)
    # The copy carries no hook of ours, and has the user's.
    assert [len(m._forward_pre_hooks) for m in defended.modules()] == [0] * len(list(defended.modules()))
    hook_calls.clear()
    defended.head.layer(torch.zeros(1, 256))
    assert hook_calls == [1]


def test_after_extend_the_global_generator_stands_where_the_initialisation_left_it():
    torch.manual_seed(3)
    VariationalBottleneck(5, latent=4)
    expected = torch.rand(1)
    model = plain()
    torch.manual_seed(3)
    extend(model, torch.zeros(1, 6), latent=4)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mode_and_dtype_follow_the_model(training, dtype):
    model = Net().to(dtype).train(training)
    model.drop.eval()
    defended = extend(model, torch.zeros(1, 1, 8, 8, dtype=dtype))
    assert {p.dtype for p in defended.parameters()} == {dtype}
    assert not defended.drop.training
    assert {m.training for m in defended.head.modules()} == {training} == {defended.training}


def test_mode_of_a_target_with_mixed_modes_is_kept():
    block = nn.Sequential(nn.Linear(4, 4), nn.Dropout().eval())
    defended = extend(nn.Sequential(lin(), block), X, before="1")
    assert defended[1].layer[0].training
    assert not defended[1].layer[1].training
    assert defended[1].bottleneck.decoder.training


@pytest.mark.gpu
def test_device_follows_the_model():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    state = torch.cuda.get_rng_state()
    model = plain().cuda()
    defended = extend(model, torch.zeros(1, 6, device="cuda"), latent=4)
    assert {p.device.type for p in defended.parameters()} == {"cuda"}
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_before_names_any_module():
    model = Net()
    defended = extend(model, torch.zeros(1, 1, 8, 8), before="norm", latent=2)
    assert defended.norm.bottleneck.features == 4 * 8 * 8
    assert isinstance(defended.head, nn.Linear)
    assert defended(torch.zeros(3, 1, 8, 8)).shape == (3, 3)
    nested = nn.Sequential(OrderedDict(body=nn.Sequential(lin(), nn.ReLU()), head=lin()))
    assert isinstance(extend(nested, X, before="body.1").body[1].bottleneck, VariationalBottleneck)


def test_latent_beta_and_presets():
    def settings(**given):
        bottleneck = extend(plain(), torch.zeros(1, 6), **given).fc2.bottleneck
        return bottleneck.latent, bottleneck.beta

    assert settings() == (256, 1e-3)
    assert settings(latent=7, beta=0.0) == (7, 0.0)
    assert settings(preset="precode-reference") == (256, pytest.approx(1.4427e-3, rel=1e-4))
    for contradiction in ({"latent": 256}, {"beta": 1e-3}):
        with pytest.raises(ValueError, match="either the preset or the values"):
            settings(preset="precode-reference", **contradiction)
    with pytest.raises(ValueError, match="did you mean 'precode-reference'"):
        settings(preset="precode-referense")
    with pytest.raises(ValueError, match="positive latent, got 0"):
        settings(latent=0)


def test_the_reference_preset_weighs_bits():
    defended = extend(plain(), torch.zeros(1, 6), preset="precode-reference")
    with track_kl() as kl:
        out = defended(torch.randn(2, 6))
    assert kl.penalty(out).item() == pytest.approx(1e-3 * kl.nats(out).item() / math.log(2), rel=1e-5)


def test_a_lone_linear_layer_becomes_a_defended_model():
    defended = extend(lin(), X)
    assert [name for name, _ in defended.named_children()] == ["bottleneck", "layer"]


def test_tied_modules_survive_and_are_replaced_everywhere():
    shared = lin()
    model = Model(
        lambda m, x: m.alias(m.body2(m.body1(x))), body1=(tied := lin()), body2=tied, head=shared, alias=shared
    )
    defended = extend(model, X)
    assert defended.head is defended.alias
    assert defended.body1 is defended.body2
    assert isinstance(defended.alias.bottleneck, VariationalBottleneck)
    assert defended.body1 is not model.body1


def test_tied_weights_survive():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 4)
            self.head = nn.Linear(4, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens):
            return self.head(self.embed(tokens).mean(1))

    defended = extend(Tied(), torch.zeros(2, 5, dtype=torch.long))
    assert defended.head.layer.weight is defended.embed.weight


def test_an_extended_model_copies_pickles_transforms_and_loads():
    defended = extend(plain(), torch.zeros(1, 6), latent=4)
    x = torch.randn(3, 6)
    defended(x).sum().backward()
    fresh = extend(plain(), torch.zeros(1, 6), latent=4)
    fresh.load_state_dict(defended.state_dict())
    for twin in (copy.deepcopy(defended), pickle.loads(pickle.dumps(defended)), fresh):
        outs = []
        for model in (defended, twin):
            with sample_noise(torch.Generator().manual_seed(1)):
                outs.append(model(x))
        assert torch.equal(*outs)
    parameters = {name: p.detach() for name, p in defended.named_parameters()}
    gradients = vmap(
        grad(lambda p, row: functional_call(defended, p, (row[None],)).sum()), in_dims=(None, 0), randomness="different"
    )(parameters, x)
    assert {name: g.shape[1:] for name, g in gradients.items()} == {name: p.shape for name, p in parameters.items()}
