"""What an audit measures beside attacking: randomness of the model, withheld buffers, steps, the tape's identity."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacker.audit.inputs.update_facts import tape_identity, update_facts
from fl_precode import Protocol
from fl_precode.defences.registry import gradient_defence
from fl_precode.tape import Tape
from tests.attacker import tiny
from tests.attacker.audits import audit_tape
from tests.attacker.taped_federation import tape_federation

SPEC = tiny.inputs()


class Jittery(nn.Module):
    """Somebody's own random model, which no list of ours knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 4)

    def forward(self, x):
        return self.fc(x.flatten(1) + 0.1 * torch.randn(len(x), 36, dtype=x.dtype))


def convolutional(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *layers, nn.Flatten(), nn.Linear(64, 4))


def of(model, *, buffers=True, **protocol):
    victim = tiny.victim(model, SPEC)
    seen = tiny.observe(victim, tiny.images(SPEC, 2), [0, 1])
    named = {name: value.clone() for name, value in model.named_buffers()} if buffers else {}
    return update_facts(victim, [replace(seen, buffers=named, protocol=replace(seen.protocol, **protocol))])


@pytest.mark.parametrize(
    ("build", "random"),
    [
        (lambda: tiny.mlp(SPEC), False),
        (lambda: tiny.mlp(SPEC, bottleneck=True), True),
        (Jittery, True),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 4)), True),
        (lambda: convolutional(nn.BatchNorm2d(4)), False),
    ],
)
def test_whether_the_model_is_random_is_measured(build, random):
    assert of(build(), batch_norm="batch").random is random


def test_asking_leaves_the_generator_and_the_model_as_they_are():
    model = Jittery().double()
    victim = tiny.victim(model, SPEC)
    seen = tiny.observe(victim, tiny.images(SPEC, 2), [0, 1])
    before, mode = torch.get_rng_state(), [module.training for module in model.modules()]
    update_facts(victim, [seen])
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == mode
    assert all(value.grad is None for value in model.parameters())


def test_a_model_that_cannot_be_asked_is_not_known():
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    other = tiny.victim(tiny.mlp(SPEC, hidden=7), SPEC)
    assert update_facts(other, [tiny.observe(victim, tiny.images(SPEC, 1), [0])]).random is None


@pytest.mark.parametrize(
    ("norm", "sent", "announced", "withheld"),
    [
        (True, True, "buffers", False),
        (True, False, "buffers", True),
        (True, False, None, True),
        (True, False, "batch", False),
        (False, False, "buffers", False),
    ],
)
def test_withheld_buffers_count_where_clients_normalise_by_them(norm, sent, announced, withheld):
    model = convolutional(*[nn.BatchNorm2d(4)] * norm)
    assert of(model, buffers=sent, batch_norm=announced).buffers_withheld is withheld


def test_local_steps():
    assert of(tiny.mlp(SPEC)).steps == 1
    victim = tiny.victim(tiny.mlp(SPEC), SPEC)
    seen = tiny.observe(victim, tiny.images(SPEC, 2), [0, 1], learning_rate=0.1)
    several = replace(seen, protocol=Protocol(local_steps=5))
    assert update_facts(victim, [seen, several]).steps == 5
    assert update_facts(victim, [seen, replace(seen, protocol=Protocol())]).steps is None


def test_the_tapes_identity_follows_its_content(tmp_path):
    one, other = (tape_federation(tmp_path / name, rounds=1, seed=seed) for name, seed in (("a", 5), ("b", 6)))
    first, second = Tape(one.tape), Tape(other.tape)
    known = tape_identity(first)
    assert known == tape_identity(Tape(one.tape)) != tape_identity(second)
    record = audit_tape(one.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=1)
    assert record.federations[0].tape_identity == known
    assert record.federations[0].facts == update_facts(tiny.victim(nn.Identity(), SPEC), []).model_copy(
        update={"random": False, "steps": 1}
    )
    with (one.tape / "manifest.jsonl").open("ab") as manifest:
        manifest.write(b"\n")
    assert tape_identity(Tape(one.tape)) != known
    assert first.fingerprint(known.manifest_bytes) == (known.sha256, known.manifest_bytes)


@pytest.mark.parametrize(
    ("defence", "names"),
    [
        ("noise:std=0.02", {"cosine", "l2", "l1", "l2-relative", "l1-relative"}),
        ("laplace:std=0.02", {"cosine", "l2", "l1", "l2-relative", "l1-relative"}),
        ("clip:max_norm=0.5+noise:std=0.02", {"cosine"}),
        ("noise:std=0.02+clip:max_norm=0.5", set()),
        ("noise:std=0.02+prune:share=0.5", set()),
        ("precode+noise:std=0.02", set()),
        ("none", set()),
        ("unknown", set()),
    ],
)
def test_how_far_announced_noise_keeps_the_true_images_is_what_is_measured_on_them(defence, names):
    inputs = tiny.inputs(3, 16)
    victim = tiny.victim(tiny.mlp(inputs), inputs)
    seen = tiny.observe(victim, tiny.images(inputs, 2), [0, 1])
    chain = gradient_defence(defence) if defence != "unknown" else None
    update = seen.update if chain is None else chain(seen.update, generator=torch.Generator().manual_seed(1))
    noisy = replace(seen, update=update, protocol=replace(seen.protocol, defence=defence))
    floors = update_facts(victim, [noisy]).noise_floors
    assert set(floors) == names
    true, sent = (torch.cat([one[name].flatten() for name in sorted(one)]) for one in (seen.update, update))
    measured = {
        "cosine": 1 - torch.nn.functional.cosine_similarity(true, sent, dim=0),
        "l2": (true - sent).square().sum(),
        "l1": (true - sent).abs().sum(),
        "l2-relative": (true - sent).square().sum() / sent.square().sum(),
        "l1-relative": (true - sent).abs().sum() / sent.abs().sum(),
    }
    for name, floor in floors.items():
        assert floor == pytest.approx(float(measured[name]), rel=0.1)
