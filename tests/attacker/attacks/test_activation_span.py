"""Activation span: batches behind smooth layers are reconstructed exactly, or in part where noise hides some."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attacker.attacks import ActivationSpan, Outcome, build_attack
from attacker.reasons import because
from fl_precode import Protocol, VariationalBottleneck
from tests.attacker import local_clients, tiny
from tests.attacker.attacks.test_attacks_raise import check_refused

SPEC = tiny.inputs(side=8, classes=6)
UNITS = 96
SMOOTH = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "gelu-tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "softplus": nn.Softplus(),
    "softplus-beta": nn.Softplus(beta=2.0),
}


class Called(nn.Module):
    """An MLP that calls its activation as a function."""

    def __init__(self, spec, function):
        super().__init__()
        self.fc1 = nn.Linear(spec.channels * spec.height * spec.width, UNITS)
        self.fc2 = nn.Linear(UNITS, 40)
        self.fc3 = nn.Linear(40, spec.classes)
        self.function = function

    def forward(self, x):
        hidden = self.function(self.fc1(x.flatten(1)))
        return self.fc3(self.function(self.fc2(hidden)))


def mlp(spec, activation, *, between=(), behind=(), first_bias=True, second_bias=True):
    d = spec.channels * spec.height * spec.width
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(d, UNITS, bias=first_bias),
        activation,
        *between,
        nn.Linear(UNITS, 40, bias=second_bias),
        activation,
        *behind,
        nn.Linear(40, spec.classes),
    )


def victim_of(activation="tanh", *, dtype=torch.float64, model=None, **changes):
    torch.manual_seed(0)
    return tiny.victim(mlp(SPEC, SMOOTH[activation], **changes) if model is None else model, SPEC, dtype=dtype)


def run(victim, observation, *, attack=None, seed=0, labels=None):
    attack = ActivationSpan() if attack is None else attack
    granted = None if labels is None else [labels]
    (found,) = attack(victim, [observation], generator=torch.Generator().manual_seed(seed), labels=granted)
    return found


def errors(found, x):
    """Largest difference of a pixel for each image, and where it stands among those found."""
    far = (found.inputs[None] - x[:, None]).abs().flatten(2).amax(dim=2).nan_to_num(nan=9.0)
    return far.min(dim=1)


def check_exact(found, x, y, tolerance=1e-6):
    assert found.outcome is Outcome.CONVERGED, found.reason
    far, order = errors(found, x)
    assert sorted(order.tolist()) == list(range(len(x)))
    assert float(far.max()) < tolerance
    assert found.labels[order].tolist() == y


@pytest.mark.parametrize("activation", SMOOTH)
def test_batches_are_exact_whether_their_size_is_announced_or_not(activation):
    victim, x, y = victim_of(activation), tiny.images(SPEC, 6), [0, 3, 1, 3, 5, 2]
    for announced in (6, None):
        found = run(victim, tiny.observe(victim, x, y, batch_size=announced))
        check_exact(found, x, y)
        assert found.reason == ""
        assert found.matching_loss < 1e-10


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "gelu", "silu", "softplus"])
def test_a_first_bias_that_does_not_move_is_enough_and_often_none(activation):
    x, y = tiny.images(SPEC, 5), [0, 3, 1, 3, 5]
    victim = victim_of(activation)
    seen = tiny.observe(victim, x, y)
    still = replace(
        seen,
        parameters={name: value for name, value in seen.parameters.items() if name != "1.bias"},
        update={name: value for name, value in seen.update.items() if name != "1.bias"},
        buffers={**seen.buffers, "1.bias": seen.parameters["1.bias"]},
        frozen=frozenset({"1.bias"}),
    )
    check_exact(run(victim, still), x, y)
    if activation != "tanh":
        none = victim_of(activation, first_bias=False)
        check_exact(run(none, tiny.observe(none, x, y)), x, y)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "gelu", "silu", "softplus"])
def test_gradients_in_single_precision(activation):
    victim, x, y = victim_of(activation, dtype=torch.float32), tiny.images(SPEC, 5).float(), [0, 3, 1, 3, 5]
    found = run(victim, tiny.observe(victim, x, y))
    check_exact(found, x, y, tolerance=1e-2)
    assert found.inputs.dtype == torch.float32


@pytest.mark.parametrize("function", [torch.tanh, F.silu, lambda u: u * torch.sigmoid(1.702 * u)])
def test_activations_may_be_called_as_functions(function):
    torch.manual_seed(0)
    victim, x, y = victim_of(model=Called(SPEC, function)), tiny.images(SPEC, 4), [0, 3, 1, 3]
    check_exact(run(victim, tiny.observe(victim, x, y)), x, y)


def test_one_image_and_one_step_of_training_and_no_second_bias():
    victim, x = victim_of("gelu", second_bias=False), tiny.images(SPEC, 3)
    check_exact(run(victim, tiny.observe(victim, x[:1], [4])), x[:1], [4])
    check_exact(run(victim, tiny.observe(victim, x, [4, 0, 2], learning_rate=0.1)), x, [4, 0, 2])


def test_what_stands_behind_the_second_layer_changes_nothing():
    x, y = tiny.images(SPEC, 4), [5, 0, 3, 1]
    hidden = victim_of("gelu", behind=(VariationalBottleneck(40, latent=5),))
    found = run(hidden, tiny.observe(hidden, x, y), labels=torch.tensor([0, 1, 3, 5]))
    assert float(errors(found, x)[0].max()) < 1e-6
    assert sorted(found.labels.tolist()) == [0, 1, 3, 5]
    assert found.matching_loss is None, "the client's noise is unknown"
    dropping = victim_of("gelu", behind=(nn.Dropout(0.5),))
    dropping.model.train()
    seen = tiny.observe(dropping, x, y)
    dropping.model.eval()
    assert float(errors(run(dropping, seen), x)[0].max()) < 1e-6
    plain = victim_of("gelu")
    seen = tiny.observe(plain, x, y)
    clipped = {name: 0.01 * value for name, value in seen.update.items()}
    check_exact(run(plain, replace(seen, update=clipped)), x, y)


def test_a_bottleneck_may_be_the_second_layer():
    torch.manual_seed(0)
    d = SPEC.height * SPEC.width
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(d, UNITS), nn.Tanh(), VariationalBottleneck(UNITS, latent=20), nn.Linear(UNITS, 6)
    )
    victim, x = victim_of(model=model), tiny.images(SPEC, 4)
    found = run(victim, tiny.observe(victim, x, [5, 0, 3, 1]))
    assert float(errors(found, x)[0].max()) < 1e-6


def test_an_image_that_repeats_counts_once_and_black_images_and_borders_are_found():
    victim, x = victim_of("gelu"), tiny.images(SPEC, 4)
    x[:, :, :2] = x[:, :, :2].mean(dim=0)
    x[1] = 0
    check_exact(run(victim, tiny.observe(victim, x, [0, 1, 2, 3])), x, [0, 1, 2, 3])
    twice = torch.cat([x, x[:1]])
    found = run(victim, tiny.observe(victim, twice, [0, 1, 2, 3, 0]))
    assert found.reason == because("some-images", count=4, size=5)
    assert found.inputs.shape == twice.shape
    assert int(found.inputs.isnan().flatten(1).all(dim=1).sum()) == 1
    assert float(errors(found, x)[0].max()) < 1e-6
    assert found.labels is None


@pytest.mark.parametrize("share", [1e-8, 1e-5, 1e-3, 1e-1, 10.0])
def test_noise_costs_accuracy_then_images_and_it_is_said(share):
    victim, x, y = victim_of("gelu"), tiny.images(SPEC, 4), [0, 1, 2, 3]
    seen = tiny.observe(victim, x, y)
    noise = torch.Generator().manual_seed(0)
    noisy = {
        name: value + share * value.square().mean().sqrt() * torch.randn(value.shape, generator=noise).to(value)
        for name, value in seen.update.items()
    }
    found = run(victim, replace(seen, update=noisy))
    if share <= 1e-3:
        assert float(errors(found, x)[0].max()) < 1e3 * share + 1e-6
    else:
        assert found.outcome is not Outcome.CONVERGED or found.reason


def test_the_same_generator_finds_the_same_and_results_do_not_depend_on_it():
    victim, x = victim_of("gelu"), tiny.images(SPEC, 5)
    observation = tiny.observe(victim, x, [0, 1, 2, 3, 4])
    one, same, other = (run(victim, observation, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.inputs, same.inputs)
    assert float(errors(other, x)[0].max()) < 1e-6


def test_every_setting_changes_the_result():
    victim, x = victim_of("gelu"), tiny.images(SPEC, 6)
    observation = tiny.observe(victim, x, [0, 1, 2, 3, 4, 5])
    check_refused(
        run(victim, observation, attack=ActivationSpan(most_images=5)), because("too-many-images", most=5, size=6)
    )
    unknown = replace(observation, batch_size=None)
    check_refused(run(victim, unknown, attack=ActivationSpan(most_images=5)), "rank-unclear")
    short = run(victim, observation, attack=build_attack("activation-span:steps=1,starts=8"))
    assert short.outcome is Outcome.ITERATION_LIMIT
    assert short.reason_codes == ("inputs-not-found",)
    longer = run(victim, observation, attack=build_attack("activation-span:steps=1,starts=16"))
    assert longer.reason != short.reason
    for setting in ("most_images", "starts", "steps"):
        with pytest.raises(ValueError, match=f"{setting} to be 1 or more"):
            build_attack(f"activation-span:{setting}=0")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"between": (nn.Dropout(0.5),)}, "second-layer-behind-dropout"),
        ({"between": (nn.LayerNorm(UNITS),)}, "no-second-layer"),
        ({"between": (nn.Linear(UNITS, UNITS), nn.BatchNorm1d(UNITS))}, None),
    ],
)
def test_what_stands_between_the_layers_decides(changes, code):
    torch.manual_seed(0)
    victim, x = victim_of("tanh", **changes), tiny.images(SPEC, 3)
    found = run(victim, tiny.observe(victim, x, [0, 1, 2], buffers=dict(victim.model.named_buffers())))
    if code is None:
        assert float(errors(found, x)[0].max()) < 1e-6
    else:
        check_refused(found, code)


def test_refusals_name_what_is_missing():
    x, y = tiny.images(SPEC, 3), [1, 2, 3]
    convolution = tiny.victim(tiny.convnet(SPEC), SPEC)
    check_refused(run(convolution, tiny.observe(convolution, x, y)), "first-layer-not-linear")
    odd = victim_of("tanh", first_bias=False)
    check_refused(run(odd, tiny.observe(odd, x, y)), "first-layer-without-bias")
    torch.manual_seed(0)
    single = victim_of(model=nn.Sequential(nn.Flatten(), nn.Linear(64, 6)))
    check_refused(run(single, tiny.observe(single, x, y)), because("no-second-layer", name="1"))
    victim = victim_of("gelu")
    seen = tiny.observe(victim, x, y)
    check_refused(run(victim, replace(seen, batch_size=2)), because("rank-too-high", name="1.weight", rank=3, size=2))
    silent = {name: torch.zeros_like(value) for name, value in seen.update.items()}
    check_refused(run(victim, replace(seen, update=silent)), "gradient-is-zero")
    protocol = Protocol(name="fedavg", local_epochs=2, batch_size=2, learning_rate=1e-3)
    sent = local_clients.train(victim, x, torch.tensor(y), [[0, 1], [2, 0]], protocol)
    check_refused(run(victim, sent), "several-steps")
    adam = replace(protocol, optimiser="adam", local_epochs=1, batch_size=None)
    check_refused(run(victim, replace(sent, protocol=adam)), "local-adam")


def test_more_images_than_classes_behind_a_classifier_are_refused_and_fewer_are_exact():
    victim = tiny.victim(tiny.mlp(SPEC, hidden=UNITS), SPEC)
    x, y = tiny.images(SPEC, 8), [0, 1, 2, 3, 4, 5, 0, 1]
    check_exact(run(victim, tiny.observe(victim, x[:4], y[:4])), x[:4], y[:4], tolerance=1e-5)
    check_refused(run(victim, tiny.observe(victim, x, y)), "rank-fills-width")


def test_several_steps_on_one_batch_are_taken_half_way():
    victim, x, y = victim_of("gelu"), tiny.images(SPEC, 4), [1, 0, 4, 2]
    for rate, worst in ((1e-4, 1e-3), (1e-2, 0.2)):
        protocol = Protocol(name="fedavg", local_epochs=3, batch_size=4, learning_rate=rate)
        sent = local_clients.train(victim, x, torch.tensor(y), [[0, 1, 2, 3]] * 3, protocol)
        found = run(victim, sent)
        far, order = errors(found, x)
        assert sorted(order.tolist()) == [0, 1, 2, 3], found.reason
        assert float(far.max()) < worst
        assert found.labels[order].tolist() == y
        assert "steps-half-way" in found.reason_codes
        assert found.matching_loss < 1e-3
    elsewhere = replace(sent, parameters={name: value + 0.05 for name, value in sent.parameters.items()})
    assert run(victim, elsewhere).outcome is not Outcome.CONVERGED
