"""SPEAR: batches are reconstructed exactly, the same twice, and what does not fit is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import FirstLayerInversion, Outcome, Spear, build_attack
from attacker.metrics.similarity import match_batch, psnr
from attacker.reasons import because
from fl_precode import Protocol, VariationalBottleneck
from fl_precode.data import load_data
from tests.attacker import local_clients, tiny
from tests.attacker.attacks.test_attacks_raise import check_refused

SPEC = tiny.inputs(classes=6)
UNITS = 60


def relu_mlp(spec, *, units=UNITS, middle=(), after=None):
    d = spec.channels * spec.height * spec.width
    return nn.Sequential(nn.Flatten(), nn.Linear(d, units), after or nn.ReLU(), *middle, nn.Linear(units, spec.classes))


def victim_of(*, seed=0, spec=SPEC, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return tiny.victim(relu_mlp(spec, **changes), spec, dtype=dtype)


def run(victim, observation, *, attack=None, seed=0, labels=None):
    granted = None if labels is None else [labels]
    attack = Spear() if attack is None else attack
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(seed), labels=granted)
    return found


def farthest(found, x):
    """Largest difference of a pixel, images in the order of the truth; and that order."""
    order = torch.cdist(x.flatten(1), found.inputs.flatten(1)).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(len(x)))
    return float((found.inputs[order] - x).abs().max()), order


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_batches_are_exact_whether_their_size_is_announced_or_not(batch, seed):
    victim = victim_of(seed=seed)
    x, y = tiny.images(SPEC, batch, seed=seed), [(3 * i + seed) % 6 for i in range(batch)]
    for announced in (batch, None):
        found = run(victim, tiny.observe(victim, x, y, batch_size=announced))
        assert found.outcome is Outcome.CONVERGED, found.reason
        error, order = farthest(found, x)
        assert error < 1e-6
        assert found.labels[order].tolist() == y
        assert found.matching_loss < 1e-12


def test_a_bottleneck_behind_the_layer_changes_nothing():
    victim = victim_of(middle=(VariationalBottleneck(UNITS, latent=5),))
    x = tiny.images(SPEC, 4)
    found = run(victim, tiny.observe(victim, x, [5, 0, 3, 1]), labels=torch.tensor([0, 1, 3, 5]))
    assert farthest(found, x)[0] < 1e-6
    assert sorted(found.labels.tolist()) == [0, 1, 3, 5]
    assert found.matching_loss is None, "the client's noise is unknown"
    assert len(run(victim, tiny.observe(victim, x, [5, 0, 3, 1])).labels) == 4


@pytest.mark.parametrize("batch", [2, 4])
def test_photographs_in_single_precision(batch):
    data = load_data("photos")
    images, labels = data.train.batch(list(range(batch)))
    victim = victim_of(spec=data.inputs, units=200, dtype=torch.float32)
    observation = tiny.observe(victim, data.inputs.normalise(images), labels.tolist())
    found = run(victim, observation, attack=build_attack("spear"))
    restored = data.inputs.denormalise(found.inputs)
    assert float(psnr(restored[match_batch(restored, images)], images).min()) > 60
    assert found.inputs.dtype == torch.float32


def test_one_step_of_training_and_several():
    victim, x, y = victim_of(), tiny.images(SPEC, 4), [1, 0, 4, 2]
    assert farthest(run(victim, tiny.observe(victim, x, y, learning_rate=0.1)), x)[0] < 1e-6
    protocol = Protocol(name="fedavg", local_epochs=2, batch_size=2, learning_rate=1e-3, momentum=0.5)
    steps = [[0, 1], [2, 3], [3, 0], [1, 2]]
    sent = local_clients.train(victim, x, torch.tensor(y), steps, protocol)
    found = run(victim, sent)
    error, order = farthest(found, x)
    assert error < 1e-6
    assert found.labels[order].tolist() == y
    assert found.matching_loss is None
    check_refused(run(victim, replace(sent, protocol=replace(protocol, weight_decay=0.1))), "weight-decay")


def test_the_same_generator_finds_the_same_and_results_do_not_depend_on_it():
    victim, x = victim_of(), tiny.images(SPEC, 5)
    observation = tiny.observe(victim, x, [0, 1, 2, 3, 4])
    one, same, other = (run(victim, observation, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.inputs, same.inputs)
    assert farthest(other, x)[0] < 1e-6


def test_every_setting_changes_the_result():
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 6), [0, 1, 2, 3, 4, 5])
    assert run(victim, observation).inputs is not None
    short = run(victim, observation, attack=build_attack("spear:samples=2"))
    assert short.outcome is Outcome.ITERATION_LIMIT
    assert short.reason_codes == ("columns-not-found",)
    assert short.inputs is None
    check_refused(run(victim, observation, attack=Spear(most_images=5)), because("too-many-images", most=5, size=6))
    unknown = replace(observation, batch_size=None)
    check_refused(run(victim, unknown, attack=Spear(most_images=5)), "rank-unclear")
    for setting in ("samples", "most_images"):
        with pytest.raises(ValueError, match=f"{setting} to be 1 or more"):
            build_attack(f"spear:{setting}=0")


def test_an_image_that_repeats_counts_once_and_is_said():
    victim, x = victim_of(), tiny.images(SPEC, 3)
    twice = torch.cat([x, x[:1]])
    found = run(victim, tiny.observe(victim, twice, [0, 1, 2, 0]))
    assert found.reason == because("some-images", count=3, size=4)
    assert farthest(found, x)[0] < 1e-6


@pytest.mark.parametrize(
    "after", [nn.Sigmoid(), nn.LeakyReLU(0.01), nn.Sequential(nn.BatchNorm1d(UNITS), nn.Tanh())], ids=str
)
def test_layers_without_relu_are_named(after):
    victim = victim_of(after=after)
    named = because("first-layer-without-relu", name="1")
    check_refused(run(victim, tiny.observe(victim, tiny.images(SPEC, 2), [1, 2], buffers={})), named)


def test_other_layers_noise_and_too_many_images_are_named():
    convolution = tiny.victim(tiny.convnet(SPEC), SPEC)
    check_refused(run(convolution, tiny.observe(convolution, tiny.images(SPEC, 2), [1, 2])), "first-layer-not-linear")
    bare = tiny.victim(tiny.mlp(SPEC, bias=False), SPEC)
    check_refused(run(bare, tiny.observe(bare, tiny.images(SPEC, 2), [1, 2])), "first-layer-without-bias")
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 3), [1, 2, 3])
    noise = torch.Generator().manual_seed(0)
    noisy = {
        name: value + value.std() * torch.randn(value.shape, generator=noise, dtype=value.dtype)
        for name, value in observation.update.items()
    }
    check_refused(run(victim, replace(observation, update=noisy)), "rank-unclear")
    check_refused(
        run(victim, replace(observation, batch_size=2)), because("rank-too-high", name="1.weight", rank=3, size=2)
    )
    narrow = victim_of(units=6)
    check_refused(run(narrow, tiny.observe(narrow, tiny.images(SPEC, 8), [1] * 8)), "rank-unclear")
    silent = {name: torch.zeros_like(value) for name, value in observation.update.items()}
    check_refused(run(victim, replace(observation, update=silent)), "gradient-is-zero")


def test_an_image_that_is_mixed_wrongly_would_be_noticed():
    # With another bias the pattern of the ReLU is not that of the update.
    victim = victim_of()
    observation = tiny.observe(victim, tiny.images(SPEC, 3), [1, 2, 3])
    moved = {**observation.parameters, "1.bias": observation.parameters["1.bias"] + 0.8}
    found = run(victim, replace(observation, parameters=moved), attack=Spear(samples=500))
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert found.reason_codes == ("columns-not-found",)


def test_first_layer_inversion_still_tells_a_batch_by_its_rank():
    victim = victim_of()
    pair = tiny.observe(victim, tiny.images(SPEC, 2), [1, 2], batch_size=None)
    check_refused(run(victim, pair, attack=FirstLayerInversion()), "several-images")


def test_images_whose_columns_are_found_are_reconstructed_where_the_others_are_not():
    victim, x = victim_of(middle=(nn.Linear(UNITS, UNITS), nn.ReLU()), seed=1), tiny.images(SPEC, 7)
    observation = tiny.observe(victim, x, [0, 1, 2, 3, 4, 5, 0])
    for samples in range(20, 2000, 20):
        found = run(victim, observation, attack=Spear(samples=samples))
        if found.inputs is not None:
            break
    there = ~found.inputs.flatten(1).isnan().any(1)
    assert found.inputs.shape == x.shape
    assert 0 < int(there.sum()) < len(x), "partly found, at a number of samples between none and all"
    assert float(torch.cdist(found.inputs[there].flatten(1), x.flatten(1)).min(1).values.max()) < 1e-6
    assert found.outcome is Outcome.ITERATION_LIMIT
    assert found.reason_codes == ("columns-not-found", "some-images")
