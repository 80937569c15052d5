"""Single images analysed: by one process or several, with the same figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.audit.execution.attack_job import Site
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.scoring import leakage_images, leakage_summary
from attacker.audit.scoring.leakage_images import LeakingImage, Origin, leaking_image, leaks_of
from attacker.audit.scoring.leakage_summary import leakage_summary as summarise
from attacker.audit.truth.base import Truth
from tests.attacker import tiny
from tests.attacker.taped_federation import tape_federation

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


@pytest.fixture(scope="module")
def taped(tmp_path_factory):
    """Images of an audit's updates, which other processes find on the tape."""
    tape = tape_federation(tmp_path_factory.mktemp("run"), defence="noise:std=0.001", rounds=1).tape
    subject = open_subject(TapeSource(tape=tape))
    return [
        leaking_image(
            subject.victim,
            subject.defence,
            subject.tape.load(entry),
            subject.truth.truth(entry).images,
            subject.truth.truth(entry).labels,
            seed=number,
            origin=Origin(site=Site(tape=str(tape)), file=entry.file),
        )
        for number, entry in enumerate(subject.tape.entries)
    ]


def test_other_processes_find_the_same(taped, monkeypatch):
    here = leaks_of(taped)
    assert all(one is not None and one.influence > 0 for one in here)

    def refused(_image):
        raise AssertionError("it was to be analysed elsewhere")

    monkeypatch.setattr(leakage_images, "leak_of", refused)
    assert leaks_of(taped, processes=2) == here
    with pytest.raises(AssertionError):
        leaks_of(taped)


@pytest.mark.slow
def test_what_other_processes_do_not_find_is_analysed_here(taped):
    gone = [replace(one, origin=Origin(site=Site(tape="/nowhere"), file="none")) for one in taped]
    assert leaks_of(gone, processes=2) == leaks_of(taped)


def test_noise_is_that_of_the_seed():
    model = tiny.mlp(SPEC)
    (one, _), (again, two) = leaks_of(images(model, count=2)), leaks_of(images(model, count=2))
    (other,) = leaks_of([replace(images(model)[0], seed=7)])
    assert one == again
    assert (other.rank, other.unit_rmse) == (one.rank, one.unit_rmse)
    assert len({one.influence, two.influence, other.influence}) == 3


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
