"""No model ends an audit: drawn ones go through plan and audit, and every attack's outcome is in the record."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from attacker.attacks import build_attack
from attacker.audit.audit import audit, plan
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record.schema import AuditRecord
from attacker.audit.scoring.leakage_summary import leakage_summary
from attacker.audit.settings import AuditSettings
from attacker.audit.truth.base import Truth
from attacker.victim import Victim
from fl_precode import Observation
from fl_precode.models import build_model
from fl_precode.tape import TapeHeader, TapeWriter
from tests.attacker import fuzzed_models
from tests.attacker.audits import audit_tapes
from tests.attacker.fuzzed_models import Recipe, build, observation, protocol, recipes, train

SEED = 21
MODEL = "tests.attacker.fuzzed_models:current"
ATTACKS = (
    "first-layer", "layerwise-inversion", "through-bottleneck", "hybrid:steps=1,inner=3",
    "then-refine:steps=1,inner=3,iterations=2", "inverting-gradients:iterations=3", "dlg:iterations=3",
    "see-through-gradients:iterations=3,warmup=0", "idlg:iterations=3", "noise-recovery:iterations=3",
    "noise-restoring:iterations=3", "ignore:iterations=3", "dropout-inversion:iterations=3",
    "defence-matched:iterations=3", "spear:samples=64", "portfolio:iterations=3",
    "inverting-gradients:iterations=3,local_training=surrogate", "inverting-gradients:iterations=3,restarts=2",
)  # fmt: skip
EXAMPLES = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
chosen_attacks = st.lists(st.sampled_from(ATTACKS), min_size=2, max_size=4, unique=True)


def audited(recipe: Recipe, attacks: Sequence[str], folder: Path, *, thorough: bool) -> AuditRecord | None:
    """Everything that an audit does with one drawn model; raises where the audit would end."""
    fuzzed_models.CURRENT[:] = [recipe]
    try:
        model = build(recipe)
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        sent, pixels, labels = train(recipe, model)
    except (RuntimeError, ValueError):
        assume(False)  # layers that do not fit the image, or that the client cannot train
    try:
        build_model(MODEL, recipe.inputs, seed=0)
    except ValueError:
        assume(False)  # refused in a sentence, before there is an audit
    seen = observation(recipe, before, sent, model)
    if any(value.is_complex() or not value.numel() for value in before.values()):
        for attack in attacks:
            attacked(attack, recipe, seen)
    if thorough:
        truth = Truth(images=pixels, labels=labels)
        victim = Victim(model=build(recipe), inputs=recipe.inputs)
        assert leakage_summary("f1", victim, "none", [seen], [truth], []).reason
    if not taped(recipe, before, sent, model, folder):
        return None  # complex numbers do not go onto every tape
    source = TapeSource(tape=folder / "tape")
    _, planned = plan([source], AuditSettings(budget=5.0, victims=1))
    assert planned
    if thorough:
        named = AuditSettings(attacks=tuple(attacks), victims=1, leakage=True)
        return audit([source], named, out=folder / "audit")
    return audit_tapes([source], out=folder / "audit", attacks=attacks, victims=1)


def attacked(attack: str, recipe: Recipe, seen: Observation) -> None:
    """The attack by itself; what it cannot do it says."""
    victim = Victim(model=build(recipe), inputs=recipe.inputs)
    try:
        (found,) = build_attack(attack)(victim, [seen], generator=torch.Generator().manual_seed(0))
    except ValueError as error:
        if "twice differentiable" not in str(error):
            raise
    else:
        assert found.inputs is not None or found.reason


def taped(
    recipe: Recipe, before: Mapping[str, Tensor], sent: Mapping[str, Tensor], model: torch.nn.Module, folder: Path
) -> bool:
    """Write the update onto a tape; whether it is there."""
    header = TapeHeader(
        model=MODEL, defence="none", kind=recipe.kind, protocol=protocol(recipe), inputs=recipe.inputs
    )  # fmt: skip
    writer = TapeWriter(folder / "tape", header)
    own = {name for name, value in model.named_parameters() if value.is_floating_point()}
    writer.write_round(1, {name: value.numpy() for name, value in before.items()})
    arrays = {name: value.numpy() for name, value in sent.items()}
    writer.write_observation(1, "1", arrays, batch_size=recipe.images, buffers=sorted(before.keys() - own))
    return not writer.lost


def check(recipe: Recipe, attacks: Sequence[str], thorough: bool) -> AuditRecord | None:
    """The record names the outcome of every attack."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        record = audited(recipe, attacks, Path(folder), thorough=thorough)
    if record is not None:
        assert {one.attack for one in record.plan} == set(attacks)
        assert {row.attack for row in record.results} == set(attacks)
        assert all(row.outcome for row in record.results)
    return record


drawn_audits = given(recipe=recipes(), attacks=chosen_attacks, thorough=st.integers(0, 7).map(lambda one: one == 0))


@settings(max_examples=12, derandomize=True, phases=[Phase.generate], **EXAMPLES)
@drawn_audits
def test_a_few_drawn_models_are_audited(recipe, attacks, thorough):
    check(recipe, attacks, thorough)


@pytest.mark.slow
@seed(SEED)
@settings(max_examples=500, phases=[Phase.generate], **EXAMPLES)
@drawn_audits
def test_five_hundred_drawn_models_are_audited(recipe, attacks, thorough):
    check(recipe, attacks, thorough)
