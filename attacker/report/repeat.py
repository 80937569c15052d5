"""The command that repeats an audit, put together from what its record says."""

from __future__ import annotations

import shlex
from typing import Final

from attacker.audit.record.schema import AuditRecord
from attacker.metrics.places import CANDIDATES

_OPTIONS: Final = ("victims", "labels", "rounds", "threads", "device")
_WITHHELD: Final = ("batch-size", "buffers", "defence", "learning-rate")
"""What a server usually knows; the command names what of it was withheld."""


def command(record: AuditRecord) -> str:
    """A shell command that audits the same tapes with the same attacks, settings and seed."""
    tapes = dict.fromkeys(federation.tape for federation in record.federations if federation.control_of is None)
    if record.settings.get("standard"):
        return shlex.join(["fl-precode", "standard", *tapes, "--out", "standard"])
    return shlex.join(["fl-precode", "audit", *tapes, "--out", "audit", *_options(record)])


def _options(record: AuditRecord) -> list[str]:
    options: list[str] = []
    for spec in str(record.settings.get("attacks") or "").split():
        options += ["--attacks", spec]
    for name in _OPTIONS:
        value = record.settings.get(name)
        if value not in (None, "all"):
            options += [f"--{name}", str(value)]
    budget = record.settings.get("budget")
    if isinstance(budget, int | float):
        options += ["--budget", f"{budget:g}s"]
    if record.threat_model is not None:
        withheld = [kind for kind in record.threat_model.withheld if kind in _WITHHELD]
        options += ["--withhold", ",".join(withheld)] if withheld else []
    if record.settings.get("control") is False:
        options.append("--no-control")
    if record.settings.get("leakage") is False:
        options.append("--no-leakage")
    candidates = record.settings.get("candidates")
    if candidates not in (None, CANDIDATES):
        options += ["--candidates", str(candidates)]
    if "audit" in record.seeds:
        options += ["--seed", str(record.seeds["audit"])]
    return options
