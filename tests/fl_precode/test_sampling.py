"""Which updates a tape keeps: each kind of sampling changes what is kept, and every update is counted."""

from __future__ import annotations

import logging

import pytest

from fl_precode.tape.sampling import Candidate, Sampler, Sampling

NODES = [str(7_000_000_000 + node) for node in range(20)]


def candidates(nodes=NODES, size=100):
    return [Candidate(node=node, bytes=size) for node in nodes]


def kept(spec, *, rounds=1, nodes=NODES, size=100):
    """Nodes that are kept, by round."""
    sampler, written, found = Sampler(Sampling.parse(spec)), 0, []
    for number in range(1, rounds + 1):
        chosen = sampler.choose(number, candidates(nodes, size), written=written)
        written += size * sum(chosen)
        found.append([node for node, wanted in zip(nodes, chosen, strict=True) if wanted])
    return found


@pytest.mark.parametrize(
    ("spec", "each_round"),
    [
        ("every:k=1", [20, 20]),
        ("every:k=3", [7, 7]),  # numbers 0, 3, ... 18 and 21, ... 39 of the run
        ("every:k=1000", [1, 0]),
        ("reservoir:n=5", [5, 5]),
        ("reservoir:n=50", [20, 20]),
        ("size:megabytes=0.0025", [20, 5]),
        ("reservoir:n=5+size:megabytes=0.0007", [5, 2]),
        ("every:k=2 + size:megabytes=1e-3", [10, 0]),
    ],
)
def test_each_kind_keeps_as_many_as_it_says(spec, each_round):
    assert [len(one) for one in kept(spec, rounds=2)] == each_round


def test_every_kth_is_counted_through_the_run():
    assert kept("every:k=3", rounds=2) == [NODES[::3], NODES[1::3]]


def test_a_reservoir_is_the_same_in_any_order_and_another_with_another_seed_or_round():
    first, second = kept("reservoir:n=5", rounds=2)
    assert first != second
    (reversed_order,) = kept("reservoir:n=5", nodes=NODES[::-1])
    assert set(reversed_order) == set(first)
    assert kept("reservoir:n=5,seed=1")[0] != first
    assert kept("reservoir:n=5,seed=0")[0] == first


def test_a_reservoir_is_as_likely_to_keep_one_client_as_any_other():
    rounds = 2_000
    counts = dict.fromkeys(NODES, 0)
    for nodes in kept("reservoir:n=5", rounds=rounds):
        for node in nodes:
            counts[node] += 1
    expected, deviation = rounds / 4, (rounds * 0.25 * 0.75) ** 0.5
    assert all(abs(count - expected) < 4.5 * deviation for count in counts.values())


def test_replies_that_come_in_portions_make_the_same_reservoir():
    (whole,) = kept("reservoir:n=5")
    sampler, found = Sampler(Sampling.parse("reservoir:n=5")), []
    for start in range(0, 20, 4):
        portion = NODES[start : start + 4]
        chosen = sampler.choose(1, candidates(portion), written=0, outstanding=NODES[start + 4 :])
        found += [node for node, wanted in zip(portion, chosen, strict=True) if wanted]
    assert found == whole


def test_a_full_tape_says_so_once_and_keeps_nothing_more_not_even_what_would_fit(caplog):
    sampler = Sampler(Sampling.parse("size:megabytes=0.001"))
    sizes = [400, 400, 400, 10]
    with caplog.at_level(logging.WARNING):
        chosen = sampler.choose(1, [Candidate(node="1", bytes=size) for size in sizes], written=0)
        assert not sampler.has_room(1)
    assert chosen == [True, True, False, False]
    assert [one.getMessage() for one in caplog.records] == [
        "the tape has reached its size (size:megabytes=0.001); no further update is kept, and all are counted"
    ]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("some", "no sampling of updates is called 'some'; expected every:k=10, reservoir"),
        ("", "expected a spec of the form"),
        ("every", "expected k to be a whole number of 1 or more, got 'none'; for example every:k=10"),
        ("every:k=0", "expected k to be a whole number of 1 or more, got '0'"),
        ("every:k=2.5", "expected k to be a whole number, got '2.5'"),
        ("every:n=2", "'every' has no option 'n'; it has k"),
        ("reservoir:seed=3", "expected n to be a whole number of 1 or more, got 'none'"),
        ("reservoir:n=-4", "expected n to be a whole number of 1 or more, got '-4'"),
        ("reservoir:n=4,seed=-1", "expected seed to be a whole number of 0 or more, got '-1'"),
        ("size", "expected the largest tape in megabytes, above 0, such as size:megabytes=500, got 'none'"),
        ("size:megabytes=nan", "above 0"),
        ("size:megabytes=inf", "above 0"),
        ("size:bytes=5", "'size' has no option 'bytes'; it has megabytes"),
        ("every:k=2+reservoir:n=3", "expected one of every and reservoir"),
        ("size:megabytes=1+size:megabytes=2", "a size at most once"),
    ],
)
def test_what_is_no_sampling_is_refused_with_what_was_expected(spec, words):
    with pytest.raises(ValueError, match="^") as caught:
        Sampling.parse(spec)
    assert words in str(caught.value)
