"""Labels of batches: exact where theory says so, None or a reason where a method cannot know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacker.labels import LABEL_RECOVERY, recover_labels
from fl_precode import Protocol
from tests.attacker import tiny

SPEC = tiny.inputs()
MULTISETS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
ALONE = ("unique", "yin", "llg", "bias-corrected")
BATCHED = tuple(name for name in LABEL_RECOVERY if name not in ("idlg", "rows"))


def constant(build=tiny.mlp, **options):
    """A victim that answers every input alike, with unequal probabilities when it has a bias."""
    torch.manual_seed(3)
    model = build(SPEC, **options)
    last = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.zeros_(last.weight)
    return tiny.victim(model, SPEC)


def recover(method, victim, observation, *, seed=0, probes=8):
    found = recover_labels(method, victim, observation, generator=torch.Generator().manual_seed(seed), probes=probes)
    return None if found is None else found.tolist()


def seen(victim, labels, **changes):
    return tiny.observe(victim, tiny.images(SPEC, len(labels)), labels, **changes)


def with_bias(observation, values, name="3.bias"):
    return replace(observation, update={**observation.update, name: torch.tensor(values, dtype=torch.float64)})


@settings(max_examples=30, deadline=None)
@given(labels=MULTISETS, rate=st.sampled_from([None, 0.1]))
def test_counts_are_exact_when_the_model_answers_all_inputs_alike(labels, rate):
    for victim in (constant(), constant(tiny.convnet), constant(bottleneck=True)):
        assert recover("counts", victim, seen(victim, labels, learning_rate=rate)) == sorted(labels)


@settings(max_examples=30, deadline=None)
@given(labels=MULTISETS, bias=st.booleans())
def test_llg_white_box_is_exact_for_equal_features(labels, bias):
    victim = constant(bias=bias)
    torch.nn.init.zeros_(victim.model[1].weight)  # every image has the same features
    found = recover("llg-white-box", victim, seen(victim, labels))
    balanced = not bias and len({labels.count(label) for label in range(4)}) == 1
    assert found == sorted(labels) or (balanced and found is None)  # balanced labels cancel, but for rounding


@settings(max_examples=20, deadline=None)
@given(labels=st.sets(st.integers(0, 3), min_size=1, max_size=3))
def test_distinct_labels_are_exact_at_equal_probabilities(labels):
    victim = constant(bias=False)
    for method in ("unique", "yin", "llg"):
        assert recover(method, victim, seen(victim, sorted(labels))) == sorted(labels)


@pytest.mark.parametrize("method", ["llg", "bias-corrected", "llg-white-box", "counts"])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_batch_of_one_class(method, count):
    victim = constant()
    assert recover(method, victim, seen(victim, [2] * count)) == [2] * count


@pytest.mark.parametrize("method", BATCHED)
def test_a_batch_of_one_and_one_of_all_classes(method):
    torch.manual_seed(0)
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    assert recover(method, victim, seen(victim, [1])) == [1]
    found = recover(method, victim, seen(victim, [0, 1, 2, 3]), probes=64)
    if method == "unique":
        assert found is None  # no class stands out
    elif method in ("yin", "counts", "llg-white-box"):
        assert found == [0, 1, 2, 3]
    else:
        assert len(found) == 4


@pytest.mark.parametrize("method", LABEL_RECOVERY)
def test_a_gradient_of_zeros_shows_nothing(method):
    victim = constant()
    one = seen(victim, [1])
    assert recover(method, victim, replace(one, update={k: torch.zeros_like(v) for k, v in one.update.items()})) is None


@pytest.mark.parametrize("method", LABEL_RECOVERY)
def test_what_cannot_apply_says_why(method):
    victim = constant()
    one = seen(victim, [1])
    with pytest.raises(ValueError, match="finite"):
        recover(method, victim, with_bias(one, [float("nan"), 0.0, 0.0, 0.0]))
    wide = tiny.victim(tiny.mlp(tiny.inputs(classes=5)), SPEC)
    with pytest.raises(ValueError, match="one output for each of 4"):
        recover(method, wide, one)
    if method != "unique":
        with pytest.raises(ValueError, match="batch size"):
            recover(method, victim, replace(one, batch_size=None))


def test_needs_of_single_methods():
    victim, plain = constant(), constant(bias=False)
    for method in ("counts", "bias-corrected"):
        with pytest.raises(ValueError, match="needs a bias"):
            recover(method, plain, seen(plain, [1]))
    with pytest.raises(ValueError, match="at most once"):
        recover("yin", victim, seen(victim, [0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="one image"):
        recover("idlg", victim, seen(victim, [0, 1]))
    assert recover("unique", victim, seen(victim, [1, 1, 1])) is None
    assert recover("unique", victim, seen(victim, [1, 1, 1], batch_size=None)) == [1]
    for method in ("counts", "llg-white-box"):
        with pytest.raises(ValueError, match="1 or more probes"):
            recover(method, victim, seen(victim, [1]), probes=0)


@pytest.mark.parametrize("method", BATCHED)
def test_one_step_of_sgd_shows_what_the_gradient_shows(method):
    victim, labels = constant(), [2, 3]
    step = seen(victim, labels, learning_rate=0.5)
    assert recover(method, victim, step) == recover(method, victim, seen(victim, labels))
    silent_rate = replace(step, protocol=Protocol())
    if method in ALONE:
        assert recover(method, victim, silent_rate) == recover(method, victim, step)
    else:
        with pytest.raises(ValueError, match="the learning rate was not announced"):
            recover(method, victim, silent_rate)


def test_bias_corrected_takes_the_impact_from_the_chosen_class_only():
    victim = constant()
    one = with_bias(seen(victim, [0] * 5), [-0.6, -0.4, 0.4, 0.6])
    # Impact -0.2: 0 and 1 once each, -0.4 and -0.2 remain; then 0, and 0 or 1 in turn. Elsewhere: 0 four times.
    assert recover("bias-corrected", victim, one) == [0, 0, 0, 1, 1]


def test_counts_depend_on_the_probes_and_never_contradict_the_gradient():
    victim = constant()
    with torch.no_grad():
        victim.model[3].bias.copy_(torch.tensor([0.0, 0.0, 5.0, 0.0]))
    one = seen(victim, [0, 0])
    # n_1 is at least 1.2, although the probes vote for class 2; a claim of 0.04 images may be noise and counts as none.
    assert recover("counts", victim, with_bias(one, [0.6, -0.6, 0.0, 0.0])) == [1, 1]
    assert recover("counts", victim, with_bias(one, [0.02, -0.02, 0.0, 0.0])) == [2, 2]
    assert recover("counts", victim, with_bias(one, [-1.2, -0.6, 0.0, 1.8])) == [0, 2]  # more than certain: noise
    torch.manual_seed(0)
    spread = tiny.victim(tiny.mlp(SPEC), SPEC)
    torch.nn.init.normal_(spread.model[3].weight, std=1.0)
    many = with_bias(seen(spread, [0, 1, 2, 3] * 25), [1e-4, -1e-4, 0.0, 0.0])
    assert len({tuple(recover("counts", spread, many, seed=seed, probes=1)) for seed in range(6)}) > 1


def test_an_unknown_name_is_told_the_known_ones():
    victim = constant()
    with pytest.raises(ValueError, match=r"unknown label recovery 'magic'; there are idlg, rows, unique, yin, llg"):
        recover("magic", victim, seen(victim, [1]))
