"""Single images analysed: by one process or several, with the same figures."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest
import torch

from attacker.audit import leakage_summary
from attacker.audit.leakage_images import LeakingImage, leaks_of
from attacker.audit.leakage_summary import leakage_summary as summarise
from attacker.audit.truth import Truth
from tests.attacker import tiny

SPEC = tiny.inputs()


def images(model, *, defence="noise:std=0.001", count=3):
    victim = tiny.victim(model, SPEC)
    return [
        LeakingImage(
            victim=victim,
            defence=defence,
            parameters=dict(model.named_parameters()),
            buffers={},
            image=SPEC.denormalise(tiny.images(SPEC, 1, seed=number)),
            label=torch.tensor([number % 3]),
            seed=number,
        )
        for number in range(count)
    ]


class Elsewhere(LeakingImage):
    """Refuses to be looked at in the process that the tests run in."""

    def generator(self):
        assert multiprocessing.parent_process() is not None
        return super().generator()


def test_other_processes_find_the_same():
    some = images(tiny.mlp(SPEC))
    here = leaks_of(some)
    assert all(one is not None and one.influence > 0 for one in here)
    away = [Elsewhere(**vars(one)) for one in some]
    assert leaks_of(away, processes=2) == here
    with pytest.raises(AssertionError):
        leaks_of(away)


def test_noise_is_that_of_the_seed():
    model = tiny.mlp(SPEC)
    (one, _), (again, two) = leaks_of(images(model, count=2)), leaks_of(images(model, count=2))
    (other,) = leaks_of([replace(images(model)[0], seed=7)])
    assert one == again
    assert (other.rank, other.unit_rmse) == (one.rank, one.unit_rmse)
    assert len({one.influence, two.influence, other.influence}) == 3


def test_a_model_that_does_not_travel_is_analysed_here():
    class Local(torch.nn.Sequential):  # of a notebook's cell, say
        pass

    model = tiny.mlp(SPEC)
    assert leaks_of(images(Local(model)), processes=2) == leaks_of(images(torch.nn.Sequential(model)))


@pytest.mark.parametrize("little", [0.0, 1e12])
def test_a_summary_starts_processes_only_where_there_is_work_for_them(monkeypatch, little):
    asked = []

    def watched(some, *, processes):
        asked.append(processes)
        return leaks_of(some)

    monkeypatch.setattr(leakage_summary, "leaks_of", watched)
    monkeypatch.setattr(leakage_summary, "LITTLE_WORK", little)
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    image = tiny.images(SPEC, 1, seed=0)
    truth = Truth(images=SPEC.denormalise(image), labels=torch.tensor([0]))
    summarise("f1", victim, "none", [tiny.observe(victim, image, [0])], [truth], [], processes=2)
    assert asked == [2 if little == 0 else 1]
