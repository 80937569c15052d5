"""What is withheld is gone, what an attack needs and has not refuses it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.attacks.registry import ATTACKS
from attacker.audit.threat_model import KINDS, USUAL, Knowledge
from fl_precode import Observation, Protocol


def observation() -> Observation:
    weight = torch.ones(2)
    return Observation(
        parameters={"w": weight}, buffers={"running_mean": weight}, update={"w": weight}, kind="gradient",
        batch_size=3, protocol=Protocol(learning_rate=0.1, batch_size=3, defence="precode", local_steps=1),
        round=1, node="1",
    )  # fmt: skip


def test_what_is_granted_stays_and_the_defence_is_what_the_auditor_says():
    seen = observation()
    assert Knowledge().of(seen, "precode") == seen
    assert Knowledge().of(seen, "cvb").protocol.defence == "cvb"
    assert Knowledge().of(seen, "unknown").protocol.defence is None


@pytest.mark.parametrize(
    ("kind", "look"),
    [
        ("batch-size", lambda one: (one.batch_size, one.protocol.batch_size)),
        ("buffers", lambda one: (one.buffers.get("running_mean"),)),
        ("defence", lambda one: (one.protocol.defence,)),
        ("learning-rate", lambda one: (one.protocol.learning_rate,)),
    ],
)
def test_what_is_withheld_is_gone_and_nothing_else(kind, look):
    seen, kept = observation(), Knowledge.usual(withhold=[kind])
    found = kept.of(seen, "precode")
    assert all(value is None for value in look(found))
    assert all(value is not None for value in look(seen))
    everything = replace(found, batch_size=3, buffers=seen.buffers, protocol=seen.protocol)
    assert everything == seen
    assert kind in kept.record().withheld


def test_the_record_lists_every_kind_once_and_the_name_follows_the_taxonomy():
    threat = Knowledge().record()
    assert [*threat.granted, *threat.withheld].__len__() == len(KINDS)
    assert set(threat.granted) == USUAL
    assert threat.withheld == ["labels", "auxiliary-data"]
    assert threat.name == "Parameter-Aware Eavesdropper"
    assert Knowledge.usual(know=["labels"]).name.endswith("labels granted")
    assert Knowledge(frozenset({"buffers"})).name == "Informed Eavesdropper"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Knowledge.usual(know=["label"]), "there is no kind of knowledge 'label'; expected some of labels"),
        (lambda: Knowledge.usual(know=["labels"], withhold=["labels"]), "granted or withheld, not both: labels"),
        (lambda: Knowledge.usual(know=["auxiliary-data"]), "no attack here has a use for images of its own"),
    ],
)
def test_contradictions_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_attacks_need_kinds_that_exist_and_say_what_is_missing():
    for name, entry in ATTACKS.items():
        assert entry.needs <= KINDS.keys(), name
    assert Knowledge.usual(withhold=["defence"]).missing(ATTACKS["ignore"].needs) == ["defence"]
    assert Knowledge().missing({"labels", "auxiliary-data"}) == ["auxiliary-data", "labels"]
