"""Soteria and partial perturbation, which look at the model and the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fl_precode import extend, sample_noise
from fl_precode.defences.ppp import PartialNoise, gradient_stochasticity
from fl_precode.defences.soteria import Soteria, representation_scores
from fl_precode.objective import training_loss
from tests.fl_precode.small_models import Model, Net, lin


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=2):
    return torch.randn(n, 1, 8, 8, generator=seeded_generator(8)), torch.arange(n) % 3


def gradients_of(model, batch):
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(training_loss(model, *batch), list(named.values())), strict=True))


def convolutional():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3)
    )


def slow_scores(model, x, layers):
    """Soteria's scores by one derivative after another, image by image."""
    scores = []
    for image in x:
        given = image[None].clone().requires_grad_()
        hidden = given
        for layer in layers(model):
            hidden = layer(hidden)
        row = []
        for feature in hidden[0]:
            (slope,) = torch.autograd.grad(feature, given, retain_graph=True)
            row.append(0.0 if feature == 0 else (slope.norm() / feature.detach().abs()).item())
        scores.append(row)
    return torch.tensor(scores, dtype=torch.float64).mean(0)


@pytest.mark.parametrize(("layer", "depth", "features"), [(None, 5, 12), ("5", 5, 12), ("3", 3, 36)])
def test_scores_equal_the_definition(layer, depth, features):
    model, (x, _) = convolutional().double(), images(3)
    name, scores = representation_scores(model, x.double(), layer)
    assert name == (layer or "5")
    assert scores.shape == (features,)
    torch.testing.assert_close(scores, slow_scores(model, x.double(), lambda m: m[:depth]), rtol=1e-10, atol=1e-12)


def test_scores_of_more_features_than_one_piece_holds():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 150), nn.Tanh(), nn.Linear(150, 3)).double()
    _, scores = representation_scores(model, images(2)[0].double())
    torch.testing.assert_close(scores, slow_scores(model, images(2)[0].double(), lambda m: m[:3]), rtol=1e-9, atol=0)


def test_soteria_zeroes_the_lowest_columns_of_that_layer_and_nothing_else():
    model, batch = convolutional(), images(3)
    plain = gradients_of(model, batch)
    out = Soteria(share=0.5)(plain, model=model, batch=batch, generator=seeded_generator())
    _, scores = representation_scores(model, batch[0])
    lowest = scores.argsort(stable=True)[:6]
    assert not out["5.weight"][:, lowest].any()
    kept = [column for column in range(12) if column not in lowest.tolist()]
    assert torch.equal(out["5.weight"][:, kept], plain["5.weight"][:, kept])
    assert all(torch.equal(out[name], plain[name]) for name in plain if name != "5.weight")
    other = Soteria(share=0.5, layer="3")(plain, model=model, batch=batch, generator=seeded_generator())
    assert torch.equal(other["5.weight"], plain["5.weight"])
    assert int((other["3.weight"] == 0).all(dim=0).sum()) >= 18


def test_soteria_on_a_model_with_a_bottleneck_defends_the_classifier():
    defended = extend(convolutional(), images()[0], latent=3)
    name, scores = representation_scores(defended, images()[0])
    assert (name, len(scores)) == ("5.layer", 12)


def test_soteria_refuses_what_it_cannot_defend():
    batch = images()
    with pytest.raises(ValueError, match=r"none named '2'; it has 3, 5"):
        Soteria(layer="2").check(convolutional())
    with pytest.raises(ValueError, match="the model has none; use prune or noise"):
        Soteria().check(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()))
    Soteria(layer="3").check(convolutional())
    rows = Model(lambda m, x: m.head(x.flatten(1, 2)).mean(1), head=lin(8, 3))
    with pytest.raises(ValueError, match=r"\(batch, features\) to enter the Linear layer 'head'.*one of: head"):
        Soteria()(gradients_of(rows, batch), model=rows, batch=batch, generator=seeded_generator())
    with pytest.raises(ValueError, match="soteria looks at the model and the batch"):
        Soteria()({}, generator=seeded_generator())
    with pytest.raises(ValueError, match="at least 0 and less than 1, got 1"):
        Soteria(share=1.0)


