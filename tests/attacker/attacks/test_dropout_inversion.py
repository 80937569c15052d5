"""Dropout masks that are given, and the attack that searches for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import GradientMatching, Outcome, build_attack
from attacker.attacks.adaptive.dropout_inversion import DropoutInversion
from attacker.attacks.gradient_matching.joint_noise import JoinedNoise
from attacker.gradients.dropout_masks import MaskedDropout, dropout_layers, dropped_share, with_masks
from attacker.gradients.trace import trace
from attacker.victim import Victim
from fl_precode import VariationalBottleneck, sample_noise
from tests.attacker import tiny
from tests.attacker.bottlenecked import SPEC, client, normal, spread
from tests.attacker.members import error, run, victim_of

X = tiny.images(SPEC, 1)


def dropping(*middle: nn.Module, p: float = 0.5, whole_maps: bool = False) -> Victim:
    drop = nn.Dropout2d(p) if whole_maps else nn.Dropout(p)
    layers = [nn.Conv2d(1, 4, 3), nn.Sigmoid()]
    layers += [drop, nn.Flatten()] if whole_maps else [nn.Flatten(), drop]
    return Victim(model=spread(nn.Sequential(*layers, *middle, nn.Linear(64, 4))), inputs=SPEC)


def observed(victim: Victim, mask: torch.Tensor, *noise: torch.Tensor, label: int = 2):
    masked = replace(victim, model=with_masks(victim.model))
    return client(masked, X, [label], [mask, *noise])


def bernoulli(*shape: int, keep: float = 0.5, seed: int = 1) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < keep).double()


@pytest.mark.parametrize(
    ("layer", "shape", "mask"),
    [
        (nn.Dropout(0.3), (5, 7), (7,)),
        (nn.Dropout(0.3), (5, 2, 3, 4), (2, 3, 4)),
        (nn.Dropout1d(0.3), (5, 6, 4), (6, 1)),
        (nn.Dropout2d(0.3), (5, 6, 3, 4), (6, 1, 1)),
    ],
    ids=str,
)
def test_a_given_mask_does_what_torch_does_with_it(layer, shape, mask):
    x = normal(*shape)
    torch.manual_seed(0)
    out = layer.train()(x)
    masked = MaskedDropout(layer)
    assert masked.latent_shape(shape[1:]) == mask
    drawn = (out != 0).double()
    values = drawn if mask == shape[1:] else drawn.flatten(2)[..., 0].reshape(shape[0], *mask)
    with sample_noise(values=[values]):
        assert torch.allclose(masked(x), out)
    assert torch.equal(masked(x), x)  # as in evaluation mode
    with sample_noise(generator=torch.Generator().manual_seed(0)):
        assert torch.equal(masked(x), x)
    counted = values.reshape(1, 1, *values.shape)
    assert dropped_share(counted).item() == pytest.approx(1 - values.mean().item())


def test_layers_that_drop_something_are_found_and_the_model_is_left_alone():
    model = nn.Sequential(nn.Dropout(0.0), nn.Sequential(nn.Dropout2d(0.2), nn.Linear(3, 3)), nn.Dropout(1.0))
    assert dropout_layers(model) == ["1.0"]
    changed = with_masks(model)
    assert isinstance(changed[1][0], MaskedDropout)
    assert isinstance(model[1][0], nn.Dropout2d)
    assert list(changed.state_dict()) == list(model.state_dict())
    assert isinstance(with_masks(nn.Dropout(0.1)), MaskedDropout)


@pytest.mark.parametrize("whole_maps", [False, True])
def test_image_and_mask_are_found_where_the_plain_attack_fails(whole_maps):
    victim = dropping(whole_maps=whole_maps)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0]).double().reshape(1, 4, 1, 1) if whole_maps else bernoulli(1, 64)
    seen = observed(victim, mask)
    search = GradientMatching().with_options(iterations=300, total_variation=0.0)
    (plain,), (one,) = run(search, victim, [seen]), run(DropoutInversion(matching=search), victim, [seen])
    assert one.matching_loss < plain.matching_loss / 5
    assert error(one, X) < error(plain, X) / 2
    (found,) = one.noise
    assert found.shape == mask.shape
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert float(found[mask == 1].mean()) > float(found[mask == 0].mean()) + 0.2


def test_noise_of_a_bottleneck_in_the_same_model_is_searched_too():
    victim = dropping(VariationalBottleneck(64, latent=5))
    seen = observed(victim, bernoulli(1, 64), normal(1, 5))
    (one,) = run(DropoutInversion(matching=GradientMatching().with_options(iterations=20)), victim, [seen])
    assert [value.shape for value in one.noise] == [(1, 64), (1, 5)]
    assert float(one.noise[1].min()) < 0, "no mask, and not confined to [0, 1]"


def test_without_dropout_it_is_refused():
    victim = victim_of(tiny.convnet)
    (one,) = run(build_attack("dropout-inversion"), victim, [tiny.observe(victim, X, [0])])
    assert one.outcome is Outcome.NOT_APPLICABLE
    assert one.reason_codes == ("no-dropout",)
    idle = dropping(p=0.0)
    (one,) = run(build_attack("dropout-inversion"), idle, [tiny.observe(idle, X, [0])])
    assert one.reason_codes == ("no-dropout",)


@pytest.mark.parametrize("changed", [{"mask_rate": 0.1}, {"mask_penalty": 1.0}])
def test_every_option_changes_the_result(changed):
    victim = dropping()
    seen = [observed(victim, bernoulli(1, 64, keep=0.8))]
    base = DropoutInversion(matching=GradientMatching().with_options(iterations=40))
    (one,), (other,) = run(base, victim, seen), run(replace(base, **changed), victim, seen)
    assert not torch.equal(one.noise[0], other.noise[0])
    if "mask_penalty" in changed:  # p is one half, the client kept more
        assert abs(float(other.noise[0].mean()) - 0.5) < abs(float(one.noise[0].mean()) - 0.5)


def test_wrong_options_are_named():
    for spec, words in (
        ("dropout-inversion:mask_rate=0", "positive, finite mask_rate"),
        ("dropout-inversion:mask_penalty=-1", "mask_penalty of 0 or more"),
    ):
        with pytest.raises(ValueError, match=words):
            build_attack(spec)


def test_masks_start_at_the_share_that_passes_and_stay_between_0_and_1():
    victim = replace(dropping(p=0.25), model=with_masks(dropping(p=0.25).model))
    joined = JoinedNoise(image=SPEC.shape, batch=1, places=(0,), shapes=trace(victim).latents, dropped=(0.25,))
    images = normal(2, 3, 1, *SPEC.shape)
    candidates = joined.join(images, [torch.full((2, 3, 1, 64), 0.75, dtype=torch.float64)])
    back, (mask,) = joined.split(candidates)
    assert torch.equal(back, images)
    assert torch.equal(mask, torch.full_like(mask, 0.75))
