"""The choice of a method, and that nothing foreign or damaged makes it raise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.gradients.batch_norm import with_batch_statistics
from attacker.labels import LABEL_RECOVERY, best_labels, recover_labels
from attacker.labels.counts import estimate_counts
from attacker.labels.evidence import classifier_gradient
from attacker.labels.probes import probe_classifier
from fl_precode import Protocol
from tests.attacker import tiny
from tests.attacker.sent_back import client, norm_net

SPEC = tiny.inputs()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def best(victim, observation, *, probes=16):
    labels, word = best_labels(victim, observation, generator=generator(), probes=probes)
    return None if labels is None else labels.tolist(), word


def refused(victim, observation, *words):
    labels, reason = best(victim, observation)
    assert labels is None
    for word in words:
        assert word in reason
    return reason


def fresh(build=tiny.mlp, *, seed=0, **options):
    torch.manual_seed(seed)
    return tiny.victim(build(SPEC, **options), SPEC)


def seen(victim, labels, **changes):
    return tiny.observe(victim, tiny.images(SPEC, len(labels)), labels, **changes)


@pytest.mark.parametrize("build", [tiny.mlp, tiny.convnet])
@pytest.mark.parametrize(("labels", "method"), [([2], "idlg"), ([0, 2, 2], "counts"), ([3] * 9 + [0], "counts")])
def test_a_fresh_model_is_read_by_idlg_or_counts(build, labels, method):
    victim = fresh(build)
    assert best(victim, seen(victim, labels)) == (sorted(labels), method)


def test_without_the_scale_bias_corrected_is_next():
    victim = fresh()
    for parameter in victim.model[3].parameters():
        nn.init.zeros_(parameter)  # equal probabilities, which bias-corrected assumes
    step = replace(seen(victim, [0, 2, 2], learning_rate=0.1), protocol=Protocol())
    assert best(victim, step) == ([0, 2, 2], "bias-corrected")
    epochs = replace(step, protocol=Protocol(name="fedavg", local_epochs=2, learning_rate=0.1))
    assert best(victim, epochs) == ([0, 2, 2], "bias-corrected")


@pytest.mark.parametrize(("protocol", "method"), [(None, "llg-white-box"), (Protocol(), "llg")])
def test_without_a_bias_llg_is_used(protocol, method):
    victim = fresh(bias=False)
    step = seen(victim, [0, 2, 2], learning_rate=0.1)
    step = step if protocol is None else replace(step, protocol=protocol)
    assert best(victim, step) == ([0, 2, 2], method)


@pytest.mark.parametrize("labels", [[1], [1, 1, 2]])
def test_features_of_any_sign_without_a_bias_are_a_reason(labels):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.LogSigmoid(), nn.Linear(8, 4, bias=False))
    victim = tiny.victim(model, SPEC)
    if len(labels) == 1:
        assert best(victim, seen(victim, labels)) == (labels, "rows")
    else:
        refused(victim, seen(victim, labels), "no bias", "negative")


def confident():
    """A victim whose answers to random inputs say nothing about its answers to images."""
    victim = fresh()
    with torch.no_grad():
        victim.model[3].bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    return victim


def test_counts_that_contradict_themselves_give_way_where_classes_are_many():
    victim = confident()
    few = with_bias(seen(victim, [0, 0]), [-0.5, 0.3, 0.1, 0.1])
    found = estimate_counts(victim, few, generator=generator())
    assert found is not None
    assert found.contradicts_itself
    assert best(victim, few) == ([0, 0], "bias-corrected")
    assert recover_labels("counts", victim, few, generator=generator()).tolist() == [0, 2]
    many = with_bias(seen(victim, [0] * 8), [-0.5, 0.3, 0.1, 0.1])
    assert best(victim, many)[1] == "counts"


def with_bias(observation, values, name="3.bias"):
    return replace(observation, update={**observation.update, name: torch.tensor(values, dtype=torch.float64)})


def test_the_same_generator_state_gives_the_same_answer_and_another_may_not():
    victim = fresh()
    nn.init.normal_(victim.model[3].weight, std=3.0)
    one = with_bias(seen(victim, [0, 1, 2, 3] * 25), [1e-4, -1e-4, 0.0, 0.0])

    def answer(seed):
        return tuple(best_labels(victim, one, generator=generator(seed), probes=1)[0].tolist())

    assert answer(3) == answer(3)
    assert len({answer(seed) for seed in range(6)}) > 1


def test_what_is_missing_is_the_reason():
    victim = fresh()
    one = seen(victim, [1, 2])
    refused(victim, replace(one, batch_size=None), "batch size", "does not reveal")
    refused(victim, replace(one, kind="weights", protocol=Protocol(local_steps=0)), "1 or more local steps")
    refused(victim, zeros(one), "zero")
    refused(victim, with_bias(one, [float("inf"), 0.0, 0.0, 0.0]), "finite", "3.bias")
    wide = tiny.victim(tiny.mlp(tiny.inputs(classes=5)), SPEC)
    refused(wide, one, "one output for each of 4")
    odd = fresh(hidden=11)
    refused(odd, one, "another model", "(4, 11)", "(4, 12)")


def zeros(observation):
    return replace(observation, update={name: torch.zeros_like(value) for name, value in observation.update.items()})


class Unrunnable(nn.Sequential):
    def forward(self, x):
        raise RuntimeError("expects two inputs")


class NotNumbers(nn.Sequential):
    def forward(self, x):
        return super().forward(x) * float("nan")


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 6), nn.Flatten()), "there is none"),
        (nn.Sequential(nn.Flatten()), "there is none"),
        (Unrunnable(nn.Flatten(), nn.Linear(36, 4)), "RuntimeError: expects two inputs"),
    ],
)
def test_foreign_models_are_a_reason(model, word):
    victim = tiny.victim(model, SPEC)
    one = replace(seen(fresh(), [1, 2]), parameters={}, update={})
    refused(victim, one, word)


def test_a_model_that_answers_random_inputs_with_nan_leaves_the_gradient():
    torch.manual_seed(0)
    victim = tiny.victim(NotNumbers(nn.Flatten(), nn.Linear(36, 4)), SPEC)
    one = replace(seen(fresh(), [1, 2]), **same_shapes(victim))
    one = replace(one, parameters={name: torch.full_like(v, float("nan")) for name, v in one.parameters.items()})
    one = with_bias(one, [0.2, -0.3, -0.3, 0.4], "1.bias")
    assert best(victim, one) == ([1, 2], "bias-corrected")
    with pytest.raises(ValueError, match="answers random inputs with NaN"):
        recover_labels("counts", victim, one, generator=generator())


def same_shapes(victim):
    parameters = {name: value.detach() for name, value in victim.model.named_parameters()}
    return {"parameters": parameters, "update": {name: torch.ones_like(value) for name, value in parameters.items()}}


VALUES = st.floats(allow_nan=False, allow_infinity=False, width=64)


@settings(max_examples=40, deadline=None)
@given(
    bias=st.lists(VALUES, min_size=4, max_size=4), row=st.lists(VALUES, min_size=4, max_size=4), size=st.integers(1, 6)
)
def test_labels_are_classes_and_as_many_as_images_whatever_the_update_says(bias, row, size):
    victim = fresh()
    one = with_bias(seen(victim, [0] * size), bias)
    weight = torch.tensor(row, dtype=torch.float64)[:, None].expand(4, 12)
    one = replace(one, update={**one.update, "3.weight": weight})

    def check(labels):
        assert labels.dtype == torch.int64
        assert labels.tolist() == sorted(labels.tolist())
        assert len(labels) == size
        assert set(labels.tolist()) <= {0, 1, 2, 3}

    for method in LABEL_RECOVERY:
        if (method in ("idlg", "rows") and size > 1) or (method == "yin" and size > 4):
            continue
        found = recover_labels(method, victim, one, generator=generator(), probes=4)
        if found is not None:
            check(found)
    labels, reason = best_labels(victim, one, generator=generator(), probes=4)
    assert reason
    if labels is not None:
        check(labels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rate", [None, 0.1])
def test_updates_in_half_precision(dtype, rate):
    victim = fresh()
    one = seen(victim, [0, 2, 2, 3], learning_rate=rate)
    half = tiny.victim(fresh().model, SPEC, dtype=dtype)
    everything = replace(
        one,
        parameters={name: value.to(dtype) for name, value in one.parameters.items()},
        update={name: value.to(dtype) for name, value in one.update.items()},
    )
    assert best(half, everything) == ([0, 2, 2, 3], "counts")
    compressed = replace(one, update=everything.update)  # sent in half, trained in full
    assert best(victim, compressed) == ([0, 2, 2, 3], "counts")


def test_a_gradient_beyond_half_precision_is_read_all_the_same():
    victim = fresh()
    one = seen(victim, [1])
    # 60000 / 0.1 does not fit float16; the division must come after the cast.
    update = {name: value.to(torch.float16) for name, value in one.update.items()}
    update["3.bias"] = torch.tensor([-2e4, 6e4, -2e4, -2e4], dtype=torch.float16)
    step = replace(one, update=update, kind="weights", protocol=Protocol(local_steps=1, learning_rate=0.1))
    assert best(victim, step) == ([1], "idlg")


def test_probes_are_normalised_by_the_batch_as_the_clients_images_were():
    """Running statistics unlike any batch's, as of an untrained model, would give other probabilities."""
    victim = norm_net()
    x, _, one, _ = client(victim, images=8, batch=8)
    with torch.no_grad():
        true = with_batch_statistics(victim.model)(x).softmax(dim=1).mean(dim=0)

    def off(observation):
        evidence = classifier_gradient(victim, observation)
        probed = probe_classifier(victim, observation, evidence, generator=generator(), probes=64)
        return float((probed.probabilities - true).abs().max())

    by_buffers = replace(one, protocol=replace(one.protocol, batch_norm="buffers"))
    assert off(one) < 0.5 * off(by_buffers)