def defended_net(seed=0):
    torch.manual_seed(seed)
    return extend(convolutional(), images()[0], latent=64)


def test_stochasticity_equals_the_cosines_of_a_loop():
    model, batch = defended_net(), images(2)
    found = gradient_stochasticity(model, training_loss, batch, draws=4, generator=seeded_generator(2))
    from fl_precode.defences.ppp import fresh_seed
    from fl_precode.randomness.seeding import seeded

    with seeded(fresh_seed(seeded_generator(2))):
        each = [gradients_of(model.train(), batch) for _ in range(4)]
    for name, cosine in found.items():
        pairs = [
            torch.cosine_similarity(each[i][name].flatten(), each[j][name].flatten(), dim=0).item()
            for i in range(4)
            for j in range(i)
        ]
        assert cosine == pytest.approx(sum(pairs) / len(pairs), abs=1e-5), name


def test_without_randomness_every_gradient_is_its_own_repetition():
    found = gradient_stochasticity(convolutional(), training_loss, images(), generator=seeded_generator())
    assert all(cosine == pytest.approx(1.0, abs=1e-5) for cosine in found.values())

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.spare = defended_net(), nn.Linear(2, 2)

        def forward(self, x):
            return self.body(x)

    assert gradient_stochasticity(Unused(), training_loss, images(), generator=seeded_generator())["spare.weight"] == 1
    with pytest.raises(ValueError, match="at least 2 draws"):
        gradient_stochasticity(convolutional(), training_loss, images(), draws=1, generator=seeded_generator())


def test_noise_goes_where_the_bottleneck_leaves_none():
    model, batch = defended_net(), images(1)
    cosines = gradient_stochasticity(model, training_loss, batch, generator=seeded_generator())
    # Before the bottleneck, its encoder, and what multiplies no noise: the biases behind it.
    steady = {n for n in cosines if n.startswith(("0.", "3.")) or ".encoder." in n or n.endswith("layer.bias")}
    steady.add("5.bottleneck.decoder.bias")
    assert {name for name, cosine in cosines.items() if cosine >= 0.5} == steady
    plain = gradients_of(model, batch)
    out = PartialNoise(std=0.1)(plain, model=model, batch=batch, generator=seeded_generator())
    assert {name for name in plain if not torch.equal(out[name], plain[name])} == steady
    added = torch.cat([(out[name] - plain[name]).flatten() for name in steady])
    assert added.std().item() == pytest.approx(0.1, rel=5 / (2 * len(added)) ** 0.5)
    with sample_noise():  # nobody else's noise is used up
        everything = PartialNoise(std=0.1, threshold=-1.0)(
            plain, model=model, batch=batch, generator=seeded_generator()
        )
    assert all(not torch.equal(everything[name], plain[name]) for name in plain)


def test_models_buffers_and_random_numbers_are_left_alone():
    torch.manual_seed(0)
    model = extend(Net(), images()[0], latent=4).train()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    batch = images(4)
    plain = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    before = torch.random.get_rng_state()
    for defence in (PartialNoise(std=0.1), Soteria()):
        outs = [
            defence(plain, model=model, batch=batch, generator=seeded_generator(3))["head.layer.bias"] for _ in "ab"
        ]
        assert torch.equal(*outs)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())


def test_partial_noise_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"needs a bottleneck.*precode\+ppp"):
        PartialNoise(std=0.1).check(convolutional())
    PartialNoise(std=0.1).check(defended_net())
    with pytest.raises(ValueError, match="ppp looks at the model and the batch.*training function"):
        PartialNoise(std=0.1)({}, generator=seeded_generator())
    with pytest.raises(ValueError, match="threshold .a cosine. from -1 to 1, got 2"):
        PartialNoise(std=0.1, threshold=2.0)
    with pytest.raises(ValueError, match="positive, finite std"):
        PartialNoise(std=0.0)
