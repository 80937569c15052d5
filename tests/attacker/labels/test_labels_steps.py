"""Labels from several local steps: the mean of the steps' gradients, checked against local training that really ran."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.labels import LABEL_RECOVERY, recover_labels
from attacker.labels.counts import estimate_counts
from attacker.labels.evidence import classifier_gradient
from attacker.labels.probes import probe_classifier
from fl_precode import Observation, Protocol
from tests.attacker import tiny

SPEC = tiny.inputs()
RATE = 0.25


def constant(**options):
    """A victim that answers every input alike at first, with unequal probabilities when it has a bias."""
    torch.manual_seed(3)
    model = tiny.mlp(SPEC, **options)
    torch.nn.init.zeros_(model[3].weight)
    return tiny.victim(model, SPEC)


def same_for_all_images():
    """A victim that sees no image at all, so that it answers all inputs alike at every step of its training."""
    victim = constant()
    torch.nn.init.zeros_(victim.model[1].weight)
    for parameter in victim.model[1].parameters():
        parameter.requires_grad_(False)
    return victim


def train(victim, x, batches, *, rate=RATE):
    """What FedAvg shows of plain SGD over the batches of (index, label); also the steps' own gradients."""
    parameters = {name: value.detach().clone() for name, value in victim.model.named_parameters()}
    current, gradients = dict(parameters), []
    for batch in batches:
        leaves = {name: value.clone().requires_grad_() for name, value in current.items()}
        logits = torch.func.functional_call(victim.model, leaves, (x[[index for index, _ in batch]],))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([label for _, label in batch]))
        found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True, allow_unused=True)
        gradients.append(dict(zip(leaves, found, strict=True)))
        current = {name: current[name] - rate * gradients[-1][name] for name in current}
    images = {index for batch in batches for index, _ in batch}
    announced = Protocol(name="fedavg", local_steps=len(batches), learning_rate=rate)
    observation = Observation(
        parameters=parameters,
        buffers={},
        update={name: current[name] - parameters[name] for name in current},
        kind="weights",
        batch_size=len(images) or None,
        protocol=announced,
        round=1,
        node="1",
    )
    return observation, gradients


def dealt(labels, size):
    """Labels as batches of (index, label)."""
    numbered = list(enumerate(labels))
    return [numbered[first : first + size] for first in range(0, len(labels), size)]


def recover(method, victim, observation, *, seed=0, probes=8):
    found = recover_labels(method, victim, observation, generator=torch.Generator().manual_seed(seed), probes=probes)
    return None if found is None else found.tolist()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_evidence_is_the_mean_of_the_steps_gradients(steps):
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    labels = [(3 * i) % 4 for i in range(2 * steps)]
    observation, gradients = train(victim, tiny.images(SPEC, len(labels)), dealt(labels, 2))
    found = classifier_gradient(victim, observation)
    for name, value in (("3.weight", found.weight), ("3.bias", found.bias)):
        expected = torch.stack([one[name] for one in gradients]).mean(dim=0)
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-12)
    assert found.steps == steps
    assert found.why_unscaled is None


@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 3), min_size=6, max_size=6), size=st.sampled_from([1, 2, 3]))
def test_counts_cover_the_images_of_all_steps(labels, size):
    # At this rate the mean probabilities move by far less than half an image, and along a nearly straight line.
    victim = constant()
    observation, _ = train(victim, tiny.images(SPEC, 6), dealt(labels, size), rate=1e-3)
    assert observation.batch_size == 6
    assert recover("counts", victim, observation) == sorted(labels)


@pytest.mark.parametrize("epochs", [1, 3])
def test_counts_of_images_that_come_again_are_counts_of_images(epochs):
    victim, labels = constant(), [2, 0, 2, 1]
    observation, _ = train(victim, tiny.images(SPEC, 4), dealt(labels, 2) * epochs, rate=1e-3)
    assert observation.batch_size == 4
    assert recover("counts", victim, observation) == sorted(labels)
    by_epochs = Protocol(name="fedavg", local_epochs=epochs, batch_size=2, learning_rate=1e-3)
    assert recover("counts", victim, replace(observation, protocol=by_epochs)) == sorted(labels)


@pytest.mark.parametrize("decay", [None, 0.4])
def test_momentum_and_weight_decay_are_taken_back(decay):
    victim, rate, momentum = tiny.victim(tiny.mlp(SPEC), SPEC), 1e-4, 0.9
    x, y = tiny.images(SPEC, 6), [2, 0, 2, 1, 2, 2]
    observation, _ = train(victim, x, [])
    model = copy.deepcopy(victim.model)
    optimiser = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum, weight_decay=decay or 0.0)
    for _ in range(3):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), torch.tensor(y)).backward()
        optimiser.step()
    update = {name: value.detach() - observation.parameters[name] for name, value in model.named_parameters()}
    protocol = Protocol(local_steps=3, learning_rate=rate, momentum=momentum, weight_decay=decay)
    trained = replace(observation, update=update, batch_size=6, protocol=protocol)
    truth = classifier_gradient(victim, tiny.observe(victim, x, y))
    torch.testing.assert_close(classifier_gradient(victim, trained).bias, truth.bias, rtol=0, atol=1e-3)
    assert recover("counts", victim, trained) == sorted(y)
    if decay:
        for method in ("counts", "llg"):
            with pytest.raises(ValueError, match="take weight decay out of the update: the learning rate"):
                recover(method, victim, replace(trained, protocol=replace(protocol, learning_rate=None)))


