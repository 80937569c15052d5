"""Three protocols of batch normalisation: by the batch, by buffers that were sent, by buffers that were withheld."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.attacks import GradientMatching
from attacker.attacks.best_match import Contest
from attacker.gradients.client_mode import as_trained, uses_batch_statistics
from attacker.gradients.trace import trace
from attacker.victim import Victim
from fl_precode import Observation, Protocol
from fl_precode.local_training import batch_gradient, set_training
from tests.attacker import tiny

SPEC = tiny.inputs()
BATCH, BUFFERS, SILENT = Protocol(batch_norm="batch"), Protocol(batch_norm="buffers"), Protocol()


def federation(protocol: Protocol, *, images: int = 2) -> tuple[Victim, torch.Tensor, Observation]:
    """What a client of the reference federation sends, with statistics unlike those of its batch."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(SPEC.channels, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 4)
    ).double()
    model[1].running_mean.uniform_(-0.5, 0.5)
    model[1].running_var.uniform_(0.5, 2.0)
    parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    x = tiny.images(SPEC, images)
    update, _ = batch_gradient(model, (x, torch.arange(images)), batch_norm=protocol.batch_norm or "batch")
    observation = Observation(
        parameters=parameters, buffers=buffers, update=update, kind="gradient", batch_size=images, protocol=protocol,
        round=1, node="1",
    )  # fmt: skip
    return Victim(model=model, inputs=SPEC), x, observation


def distance_at(victim: Victim, observation: Observation, x: torch.Tensor) -> float:
    """Of the true images, as an attack measures it."""
    contest = Contest(victim, trace(victim), observation)
    return contest._distance(x, torch.arange(len(x)))


@pytest.mark.parametrize("protocol", [BATCH, BUFFERS, SILENT], ids=["batch", "buffers", "silent"])
def test_the_true_images_match_under_the_protocol_that_clients_follow(protocol):
    victim, x, observation = federation(protocol)
    assert distance_at(victim, observation, x) < 1e-12
    other = BATCH if protocol is BUFFERS else BUFFERS
    assert distance_at(victim, replace(observation, protocol=other), x) > 1e-3


@pytest.mark.parametrize("protocol", [BATCH, BUFFERS], ids=["batch", "buffers"])
def test_each_protocol_is_attacked(protocol):
    victim, x, observation = federation(protocol, images=1)
    attack = GradientMatching().with_options(iterations=400, total_variation=0.0, restarts=4)
    losses = {}
    for told in (BATCH, BUFFERS):
        (found,) = attack(
            victim,
            [replace(observation, protocol=told)],
            generator=torch.Generator().manual_seed(0),
            labels=[torch.tensor([0])],
        )
        losses[told.batch_norm] = found.matching_loss
    wrong = "buffers" if protocol is BATCH else "batch"
    assert losses[protocol.batch_norm] < 0.1 * losses[wrong]


def test_withheld_buffers_are_estimated_by_the_candidates_own_statistics():
    victim, x, observation = federation(BUFFERS)
    withheld = replace(observation, buffers={})
    assert not uses_batch_statistics(victim, observation)
    assert uses_batch_statistics(victim, withheld)
    assert distance_at(victim, withheld, x) == distance_at(victim, replace(observation, protocol=BATCH), x)
    (found,) = GradientMatching().with_options(iterations=5)(
        victim, [withheld], generator=torch.Generator().manual_seed(0), labels=[torch.arange(2)]
    )
    assert found.inputs is not None


def test_observations_are_attacked_as_their_own_clients_trained():
    victim, _, by_buffers = federation(BUFFERS, images=1)
    _, _, by_batch = federation(BATCH, images=1)
    first, second = as_trained(victim, [by_batch, by_buffers])
    assert (first.victim, first.indices) == (victim, [1])
    assert second.indices == [0]
    assert second.known is victim
    assert not second.observations[0].buffers
    assert second.sent == [by_batch]
    attack = GradientMatching().with_options(iterations=10)
    labels = [torch.tensor([0])] * 2
    both = attack(victim, [by_batch, by_buffers], generator=torch.Generator().manual_seed(0), labels=labels)
    (alone,) = attack(victim, [by_batch], generator=torch.Generator().manual_seed(0), labels=labels[:1])
    torch.testing.assert_close(both[0].inputs, alone.inputs, atol=1e-9, rtol=0)
    assert both[1].matching_loss != both[0].matching_loss


def test_models_without_running_statistics_are_left_as_they_are():
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), tiny.mlp(SPEC))
    victim = tiny.victim(model, SPEC)
    assert not uses_batch_statistics(victim, tiny.observe(victim, tiny.images(SPEC, 2), [0, 1]))


def test_clients_leave_the_buffers_alone_when_they_normalise_by_them():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())
    set_training(model, "buffers")
    assert (model[0].training, model[1].training) == (False, True)
    set_training(model, "batch")
    assert model[0].training
