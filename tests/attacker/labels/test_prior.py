"""The guess at labels by class frequencies alone, against all batches that there are."""

from __future__ import annotations

from itertools import product

import pytest

from attacker.labels.prior import chance_of_counts, in_common, likeliest_counts

FREQUENCIES = [(0.74, 0.26), (0.5, 0.3, 0.2), (0.25, 0.25, 0.25, 0.25), (1.0, 0.0), (0.05, 0.9, 0.05)]


def batches(classes, images):
    return [counts for counts in product(range(images + 1), repeat=classes) if sum(counts) == images]


@pytest.mark.parametrize("frequencies", FREQUENCIES)
@pytest.mark.parametrize("images", [0, 1, 3, 8])
def test_no_batch_is_likelier_and_all_chances_make_one(frequencies, images):
    chances = {counts: chance_of_counts(counts, frequencies) for counts in batches(len(frequencies), images)}
    assert sum(chances.values()) == pytest.approx(1)
    guess = tuple(likeliest_counts(frequencies, images))
    assert chances[guess] == pytest.approx(max(chances.values()))


def test_labels_in_common_are_those_of_sorted_lists():
    assert in_common([2, 0, 2], [1, 1, 2]) == 3
    assert in_common([0, 0], [3, 1]) == 0


def test_a_large_batch_has_a_guess_at_once():
    counts = likeliest_counts([0.741, 0.259], 1177)
    assert counts == [872, 305]
    assert 0 < chance_of_counts(counts, [0.741, 0.259]) < 0.05
