"""Audits at once and in this process, by named attacks: what most tests need."""

from __future__ import annotations

import torch

from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import LABELS, Knowledge

ATTACKS = ("first-layer", "inverting-gradients")


def audit_tapes(sources, *, out, labels="recovered", title="Audit of federated training", device="cpu", **settings):
    """The record; ``settings`` are those of `AuditSettings`. Without a control unless one is asked for."""
    known = {"attacks": ATTACKS, "control": False, "threads": torch.get_num_threads()} | settings
    known["attacks"] = tuple(known["attacks"])
    knowledge = Knowledge.usual(know=[LABELS] if labels == "granted" else [])
    chosen = AuditSettings(knowledge=knowledge, device=str(device), **known)
    return audit(sources, chosen, out=out, resumable=False, title=title)


def audit_tape(tape, *, out, evaluation=None, truth=True, model=None, defence=None, inputs=None, **more):
    source = TapeSource(tape=tape, evaluation=evaluation, truth=truth, model=model, defence=defence, inputs=inputs)
    return audit_tapes([source], out=out, **more)
