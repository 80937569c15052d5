"""Layer-wise inversion: exact where the equations suffice, and honest where they do not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.attacks import LayerwiseInversion, Outcome, build_attack
from attacker.metrics.similarity import psnr
from attacker.reasons import because
from attacker.victim import Victim
from fl_precode import Protocol
from fl_precode.data import load_data
from fl_precode.models import build_model
from tests.attacker import tiny
from tests.attacker.chains import attacked, condition, soluble

SPEC = tiny.inputs(channels=2, side=6)


@settings(max_examples=25, deadline=None)
@given(problem=soluble(), seed=st.integers(0, 1000))
def test_random_soluble_chains_are_recovered(problem, seed):
    spec, model = problem
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    assume(condition(spec, model) < 1e3)  # rounding is amplified by that, layer after layer
    _, (x,), (found,) = attacked(spec, model, label=seed % 4)
    assert found.outcome is Outcome.CONVERGED, found.reason
    assert found.reason == ""
    assert found.labels.tolist() == [seed % 4]
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
    assert found.matching_loss < 1e-12


def faces(count):
    data = load_data("faces")
    images, labels = data.train.batch(list(range(count)))
    return data.inputs, images, labels


def test_the_sigmoid_lenet_of_dlg_in_single_precision():
    inputs, images, labels = faces(3)
    victim = Victim(model=build_model("lenet:init=uniform", inputs, seed=0), inputs=inputs)
    seen = [tiny.observe(victim, inputs.normalise(images[i : i + 1]), labels[i : i + 1].tolist()) for i in range(3)]
    found = LayerwiseInversion()(victim, seen, generator=torch.Generator())
    quality = psnr(inputs.denormalise(torch.cat([one.inputs for one in found])), images)
    assert float(quality.min()) > 85, quality
    assert [one.labels.item() for one in found] == labels.tolist()
    assert found[0].inputs.dtype == torch.float32


def wide(activation, *, outputs=12, fc=None):
    side = 4
    return nn.Sequential(nn.Conv2d(2, outputs, 3), activation, nn.Flatten(), fc or nn.Linear(outputs * side * side, 4))


def test_victims_with_other_weights_are_solved_together_and_alone_alike():
    model = wide(nn.Tanh())
    victim, truths, found = attacked(SPEC, model, count=2)
    other = {name: value * 1.5 for name, value in model.named_parameters()}
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(other[name])
    later = tiny.observe(victim, truths[0], [2])
    with torch.no_grad():
        for value in model.parameters():
            value.div_(1.5)
    first = tiny.observe(victim, truths[1], [1])
    both = LayerwiseInversion()(victim, [later, first], generator=torch.Generator())
    torch.testing.assert_close(both[0].inputs, truths[0], rtol=0, atol=1e-8)
    torch.testing.assert_close(both[1].inputs, found[1].inputs, rtol=0, atol=1e-9)
    assert both[0].labels.tolist() == [2]


def test_weights_after_one_step_do_as_well_and_several_steps_are_refused():
    _, (x,), (found,) = attacked(SPEC, wide(nn.Tanh()), learning_rate=0.1)
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-7)
    two = Protocol(name="fedavg", local_steps=2, learning_rate=0.1, batch_size=1)
    _, _, (refused,) = attacked(SPEC, wide(nn.Tanh()), learning_rate=0.1, protocol=two)
    assert refused.reason == because("several-steps", steps=2)


@pytest.mark.parametrize(("outputs", "exact"), [(24, True), (1, False)])
def test_relu_tells_what_is_positive(outputs, exact):
    torch.manual_seed(3)
    _, (x,), (found,) = attacked(SPEC, wide(nn.ReLU(), outputs=outputs))
    if exact:
        torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
        assert found.outcome is Outcome.CONVERGED
    else:
        assert found.outcome is not Outcome.CONVERGED
        assert "rank-deficient" in found.reason_codes


@pytest.mark.parametrize(("padding", "exact"), [(2, True), (0, False)])
def test_pooling_after_a_convolution_counts_in_its_equations(padding, exact):
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 30, 3, padding=padding), nn.AvgPool2d(2), nn.Tanh(), nn.Flatten()]
    features = nn.Sequential(*layers)(torch.zeros(1, 2, 6, 6)).shape[1]
    _, (x,), (found,) = attacked(SPEC, nn.Sequential(*layers, nn.Linear(features, 4)))
    if exact:
        assert found.outcome is Outcome.CONVERGED, found.reason
        torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
    else:
        assert found.outcome is not Outcome.CONVERGED
        assert "rank-deficient" in found.reason_codes
        assert found.matching_loss < 1e-12, "the equations hold all the same"


def test_pooling_before_everything_gives_means():
    model = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 12, 2), nn.Tanh(), nn.Flatten(), nn.Linear(48, 4))
    _, (x,), (found,) = attacked(SPEC, model)
    pool = nn.AvgPool2d(2)
    torch.testing.assert_close(pool(found.inputs), pool(x), rtol=0, atol=1e-7)
    assert because("rank-deficient", name="0", rank=18, unknowns=72) in found.reason


def test_batch_norm_by_buffers_is_gone_through():
    model = nn.Sequential(nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.Tanh(), nn.Flatten(), nn.Linear(192, 4))
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.uniform_(-1, 1)
    buffers = {name: value.double().clone() for name, value in model.named_buffers()}
    _, (x,), (found,) = attacked(SPEC, model, buffers=buffers)
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-7)
    _, _, (refused,) = attacked(SPEC, model, buffers=buffers, protocol=Protocol(batch_norm="batch"))
    assert refused.reason == because("layer-not-solvable", name="1", kind="BatchStatisticsNorm")


def test_dropout_that_was_active_is_seen_and_undone():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(2, 30, 3), nn.Sigmoid(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(480, 4)).double()
    x = tiny.images(SPEC, 1)
    victim = tiny.victim(model, SPEC)
    victim.model.train()
    seen = tiny.observe(victim, x, [1])
    victim.model.eval()
    (found,) = LayerwiseInversion()(victim, [seen], generator=torch.Generator())
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-6)
    assert found.outcome is Outcome.CONVERGED
    (plain,) = LayerwiseInversion()(victim, [tiny.observe(victim, x, [1])], generator=torch.Generator())
    torch.testing.assert_close(plain.inputs, x, rtol=0, atol=1e-6)


def test_a_confidently_classified_image_is_recovered():
    model = wide(nn.Sigmoid())
    with torch.no_grad():
        model[3].bias.copy_(torch.tensor([0.0, 12.0, 0.0, 0.0]))
    victim, (x,), (found,) = attacked(SPEC, model, dtype=torch.float32)
    size = max(float(value.abs().max()) for value in tiny.observe(victim, x, [1]).update.values())
    assert size < 1e-4, "the gradient is tiny"
    assert float(psnr(SPEC.denormalise(found.inputs), SPEC.denormalise(x))) > 60


def test_saturated_values_are_left_out_and_named():
    model = wide(nn.Tanh(), outputs=16)
    with torch.no_grad():
        model[0].weight.mul_(25)
    _, (x,), (found,) = attacked(SPEC, model)
    assert "saturated-left-out" in found.reason_codes
    torch.testing.assert_close(found.inputs, x, rtol=0, atol=1e-4)


def test_noise_lowers_the_confidence():
    victim, (x,), (clean,) = attacked(SPEC, wide(nn.Tanh()))
    seen = tiny.observe(victim, x, [1])
    results = [clean]
    for std in (1e-6, 1e-3):
        torch.manual_seed(0)
        noisy = {name: value + std * torch.randn_like(value) for name, value in seen.update.items()}
        results += LayerwiseInversion()(victim, [replace(seen, update=noisy)], generator=torch.Generator())
    losses = [one.matching_loss for one in results]
    assert losses == sorted(losses)
    assert results[1].outcome is Outcome.CONVERGED
    assert results[2].outcome is not Outcome.CONVERGED
    assert results[2].reason_codes == ("residuals",)


def test_results_do_not_depend_on_the_generator_or_on_who_is_beside():
    model = wide(nn.Sigmoid())
    victim, truths, found = attacked(SPEC, model, count=3)
    seen = [tiny.observe(victim, x, [1]) for x in truths]
    (alone,) = LayerwiseInversion()(victim, seen[2:], generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(alone.inputs, found[2].inputs, rtol=0, atol=1e-10)
    again = LayerwiseInversion()(victim, seen, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(one.inputs, other.inputs) for one, other in zip(found, again, strict=True))


def test_it_can_be_named_and_takes_granted_labels():
    attack = build_attack("layerwise-inversion")
    assert attack.name == "layerwise-inversion"
    victim, (x,), _ = attacked(SPEC, wide(nn.Tanh()))
    (found,) = attack(victim, [tiny.observe(victim, x, [1])], generator=torch.Generator(), labels=[torch.tensor([3])])
    assert found.labels.tolist() == [3]
