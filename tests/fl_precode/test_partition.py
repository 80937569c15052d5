"""Partitions and the schedule of batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_precode.data.partition import SCHEMES, partition
from fl_precode.data.schedule import local_batches

LABELS = np.arange(200) % 5


def deal(**options):
    return partition(LABELS, **{"num_clients": 4, "scheme": "iid", "seed": 0, "classes_per_client": 2, **options})


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from(SCHEMES), clients=st.integers(3, 12), seed=st.integers(0, 1000),
    alpha=st.floats(0.5, 50), per_client=st.integers(2, 5),
)  # fmt: skip
def test_every_sample_goes_to_exactly_one_client_and_nobody_is_empty(scheme, clients, seed, alpha, per_client):
    options = {"num_clients": clients, "seed": seed, "dirichlet_alpha": alpha, "classes_per_client": per_client}
    parts = deal(scheme=scheme, **options)
    assert len(parts) == clients
    assert min(map(len, parts)) > 0
    assert sorted(np.concatenate(parts)) == list(range(200))
    for part, again in zip(parts, deal(scheme=scheme, **options), strict=True):
        assert (np.diff(part) > 0).all()
        assert np.array_equal(part, again)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_seed_changes_the_partition(scheme):
    pairs = zip(deal(scheme=scheme, seed=0), deal(scheme=scheme, seed=1), strict=True)
    assert any(not np.array_equal(*pair) for pair in pairs)


def test_small_alpha_is_skewed_and_large_alpha_is_even():
    def skew(alpha):
        parts = deal(scheme="dirichlet", dirichlet_alpha=alpha)
        return np.mean([np.bincount(LABELS[part], minlength=5).max() / len(part) for part in parts])

    assert skew(0.2) > skew(100) + 0.2


@pytest.mark.parametrize("per_client", [2, 3, 5])
def test_pathological_clients_hold_that_many_classes(per_client):
    parts = deal(scheme="pathological", num_clients=10, classes_per_client=per_client)
    assert {len(np.unique(LABELS[part])) for part in parts} == {per_client}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_clients": 201}, "fewer clients or a larger data set"),
        ({"num_clients": 0}, "between 1 and 200"),
        ({"scheme": "fair"}, "iid, dirichlet, pathological"),
        ({"scheme": "dirichlet", "dirichlet_alpha": 0.001, "num_clients": 50}, "larger dirichlet-alpha, fewer clients"),
        ({"scheme": "dirichlet", "dirichlet_alpha": 0}, "positive"),
        ({"scheme": "dirichlet", "dirichlet_alpha": float("inf")}, "positive"),
        ({"scheme": "pathological", "classes_per_client": 6}, "between 1 and 5"),
        ({"scheme": "pathological", "classes_per_client": 1}, "at least 5 clients or 2 classes per client"),
        ({"scheme": "pathological", "classes_per_client": 5, "num_clients": 50}, "fewer clients or fewer classes"),
    ],
)
def test_what_cannot_be_dealt_says_what_to_change(options, words):
    with pytest.raises(ValueError, match=words):
        deal(**options)


def test_labels_of_another_form_are_refused():
    with pytest.raises(ValueError, match="one label"):
        partition(LABELS[:, None], num_clients=2, scheme="iid", seed=0)


def batches(**options):
    return local_batches(np.arange(10, 33), **{"seed": 0, "partition_id": 1, "round": 1, "batch_size": 4, **options})


def test_fedsgd_takes_one_batch():
    (only,) = batches()
    assert len(only) == len(set(only)) == 4


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(1, 30), size=st.integers(1, 40))
def test_local_steps_are_that_many_whole_batches(steps, size):
    got = batches(local_steps=steps, batch_size=size)
    assert [len(batch) for batch in got] == [min(size, 23)] * steps
    assert all(len(set(batch)) == len(batch) and set(batch) <= set(range(10, 33)) for batch in got)


@settings(max_examples=30, deadline=None)
@given(epochs=st.integers(1, 4), size=st.integers(1, 40))
def test_local_epochs_are_whole_passes(epochs, size):
    got = np.concatenate(batches(local_epochs=epochs, batch_size=size)).reshape(epochs, 23)
    assert all(sorted(one) == list(range(10, 33)) for one in got)


def test_seed_client_and_round_change_the_batch_and_equal_ones_do_not():
    def drawn(**options):
        return tuple(np.concatenate(batches(local_epochs=1, **options)))

    different = [drawn(), drawn(seed=1), drawn(partition_id=2), drawn(round=2)]
    assert len(set(different)) == 4
    assert drawn() == drawn()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"local_steps": 1, "local_epochs": 1}, "both"),
        ({"batch_size": 0}, "positive batch size"),
        ({"local_steps": -1}, "-1"),
    ],
)
def test_contradictions_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        batches(**options)


def test_a_client_without_samples_is_refused():
    with pytest.raises(ValueError, match="expected samples"):
        local_batches(np.array([], dtype=int), seed=0, partition_id=0, round=1, batch_size=1)