def test_the_returned_weights_have_their_share_in_the_probabilities():
    victim = constant()
    observation, _ = train(victim, tiny.images(SPEC, 9), dealt([1] * 9, 3), rate=1.0)
    found = classifier_gradient(victim, observation)
    returned = {name: value + observation.update[name] for name, value in observation.parameters.items()}

    def probed(one, evidence):
        return probe_classifier(victim, one, evidence, generator=torch.Generator().manual_seed(1), probes=40)

    first, last = (
        probed(replace(observation, parameters=weights), replace(found, steps=1))
        for weights in (observation.parameters, returned)
    )
    for mixed, start, end in zip(probed(observation, found), first, last, strict=True):
        torch.testing.assert_close(mixed, 2 / 3 * start + 1 / 3 * end, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(first.probabilities, last.probabilities, atol=0.05)


def test_following_the_weights_comes_nearer_than_the_first_weights_alone():
    victim = same_for_all_images()
    errors = []
    for seed in range(12):
        labels = torch.randint(0, 4, (16,), generator=torch.Generator().manual_seed(seed))
        observation, _ = train(victim, tiny.images(SPEC, 16), dealt(labels.tolist(), 4), rate=0.1)
        update = {name: value / 4 for name, value in observation.update.items()}
        alone = replace(observation, update=update, protocol=replace(observation.protocol, local_steps=1))
        truth = torch.bincount(labels, minlength=4)
        errors.append([])
        for one in (observation, alone):
            found = estimate_counts(victim, one, generator=torch.Generator().manual_seed(0), probes=4)
            assert found is not None
            errors[-1].append(float((found.raw - truth).abs().max()))
    follow, first = torch.tensor(errors).T
    assert follow.mean() < first.mean()
    assert follow.max() < 0.5 < first.max(), "every label is right only where the weights are followed"


@pytest.mark.parametrize("method", ["unique", "yin", "llg", "bias-corrected"])
def test_methods_that_need_the_direction_only_take_any_number_of_steps(method):
    victim = constant()
    observation, _ = train(victim, tiny.images(SPEC, 2), dealt([3, 1], 1), rate=1e-3)
    assert recover(method, victim, observation) == [1, 3]
    epochs = replace(observation, protocol=Protocol(name="fedavg", local_epochs=1))
    assert recover(method, victim, epochs) == [1, 3]


def test_llg_white_box_reads_several_steps():
    victim = constant()
    torch.nn.init.zeros_(victim.model[1].weight)
    observation, _ = train(victim, tiny.images(SPEC, 6), dealt([0, 0, 3, 1, 0, 3], 2), rate=1e-3)
    assert recover("llg-white-box", victim, observation) == [0, 0, 0, 1, 3, 3]


@pytest.mark.parametrize("bias", [True, False])
def test_idlg_is_right_for_one_image_seen_again_and_again(bias):
    torch.manual_seed(5)
    victim = tiny.victim(tiny.mlp(SPEC, bias=bias), SPEC)
    for label in range(4):
        observation, _ = train(victim, tiny.images(SPEC, 1), [[(0, label)]] * 5)
        assert observation.batch_size == 1
        assert recover("idlg", victim, observation) == [label]
        unknown = replace(observation, protocol=Protocol(name="fedavg", local_epochs=5))
        assert recover("idlg", victim, unknown) == [label]


@pytest.mark.parametrize("method", ["counts", "llg-white-box"])
def test_epochs_of_unknown_length_hide_the_scale(method):
    victim = constant()
    observation, _ = train(victim, tiny.images(SPEC, 4), dealt([0, 1, 1, 2], 2))
    epochs = replace(observation, protocol=Protocol(name="fedavg", local_epochs=1, learning_rate=RATE))
    with pytest.raises(ValueError, match="the images of one local step were not announced"):
        recover(method, victim, epochs)
    with pytest.raises(ValueError, match="the learning rate was not announced"):
        recover(method, victim, replace(observation, protocol=Protocol(local_steps=2)))


@pytest.mark.parametrize("method", LABEL_RECOVERY)
def test_steps_that_cannot_be_are_named(method):
    victim = constant()
    observation, _ = train(victim, tiny.images(SPEC, 4), dealt([0, 1, 1, 2], 2))
    with pytest.raises(ValueError, match="1 or more local steps, the protocol announces 0"):
        recover(method, victim, replace(observation, protocol=Protocol(local_steps=0, learning_rate=RATE)))
    with pytest.raises(ValueError, match="1 or more local epochs, the protocol announces -1"):
        recover(method, victim, replace(observation, protocol=Protocol(local_epochs=-1)))
    for rate in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="positive learning rate"):
            recover(method, victim, replace(observation, protocol=Protocol(local_steps=2, learning_rate=rate)))
