"""One image of a vision transformer from the gradients of its positions and of its patch layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker import simulate
from attacker.attacks import ATTACKS, Outcome, build_attack
from attacker.attacks.closed_form.patch_embedding import PatchEmbedding
from attacker.attacks.selection import attacks_for
from attacker.metrics.similarity import psnr
from attacker.reasons import because
from fl_precode import Protocol
from fl_precode.defences.registry import gradient_defence
from tests.attacker import tiny
from tests.attacker.attacks.test_attacks_raise import check_refused, run
from tests.attacker.small_transformers import (
    PATCHES,
    SIDE,
    WIDTH,
    Axes,
    Clip,
    Functional,
    Norm,
    Perceptron,
    Tied,
    Transformer,
    Volumes,
    Windowed,
    torchvision_vit,
)

SPEC = tiny.inputs(channels=3, side=SIDE)
VOLUME = tiny.inputs(channels=8, side=SIDE)
ATTACK = PatchEmbedding()


def victim_of(build=Transformer, *, spec=SPEC, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return tiny.victim(build(**options), spec, dtype=dtype)


def local(victim, x, labels, **training):
    """A client that trains on the same image again and again, and announces all of it."""
    protocol = Protocol(name="fedavg", batch_norm="buffers", **training)
    batches = [(x, torch.tensor([label])) for label in labels]
    return simulate.observe_training(victim, batches, batch_size=1, protocol=protocol)


def noisy(observation, share):
    noise = torch.Generator().manual_seed(3)
    update = {
        name: value + share * value.square().mean().sqrt() * torch.randn(value.shape, generator=noise).to(value)
        for name, value in observation.update.items()
    }
    return replace(observation, update=update)


def farthest(found, x):
    return float((found.inputs - x).abs().max())


def decibels(found, x, spec=SPEC):
    return float(psnr(spec.denormalise(found.inputs), spec.denormalise(x)))


SHAPES = {
    "torchvision": torchvision_vit,
    **{name: lambda name=name: Transformer(name) for name in ("timm", "sequence-first", "flat", "scaled")},
    "maps": lambda: Transformer("maps", special=0),
    "positions for patches alone": lambda: Transformer("registers", special=5),
    "mean pooling": lambda: Transformer(special=0),
    "norm after": lambda: Transformer(after=True),
    "norms without bias": lambda: Transformer(norm=Norm),
    "clip": Clip,
    "perceptron": Perceptron,
    "volumes": Volumes,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_image_is_reconstructed_exactly(shape):
    spec = VOLUME if shape == "volumes" else SPEC
    victim, x = victim_of(SHAPES[shape], spec=spec), tiny.images(spec, 1)
    found = run(ATTACK, victim, tiny.observe(victim, x, [2]))
    assert found.outcome is Outcome.CONVERGED, found.reason
    assert farthest(found, x) < 1e-7
    assert found.labels.tolist() == [2]
    assert found.reason_codes == ("patches-solved",)
    assert found.matching_loss < 1e-20


@pytest.mark.parametrize("build", [torchvision_vit, Clip, Perceptron])
def test_updates_in_single_precision_give_it_to_their_rounding(build):
    victim, x = victim_of(build, dtype=torch.float32), tiny.images(SPEC, 1, dtype=torch.float32)
    found = run(ATTACK, victim, tiny.observe(victim, x, [1]))
    assert found.outcome is Outcome.CONVERGED, found.reason
    assert found.inputs.dtype == torch.float32
    assert decibels(found, x) > 60


@pytest.mark.parametrize(
    "training",
    [
        {"local_steps": 3},
        {"local_steps": 4, "momentum": 0.9},
        {"local_steps": 3, "momentum": 0.5, "weight_decay": 0.3},
        {"local_steps": 1, "weight_decay": 0.3},
        {"local_epochs": 2, "weight_decay": 0.3},
    ],
)
def test_local_steps_on_one_image_are_as_exact_as_a_gradient(training):
    victim, x = victim_of(torchvision_vit), tiny.images(SPEC, 1)
    steps = training.get("local_steps", training.get("local_epochs"))
    seen = local(victim, x, [2] * steps, learning_rate=0.1, **training)
    found = run(ATTACK, victim, seen)
    assert found.outcome is Outcome.CONVERGED, found.reason
    assert farthest(found, x) < 1e-6
    if "weight_decay" in training:
        silent = replace(seen, protocol=replace(seen.protocol, weight_decay=None))
        assert farthest(run(ATTACK, victim, silent), x) > 1e-3, "what is announced is taken back"


def test_the_number_of_images_shows_where_it_is_not_announced():
    victim, x = victim_of(), tiny.images(SPEC, 2)
    one = tiny.observe(victim, x[:1], [1], batch_size=None)
    assert farthest(run(ATTACK, victim, one), x[:1]) < 1e-7
    pair = tiny.observe(victim, x, [1, 2])
    check_refused(run(ATTACK, victim, pair), because("several-images", size=2))
    unknown = replace(pair, batch_size=None)
    refused = run(ATTACK, victim, unknown)
    check_refused(refused, "several-images")
    assert "positions" in refused.reason
    narrow = victim_of(width=PATCHES + 2)
    few = tiny.observe(narrow, x, [1, 2], batch_size=None)
    check_refused(run(ATTACK, narrow, few), "batch-size-unknown")


def test_what_was_announced_as_one_image_and_is_not_does_not_converge():
    victim, x = victim_of(), tiny.images(SPEC, 2)
    found = run(ATTACK, victim, tiny.observe(victim, x, [1, 2], batch_size=1))
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert found.matching_loss > 1e-3
    assert "several-images" in found.reason_codes


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (lambda: tiny.convnet(SPEC), "no-positions"),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), tiny.convnet(SPEC)), "no-patch-layer"),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * (SIDE - 2) ** 2, 4)
            ),
            "no-positions",
        ),
        (lambda: Perceptron(before=nn.LayerNorm(48, elementwise_affine=False)), "no-patch-layer"),
        (lambda: Perceptron(before=nn.Tanh()), "no-patch-layer"),
        (lambda: Perceptron(before=nn.Dropout(0.2)), "first-layer-behind-dropout"),
        (lambda: Perceptron(learned=False), "positions-did-not-move"),
        (lambda: Transformer("none"), "no-positions"),
        (Axes, "no-positions"),
        (Windowed, "no-positions"),
        (lambda: Windowed(positions=True), "no-positions"),
        (Tied, "layer-shared"),
        (lambda: Transformer(inside=0.3), "positions-behind-dropout"),
        (lambda: Transformer(width=6), "rank-below-patches"),
    ],
)
def test_models_that_do_not_fit_are_named(build, code):
    victim = victim_of(build)
    check_refused(run(ATTACK, victim, tiny.observe(victim, tiny.images(SPEC, 1), [1])), code)


@pytest.mark.parametrize(
    ("name", "code"), [("positions", "positions-did-not-move"), ("embed.weight", "first-layer-did-not-move")]
)
def test_frozen_parameters_are_named(name, code):
    victim = victim_of()
    seen = tiny.observe(victim, tiny.images(SPEC, 1), [1])
    still = {**seen.update, name: torch.zeros_like(seen.update[name])}
    check_refused(run(ATTACK, victim, replace(seen, update=still)), code)


def test_groups_and_training_that_says_nothing_are_named():
    victim, x = victim_of(), tiny.images(SPEC, 1)
    grouped = Transformer(width=42)
    grouped.embed = nn.Conv2d(3, 42, 4, 4, groups=3)
    apart = tiny.victim(grouped, SPEC)
    check_refused(run(ATTACK, apart, tiny.observe(apart, x, [1])), "no-patch-layer")
    adam = local(victim, x, [1], local_steps=1, learning_rate=0.1, optimiser="adam")
    check_refused(run(ATTACK, victim, adam), "local-adam")
    decayed = local(victim, x, [1], local_steps=1, learning_rate=0.1, weight_decay=0.1)
    unsaid = replace(decayed, protocol=replace(decayed.protocol, learning_rate=None))
    check_refused(run(ATTACK, victim, unsaid), "weight-decay")


def test_dropout_behind_the_positions_changes_nothing():
    victim, x = victim_of(outside=0.2, dropout=0.3), tiny.images(SPEC, 1)
    victim.model.train()
    seen = tiny.observe(victim, x, [1])
    victim.model.eval()
    assert not torch.equal(seen.update["head.weight"], tiny.observe(victim, x, [1]).update["head.weight"])
    found = run(ATTACK, victim, seen)
    assert found.outcome is Outcome.CONVERGED, found.reason
    assert farthest(found, x) < 1e-7


@pytest.mark.parametrize("seed", range(4))
def test_functional_dropout_stochastic_depth_and_layer_scale_change_nothing_behind_the_positions(seed):
    victim, x = victim_of(Functional), tiny.images(SPEC, 1)
    victim.model.train()
    torch.manual_seed(seed)
    seen = tiny.observe(victim, x, [1])
    victim.model.eval()
    assert farthest(run(ATTACK, victim, seen), x) < 1e-7


def test_functional_dropout_before_the_positions_is_seen_in_the_update():
    """No layer tells of it, and the relation was found without it: the update does not confirm what is solved."""
    victim, x = victim_of(lambda: Functional(before=0.3)), tiny.images(SPEC, 1)
    victim.model.train()
    seen = tiny.observe(victim, x, [1])
    victim.model.eval()
    found = run(ATTACK, victim, seen)
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert "several-images" in found.reason_codes, "positions leave part of the gradient unexplained"
    check_refused(run(ATTACK, victim, replace(seen, batch_size=None)), "several-images")


def test_an_image_of_equal_patches_is_reconstructed_and_zeros_leave_no_gradient():
    victim = victim_of(torchvision_vit, dtype=torch.float32)
    x = torch.full((1, 3, SIDE, SIDE), -2.0)
    assert farthest(run(ATTACK, victim, tiny.observe(victim, x, [1])), x) < 1e-2
    zeros = run(ATTACK, victim, tiny.observe(victim, torch.zeros_like(x), [1]))
    check_refused(zeros, "first-layer-did-not-move")


def test_a_head_that_is_zero_before_its_first_step_is_said():
    """As torchvision builds it: in the first round of a federation nothing but the head has a gradient."""
    victim, x = victim_of(torchvision_vit), tiny.images(SPEC, 1)
    nn.init.zeros_(victim.model.heads.head.weight)
    refused = run(ATTACK, victim, tiny.observe(victim, x, [1]))
    check_refused(refused, "first-layer-did-not-move")
    assert "a later layer is zero" in refused.reason


@pytest.mark.parametrize("defence", ["precode", "clip", "dropout"])
def test_it_answers_what_it_says(defence):
    """The image is exact whatever the defence does: that is what ``answers`` claims."""
    assert defence in ATTACKS["patch-embedding"].answers
    victim = victim_of(Perceptron, bottleneck=True) if defence == "precode" else victim_of(outside=0.5)
    x = tiny.images(SPEC, 1)
    victim.model.train(defence == "dropout")
    seen = tiny.observe(victim, x, [1])
    victim.model.eval()
    if defence == "clip":
        chain = gradient_defence("clip:max_norm=0.01")
        generator = torch.Generator().manual_seed(0)
        update = chain(seen.update, generator=generator, model=victim.model, batch=(x, torch.tensor([1])))
        seen = replace(seen, update=update)
    assert farthest(run(ATTACK, victim, seen), x) < 1e-7


def test_patches_without_a_gradient_are_filled_in_and_said():
    victim, x = victim_of(Perceptron, masks=True), tiny.images(SPEC, 1)
    victim.model.train()
    seen = tiny.observe(victim, x, [1])
    victim.model.eval()
    smooth, small = run(ATTACK, victim, seen), run(PatchEmbedding(smoothness=0), victim, seen)
    for found in (smooth, small):
        assert found.outcome is Outcome.ITERATION_LIMIT
        assert found.reason_codes == ("patches-solved", "rank-below-patches")
        assert f"{PATCHES - 3} of {PATCHES}" in found.reason
        assert farthest(replace(found, inputs=found.inputs[..., 4:, :]), x[..., 4:, :]) < 1e-7
        assert farthest(replace(found, inputs=found.inputs[..., :4, 12:]), x[..., :4, 12:]) < 1e-7
    hidden = slice(0, 4), slice(0, 12)
    mean = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64).view(3, 1, 1)
    assert torch.allclose(small.inputs[0][:, *hidden], mean.expand(3, 4, 12), atol=1e-9), "what enters the layer is 0"
    assert not torch.allclose(smooth.inputs[0][:, *hidden], small.inputs[0][:, *hidden], atol=1e-3)


def test_a_width_below_the_patches_gives_what_is_determined():
    victim = victim_of(width=PATCHES - 2)
    ramp = torch.linspace(-1, 1, SIDE, dtype=torch.float64)
    x = (ramp[:, None] * ramp).expand(1, 3, SIDE, SIDE).contiguous()
    seen = tiny.observe(victim, x, [1])
    found = run(ATTACK, victim, seen)
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert "rank-below-patches" in found.reason_codes
    assert decibels(found, x) > decibels(run(PatchEmbedding(smoothness=0), victim, seen), x)
    check_refused(run(PatchEmbedding(least_share=0.9), victim, seen), "rank-below-patches")


@pytest.mark.parametrize("share", [1e-6, 1e-3, 1e-2])
def test_noise_is_measured_and_directions_below_it_count_less(share):
    victim, coarse = victim_of(torchvision_vit), tiny.images(tiny.inputs(channels=3, side=4), 1)
    x = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic")
    seen = noisy(tiny.observe(victim, x, [1]), share)
    found = run(ATTACK, victim, seen)
    tokens = seen.update["encoder.pos_embedding"][0, 1:]
    weight = seen.update["conv_proj.weight"].flatten(1)
    plain = torch.linalg.lstsq(tokens.T, weight).solution
    cut = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(PATCHES, -1)
    assert float((found.inputs - x).norm()) <= 1.01 * float((plain - cut).norm())
    assert ("rank-below-patches" in found.reason_codes) == (share > 1e-3), found.reason
    expected = {1e-6: Outcome.CONVERGED, 1e-2: Outcome.ITERATION_LIMIT}
    assert found.outcome is expected.get(share, found.outcome), found.reason


@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 40), (torch.bfloat16, 20)])
def test_updates_in_half_precision(dtype, least):
    victim, x = victim_of(torchvision_vit, dtype=torch.float32), tiny.images(SPEC, 1, dtype=torch.float32)
    seen = tiny.observe(victim, x, [1])
    half = replace(seen, update={name: value.to(dtype) for name, value in seen.update.items()})
    found = run(ATTACK, victim, half)
    assert decibels(found, x) > least
    assert found.inputs.dtype == torch.float32


def test_black_borders_and_equal_patches_are_reconstructed():
    victim, x = victim_of(torchvision_vit, dtype=torch.float32), tiny.images(SPEC, 1, dtype=torch.float32)
    x[..., :6, :], x[..., -4:, :], x[..., :4] = -2, -2, -2
    found = run(ATTACK, victim, tiny.observe(victim, x, [1]))
    assert decibels(found, x) > 50


def test_pixels_in_no_patch_are_said_and_overlapping_patches_agree():
    spec = tiny.inputs(channels=3, side=SIDE + 2)
    victim, x = victim_of(spec=spec), tiny.images(spec, 1)
    found = run(ATTACK, victim, tiny.observe(victim, x, [1]))
    missing = because("pixels-not-in-patches", count=3 * ((SIDE + 2) ** 2 - SIDE**2))
    assert missing in found.reason
    assert farthest(replace(found, inputs=found.inputs[..., :SIDE, :SIDE]), x[..., :SIDE, :SIDE]) < 1e-7
    model = Transformer()
    model.embed = nn.Conv2d(3, WIDTH, 6, 4, padding=1)
    overlapping, y = tiny.victim(model, SPEC), tiny.images(SPEC, 1)
    assert farthest(run(ATTACK, overlapping, tiny.observe(overlapping, y, [1])), y) < 1e-7


def test_it_comes_first_where_it_fits():
    victim, x = victim_of(torchvision_vit), tiny.images(SPEC, 1)
    seen = replace(tiny.observe(victim, x, [1]), protocol=Protocol(defence="none", batch_norm="buffers"))
    listed = attacks_for(victim, observation=seen)
    assert next(one.spec for one in listed if one.applies) == "patch-embedding"
    pair = replace(tiny.observe(victim, tiny.images(SPEC, 2), [1, 2]), protocol=seen.protocol)
    (one,) = [one for one in attacks_for(victim, observation=pair) if one.spec == "patch-embedding"]
    assert not one.applies


def test_settings_are_checked():
    for setting in ("smoothness=-1", "smoothness=inf", "least_share=0", "least_share=1.5"):
        with pytest.raises(ValueError, match=setting.partition("=")[0]):
            build_attack(f"patch-embedding:{setting}")
    assert build_attack("patch-embedding:smoothness=0,least_share=0.75") == PatchEmbedding(
        smoothness=0.0, least_share=0.75
    )


def test_granted_labels_are_taken_and_checked():
    victim, x = victim_of(), tiny.images(SPEC, 1)
    seen = tiny.observe(victim, x, [1])
    assert run(ATTACK, victim, seen, labels=torch.tensor([3])).labels.tolist() == [3]
    with pytest.raises(ValueError, match="granted labels"):
        run(ATTACK, victim, seen, labels=torch.tensor([1, 2]))
