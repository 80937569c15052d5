"""No model ends an audit: drawn ones go through plan and audit, and every attack's outcome is in the record."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st

from attacker.attacks import build_attack
from attacker.audit.leakage_summary import leakage_summary
from attacker.audit.run import audit, plan
from attacker.audit.settings import AuditSettings
from attacker.audit.subject import TapeSource
from attacker.audit.truth import Truth
from attacker.victim import Victim
from fl_precode.models import build_model
from fl_precode.tape import TapeHeader, TapeWriter
from tests.attacker import fuzzed_models
from tests.attacker.fuzzed_models import Recipe, build, observation, protocol, recipes, train

SEED = 21
MODEL = "tests.attacker.fuzzed_models:current"
ATTACKS = (
    "first-layer", "layerwise-inversion", "through-bottleneck", "hybrid:steps=1,inner=3",
    "then-refine:steps=1,inner=3,iterations=2", "inverting-gradients:iterations=3", "dlg:iterations=3",
    "see-through-gradients:iterations=3", "idlg:iterations=3", "noise-recovery:iterations=3",
    "noise-restoring:iterations=3", "ignore:iterations=3", "dropout-inversion:iterations=3",
    "defence-matched:iterations=3", "spear:samples=64", "portfolio:iterations=3",
    "inverting-gradients:iterations=3,local_training=surrogate", "inverting-gradients:iterations=3,restarts=2",
)  # fmt: skip
EXAMPLES = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
chosen_attacks = st.lists(st.sampled_from(ATTACKS), min_size=2, max_size=4, unique=True)


def audited(recipe: Recipe, attacks: list[str], folder: Path, *, leaking: bool) -> None:
    """Everything that an audit does with one drawn model; raises where the audit would end."""
    try:
        model = build(recipe)
    except (RuntimeError, ValueError):
        assume(False)  # layers that do not fit the image
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    try:
        sent, pixels, labels = train(recipe, model)
    except (RuntimeError, ValueError):
        assume(False)  # the client itself cannot train it
    seen = observation(recipe, before, sent, model)
    fuzzed_models.CURRENT[:] = [recipe]
    try:
        build_model(MODEL, recipe.inputs, seed=0)
    except ValueError:  # refused in a sentence, before there is an audit
        assume(False)
    if any(value.is_complex() or not value.numel() for value in before.values()):
        for attack in attacks:  # tapes do not hold complex numbers
            (found,) = _attacked(attack, recipe, seen)
            assert found.outcome
    buffers = [name for name in before if name not in dict(model.named_parameters())]
    _on_tape(recipe, before, sent, buffers, attacks, folder)
    if leaking:
        truth = Truth(images=pixels, labels=labels)
        found = leakage_summary("f1", Victim(model=build(recipe), inputs=recipe.inputs), "none", [seen], [truth], [])
        assert found.reason


def _attacked(attack, recipe, seen):
    victim = Victim(model=build(recipe), inputs=recipe.inputs)
    method = build_attack(attack)
    try:
        return method(victim, [seen], generator=torch.Generator().manual_seed(0))
    except ValueError as error:  # an audit records it as the attack's own
        assert "not twice differentiable" in str(error) or "twice differentiable" in str(error), error
        return method(victim, [], generator=torch.Generator()) or [_Failed()]


class _Failed:
    outcome = "failed"


def _on_tape(recipe, before, sent, buffers, attacks, folder):
    header = TapeHeader(
        model=MODEL, defence="none", kind=recipe.kind, protocol=protocol(recipe),
        inputs=recipe.inputs,
    )  # fmt: skip
    writer = TapeWriter(folder / "tape", header)
    aside = [name for name, value in before.items() if not value.is_floating_point()]
    writer.write_round(1, {name: value.numpy() for name, value in before.items()})
    arrays = {name: value.numpy() for name, value in sent.items()}
    writer.write_observation(1, "1", arrays, batch_size=recipe.images, buffers=sorted({*buffers, *aside}))
    if writer.lost:
        return
    source, chosen = TapeSource(tape=folder / "tape"), AuditSettings(attacks=tuple(attacks), victims=1, control=False)
    _, planned = plan([source], AuditSettings(budget=5.0, victims=1))
    assert planned
    record = audit([source], chosen, out=folder / "audit")
    assert {one.attack for one in record.plan} == set(attacks)
    ended = {row.attack: row for row in record.results}
    assert ended.keys() == set(attacks)
    assert all(row.outcome for row in ended.values())


def check(recipe: Recipe, attacks: list[str], leaking: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        audited(recipe, attacks, Path(folder), leaking=leaking)


@settings(max_examples=25, derandomize=True, phases=[Phase.generate], **EXAMPLES)
@given(recipe=recipes(), attacks=chosen_attacks, leaking=st.integers(0, 3))
def test_a_few_drawn_models_are_audited(recipe, attacks, leaking):
    check(recipe, attacks, leaking == 0)


@pytest.mark.slow
@seed(SEED)
@settings(max_examples=500, phases=[Phase.generate], **EXAMPLES)
@given(recipe=recipes(), attacks=chosen_attacks, leaking=st.integers(0, 3))
def test_five_hundred_drawn_models_are_audited(recipe, attacks, leaking):
    check(recipe, attacks, leaking == 0)
