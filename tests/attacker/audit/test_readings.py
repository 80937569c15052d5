"""What updates say that no search can answer: figures that hold, and none where none is certain."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.planning.readings import fewest_of_each_class, readings
from attacker.audit.settings import AuditSettings
from attacker.victim import Victim
from fl_precode.local_training import local_training
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol
from tests.attacker.taped_federation import tape_federation
from tests.slow_models import slow

INPUTS = InputSpec(channels=1, height=8, width=8, classes=4, mean=(0.5,), std=(0.5,))
RATE, STEP = 0.2, 8


def trained(labels, epochs):
    """An update of local epochs in batches of 8, the last smaller, and the victim."""
    torch.manual_seed(0)
    model = slow(INPUTS, 0.0)
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    images = torch.randn(len(labels), *INPUTS.shape)
    order = [part for _ in range(epochs) for part in torch.randperm(len(labels)).split(STEP)]
    local_training(model, [(images[part], labels[part]) for part in order], learning_rate=RATE)
    protocol = Protocol(name="fedavg", local_epochs=epochs, learning_rate=RATE, batch_size=STEP)
    update = {name: one.detach() - before[name] for name, one in model.named_parameters()}
    seen = Observation(
        kind="weights", parameters=before, buffers={}, update=update, batch_size=len(labels), round=1, node="1",
        protocol=protocol,
    )  # fmt: skip
    return Victim(model=slow(INPUTS, 0.0), inputs=INPUTS), seen


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("counts", [(44, 0, 0, 0), (30, 9, 3, 0), (11, 11, 11, 11)])
def test_there_are_never_fewer_images_of_a_class_than_is_said(counts, epochs):
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    victim, seen = trained(labels[torch.randperm(len(labels))], epochs)
    at_least, why_not = fewest_of_each_class(victim, seen)
    assert why_not == ""
    assert all(said <= there for said, there in zip(at_least, counts, strict=True))
    if counts[0] >= 30 and epochs == 1:
        assert at_least[0] > 0, "a class that rules the batch shows"


def test_what_is_not_certain_is_not_said():
    victim, seen = trained(torch.arange(4).repeat(8), 1)
    for protocol in (replace(seen.protocol, momentum=0.9), replace(seen.protocol, learning_rate=None)):
        at_least, why_not = fewest_of_each_class(victim, replace(seen, protocol=protocol))
        assert at_least == []
        assert why_not


def test_size_and_length_are_those_of_the_update(tmp_path):
    local = {"local_epochs": 1, "learning_rate": 0.1}
    tape = tape_federation(tmp_path, rounds=1, batch_size=900, local=local).tape
    settings = AuditSettings(attacks=("first-layer",), victims=1)
    (own,) = open_federations([TapeSource(tape=tape)], settings, tmp_path / "controls")
    (one,) = readings(own, settings)
    (seen,) = own.observations()
    assert one.numbers == sum(value.numel() for value in seen.update.values())
    assert one.norm == pytest.approx(
        float(torch.cat([value.flatten() for value in seen.update.values()]).double().norm())
    )
    assert (one.images, one.steps, one.statistics) == (seen.batch_size, 1, 0)
