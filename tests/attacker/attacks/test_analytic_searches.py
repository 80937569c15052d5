"""Searches from the analytic image: what equations leave open, and what noise and rounding did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.analytic.chain_residual import ChainReplay
from attacker.analytic.known_quantities import Leaked
from attacker.analytic.layer_chain import chain
from attacker.attacks import Hybrid, LayerwiseInversion, Outcome, ThenRefine, build_attack
from attacker.attacks.registry import ATTACKS
from attacker.metrics.similarity import psnr
from attacker.optim.gauss_newton import refine
from attacker.optim.tv_gauss_newton import differences
from attacker.reasons import because
from attacker.simulate import observe
from attacker.victim import Victim
from fl_precode import VariationalBottleneck
from fl_precode.data import load_data
from fl_precode.models import build_model
from tests.attacker import tiny

SPEC = tiny.inputs(channels=2, side=8)
# One image of 128 numbers; 96 equations of the only convolution.
OPEN = [nn.Conv2d(2, 6, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(54, 4)]
FEW = "steps=8,inner=40"


def victim_of(*layers, spec=SPEC, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(*layers)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return tiny.victim(model, spec, dtype=dtype)


def smooth(spec, seed=0, dtype=torch.float64):
    """(1, c, h, w), two flat areas: what total variation is right about."""
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.rand(2, 1, spec.channels, 1, 1, generator=generator, dtype=dtype)
    half = torch.arange(spec.width) < spec.width // 2
    return spec.normalise(torch.where(half, left, right).expand(1, -1, spec.height, -1).contiguous())


def run(method, victim, seen, **options):
    attack = build_attack(method) if isinstance(method, str) else method
    return attack(victim, seen, generator=torch.Generator().manual_seed(0), **options)


def quality(found, x, spec=SPEC):
    return float(psnr(spec.denormalise(found.inputs).clamp(0, 1), spec.denormalise(x)))


def noisy(seen, std, seed=0):
    generator = torch.Generator().manual_seed(seed)
    update = {
        name: value + std * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for name, value in seen.update.items()
    }
    return replace(seen, update=update)


def test_hybrid_fills_what_the_equations_leave_open():
    victim, x = victim_of(*OPEN), smooth(SPEC)
    seen = tiny.observe(victim, x, [1])
    (plain,) = run("layerwise-inversion", victim, [seen])
    (found,) = run(f"hybrid:{FEW}", victim, [seen])
    assert "rank-deficient" in plain.reason_codes
    assert quality(found, x) > quality(plain, x) + 10
    assert found.reason_codes[:2] == ("estimate-smooth", "rank-deficient")
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert found.iterations == 8
    assert found.labels.tolist() == [1]
    denormalised = SPEC.denormalise(found.inputs)
    assert float(denormalised.min()) > -1e-9
    assert float(denormalised.max()) < 1 + 1e-9


def test_hybrid_leaves_determined_images_as_they_are():
    victim, x = victim_of(nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(432, 4)), smooth(SPEC)
    seen = tiny.observe(victim, x, [1])
    (plain,), (found,) = run("layerwise-inversion", victim, [seen]), run("hybrid", victim, [seen])
    assert torch.equal(found.inputs, plain.inputs)
    assert (found.outcome, found.iterations, found.reason) == (Outcome.CONVERGED, 0, "")


def test_hybrid_enters_at_the_encoder_of_a_bottleneck():
    layers = [*OPEN[:3], VariationalBottleneck(54, latent=4), OPEN[3]]
    victim, x = victim_of(*layers), smooth(SPEC)
    (found,) = run(f"hybrid:{FEW}", victim, [tiny.observe(victim, x, [1])])
    assert quality(found, x) > 25


SETTINGS = [("hybrid", "steps"), ("hybrid", "inner"), ("then-refine", "steps"), ("then-refine", "inner")]


def blurring(spec):
    """A chain whose inverse amplifies noise, which least squares takes back."""
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.05)]
    return victim_of(*layers, nn.Flatten(), nn.Linear(800, 4), spec=spec)


@pytest.mark.parametrize(("method", "setting"), SETTINGS)
def test_every_setting_changes_the_result(method, setting):
    spec = SPEC if method == "hybrid" else tiny.inputs(channels=1, side=10)
    victim = victim_of(*OPEN) if method == "hybrid" else blurring(spec)
    seen = noisy(tiny.observe(victim, smooth(spec), [1]), 1e-3)
    others = {"hybrid": "steps=8,inner=40", "then-refine": "steps=2,inner=20,iterations=0"}[method].split(",")
    rest = ",".join(one for one in others if not one.startswith(setting))
    pair = {"steps": (8, 9), "inner": (40, 50)} if method == "hybrid" else {"steps": (1, 3), "inner": (5, 20)}
    low, high = (run(f"{method}:{rest},{setting}={value}", victim, [seen])[0].inputs for value in pair[setting])
    assert not torch.equal(low, high)


@pytest.mark.parametrize(("method", "setting"), [*SETTINGS, ("then-refine", "iterations")])
def test_settings_are_checked(method, setting):
    with pytest.raises(ValueError, match=f"expected {setting} to be a whole number from 1 on, got -1"):
        build_attack(f"{method}:{setting}=-1")
    with pytest.raises(ValueError, match="from 1 on, got True"):
        Hybrid(steps=True)


def faces(count):
    data = load_data("faces")
    images, labels = data.train.batch(list(range(count)))
    return data.inputs, images, labels


@pytest.mark.parametrize("std", [1e-5, 1e-3, 0.1])  # by the last the estimate fits worse than a grey image
def test_refining_takes_back_what_noise_does_to_the_inverse(std):
    spec = tiny.inputs(channels=1, side=10)
    victim = blurring(spec)
    truths = [tiny.images(spec, 1, seed=index) for index in range(2)]
    seen = [noisy(tiny.observe(victim, x, [1]), std) for x in truths]
    rows = {
        name: [quality(one, x, spec) for one, x in zip(run(name, victim, seen), truths, strict=True)]
        for name in (
            "layerwise-inversion",
            "inverting-gradients:iterations=300",
            "then-refine:steps=4,inner=150,iterations=300",
        )
    }
    analytic, plain, refined = rows.values()
    for index in range(2):
        assert refined[index] > max(analytic[index], plain[index]) - 0.5, rows
    assert sum(refined) > sum(analytic) + 2 * 3, rows


def test_refining_through_a_bottleneck():
    spec = tiny.inputs(channels=1, side=8)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.LeakyReLU(0.01), nn.Conv2d(8, 8, 3, padding=1), nn.LeakyReLU(0.01)]
    victim = victim_of(*layers, nn.Flatten(), VariationalBottleneck(512, latent=6), nn.Linear(512, 4), spec=spec)
    x = tiny.images(spec, 1)
    seen = noisy(tiny.observe(victim, x, [1]), 1e-4)
    (plain,), (found,) = run("through-bottleneck", victim, [seen]), run("then-refine:iterations=0", victim, [seen])
    assert quality(found, x, spec) > quality(plain, x, spec) + 5


def kinked():
    """Two layers of ReLU: hidden values below zero leave the image open, and least squares stops at the kinks."""
    layers = [nn.Conv2d(2, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]
    return victim_of(*layers, nn.Flatten(), nn.Linear(192, 4), seed=3)


def test_plain_matching_competes_where_the_estimate_fails():
    victim, x = kinked(), smooth(SPEC)
    seen = noisy(tiny.observe(victim, x, [1]), 1e-4)
    (found,) = run("then-refine:steps=1,inner=1,iterations=400", victim, [seen])
    (without,) = run("then-refine:steps=1,inner=1,iterations=0", victim, [seen])
    assert found.reason_codes[0] == "plain-matching"
    assert found.matching_loss <= without.matching_loss / 4
    assert quality(found, x) > quality(without, x) + 5
    assert found.labels.tolist() == without.labels.tolist()


def test_a_search_that_does_not_halve_the_residual_changes_nothing():
    """Twenty iterations have hardly begun: what they find says no more than the estimate does."""
    victim, x = kinked(), smooth(SPEC)
    seen = noisy(tiny.observe(victim, x, [1]), 1e-4)
    (few,) = run("then-refine:steps=1,inner=1,iterations=20", victim, [seen])
    (without,) = run("then-refine:steps=1,inner=1,iterations=0", victim, [seen])
    assert torch.equal(few.inputs, without.inputs)
    assert "plain-matching" not in few.reason_codes


def test_searches_are_deterministic_and_one_victim_does_not_change_another():
    victim, truths = victim_of(*OPEN), [smooth(SPEC, seed) for seed in range(2)]
    seen = [noisy(tiny.observe(victim, x, [1]), 1e-4) for x in truths]
    for method in (f"hybrid:{FEW}", "then-refine:inner=50,iterations=0"):
        together = run(method, victim, seen)
        again = run(method, victim, seen)
        (alone,) = run(method, victim, seen[1:])
        assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(together, again, strict=True))
        assert quality(alone, SPEC.normalise(SPEC.denormalise(together[1].inputs).clamp(0, 1))) > 60, method


def test_what_cannot_be_entered_is_refused_by_name():
    victim = victim_of(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4))
    seen = tiny.observe(victim, smooth(SPEC), [1])
    for attack in (Hybrid(), ThenRefine()):
        (found,) = run(attack, victim, [seen])
        assert found.outcome is Outcome.NOT_APPLICABLE
        assert found.reason == because("layer-keeps-largest", name="1", kind="MaxPool2d")


def test_registered_with_what_they_answer():
    assert [ATTACKS[name].adaptive for name in ("through-bottleneck", "hybrid", "then-refine")] == [True] * 3
    assert not ATTACKS["layerwise-inversion"].adaptive
    assert [build_attack(name).name for name in ("hybrid", "then-refine")] == ["hybrid", "then-refine"]


def replay_of(layers, x):
    victim = victim_of(*layers)
    seen = tiny.observe(victim, x, [1])
    steps = chain(victim).steps
    d = seen.update["3.bias"]
    (found,) = run(LayerwiseInversion(), victim, [seen])
    with torch.no_grad():
        features = victim.model[:3](x)
    leaked = Leaked(
        parameters={name: value[None] for name, value in seen.parameters.items()},
        gradients={name: value[None] for name, value in seen.update.items()},
        buffers={},
        features=features,
        gradient=(seen.parameters["3.weight"].T @ d)[None],
    )
    return ChainReplay(steps=steps[:3], leaked=leaked, factors={}, steepness=d.norm()[None]), found


def test_the_replay_gives_the_update_of_the_true_image():
    x = smooth(SPEC)
    replay, found = replay_of(OPEN, x)
    for got, seen in zip(replay.gradients(x), replay.targets(), strict=True):
        torch.testing.assert_close(got, seen, rtol=0, atol=1e-12)
    assert float(replay.distances(x + 0.1)) > 1e-3
    assert float(replay.distances(found.inputs)) < 1e-20, "the minimum-norm image gives it too"


def test_one_step_solves_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64)
    truth = torch.rand(2, 8, generator=generator, dtype=torch.float64)
    b = (matrix @ truth.unsqueeze(2)).squeeze(2)

    def residual(x):
        return (matrix @ x.unsqueeze(2)).squeeze(2) - b

    found = refine(residual, torch.full_like(truth, 0.5), steps=3, inner=40, project=lambda x: x.clamp(0, 1))
    torch.testing.assert_close(found.x, truth, rtol=0, atol=1e-8)
    assert found.steps <= 3
    assert float(found.values.max()) < 1e-15


def test_differences_are_to_the_right_and_down():
    x = torch.tensor([[[[1.0, 4.0], [2.0, 8.0]]]])
    assert differences(x)[0, :, 0].tolist() == [[[3.0, 0.0], [6.0, 0.0]], [[1.0, 4.0], [0.0, 0.0]]]


def test_the_deficient_net_of_the_hybrid_paper():
    """CNN2 V2 on a real photograph in single precision: 1602 equations for 3072 unknowns."""
    data = load_data("photos")
    images, _ = data.train.batch([0])
    images = nn.functional.interpolate(images, size=(32, 32), mode="area")
    spec = replace(data.inputs, height=32, width=32, classes=10)
    torch.manual_seed(10)
    model = nn.Sequential(nn.Conv2d(3, 6, 4, stride=2, bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(1350, 10))
    victim = Victim(model=model, inputs=spec)
    x = spec.normalise(images)
    seen = tiny.observe(victim, x, [1])
    (plain,), (found,) = run("layerwise-inversion", victim, [seen]), run("hybrid:steps=15,inner=80", victim, [seen])
    assert because("rank-deficient", name="0", rank=1602, unknowns=3072) in plain.reason
    assert quality(found, x, spec) > quality(plain, x, spec) + 5


@pytest.mark.slow
def test_smaller_residuals_alone_do_not_replace_an_estimate():
    """ReLU leaves layers open and stops searches at its kinks: they fit updates a little better by worse images."""
    data = load_data("photos")
    images, labels = data.train.batch([0, 1, 2, 3])
    victim = Victim(model=build_model("lenet:activation=relu", data.inputs, seed=0), inputs=data.inputs)
    seen = observe(victim, data.inputs.normalise(images), labels, batch_size=1)
    analytic, plain, refined = (
        psnr(data.inputs.denormalise(torch.cat([one.inputs for one in run(name, victim, seen)])), images)
        for name in (
            "layerwise-inversion",
            "inverting-gradients:iterations=150",
            "then-refine:steps=2,inner=20,iterations=150",
        )
    )
    assert bool((refined > torch.maximum(analytic, plain) - 0.5).all()), (analytic, plain, refined)
