"""What is found for one victim does not depend on which others are attacked beside it."""

from __future__ import annotations

import pytest
import torch

from attacker.attacks.base import Attack
from attacker.attacks.randomness import derived
from attacker.attacks.registry import build_attack
from attacker.audit.execution import attack_job
from fl_precode.tape import Tape
from tests.attacker import tiny
from tests.attacker.audits import audit_tape
from tests.attacker.members import convolutions, observations, victim_of
from tests.attacker.taped_federation import tape_federation

SEARCH = "inverting-gradients:iterations=20,restarts=2"


def by_node(record):
    return {row.node: row for row in record.results}


@pytest.mark.parametrize(("model", "defence"), [("mlp", "precode"), ("lenet:activation=relu", "noise:std=0.01")])
def test_an_audit_of_1_of_3_and_of_8_victims_says_the_same_of_each(tmp_path, model, defence):
    tape = tape_federation(tmp_path / "run", model=model, defence=defence, clients=8, rounds=1).tape
    audits = [
        by_node(audit_tape(tape, out=tmp_path / str(count), attacks=[SEARCH], victims=count)) for count in (1, 3, 8)
    ]
    largest = audits[-1]
    assert [len(one) for one in audits] == [1, 3, 8]
    for rows in audits:
        for node, row in rows.items():
            # Sums are rounded in another order where more victims share a product, which a search carries on.
            assert row.ssim == pytest.approx(largest[node].ssim, abs=2e-3)
            assert row.matching_loss == pytest.approx(largest[node].matching_loss, rel=1e-2)


def test_out_of_memory_and_attacked_in_halves_it_is_the_same(tmp_path, monkeypatch):
    tape = tape_federation(tmp_path / "run", model="mlp", clients=4, rounds=1).tape
    whole = by_node(audit_tape(tape, out=tmp_path / "whole", attacks=[SEARCH], victims=4))
    attack, refused = Attack.__call__, []

    def cramped(self, victim, seen, **more):
        if len(seen) > 1:
            refused.append(len(seen))
            raise MemoryError("no memory for more than one update")
        return attack(self, victim, seen, **more)

    monkeypatch.setattr(Attack, "__call__", cramped)
    halved = by_node(audit_tape(tape, out=tmp_path / "halved", attacks=[SEARCH], victims=4))
    assert refused == [4, 2, 2]
    assert {node: row.ssim for node, row in halved.items()} == pytest.approx(
        {node: row.ssim for node, row in whole.items()}, abs=2e-3
    )


@pytest.mark.parametrize(
    "spec", [SEARCH, "dlg:iterations=20", "then-refine:iterations=20,steps=1", "spear", "portfolio"]
)
def test_an_observation_alone_and_among_others_starts_alike(spec):
    victim = victim_of(tiny.mlp if spec == "spear" else convolutions)
    _, seen = observations(victim, 3)
    spec = f"{spec}:iterations=20" if spec == "portfolio" else spec
    together = build_attack(spec)(victim, seen, generator=torch.Generator().manual_seed(2))
    for index, own in enumerate(derived(torch.Generator().manual_seed(2), 3)):
        (alone,) = build_attack(spec)(victim, [seen[index]], generator=[own])
        assert alone.outcome == together[index].outcome
        assert alone.method == together[index].method
        if alone.inputs is not None:
            assert torch.allclose(alone.inputs, together[index].inputs, atol=1e-2)


def test_one_generator_too_few_is_said():
    victim = victim_of(convolutions)
    _, seen = observations(victim, 2)
    with pytest.raises(ValueError, match="a generator for each of 2 observations"):
        build_attack(SEARCH)(victim, seen, generator=[torch.Generator()])


def test_two_updates_of_a_chunk_draw_apart(tmp_path, monkeypatch):
    tape = tape_federation(tmp_path / "run", clients=2, rounds=1).tape
    entries = Tape(tape).entries
    given = []
    attack = Attack.__call__

    def watched(self, victim, seen, *, generator, **more):
        given.extend(one.initial_seed() for one in generator)
        return attack(self, victim, seen, generator=generator, **more)

    monkeypatch.setattr(Attack, "__call__", watched)
    targets = tuple(
        attack_job.Target(file=one.file, round=one.round, node=one.node, identity=one.node, batch_size=1)
        for one in entries
    )
    for some in (targets, targets[:1], targets[1:]):
        attack_job.run_chunk(
            attack_job.Chunk(
                id="c",
                federation="f",
                attack=SEARCH,
                site=attack_job.Site(tape=str(tape)),
                targets=some,
                seed=3,
                granted=(),
            )
        )
    assert given[:2] == given[2:]
    assert given[0] != given[1]
