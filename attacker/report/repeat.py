"""The commands that repeat an audit, put together from what its record says."""

from __future__ import annotations

import shlex

from attacker.audit.record import AuditRecord

_OPTIONS = ("attacks", "victims", "labels", "device")


def commands(record: AuditRecord) -> list[str]:
    """One shell command for each tape that was audited.

    A record that holds its own command is taken at its word.
    """
    own = record.settings.get("command")
    if isinstance(own, str) and own:
        return [own]
    options: list[str] = []
    for name in _OPTIONS:
        value = record.settings.get(name)
        if name == "attacks" and isinstance(value, str):
            for spec in value.split():
                options += ["--attacks", spec]
        elif value is not None:
            options += [f"--{name}", str(value)]
    if "audit" in record.seeds:
        options += ["--seed", str(record.seeds["audit"])]
    tapes = dict.fromkeys(one.tape for one in record.federations if one.control_of is None)
    return [shlex.join(["fl-precode", "audit", tape, "--out", "audit", *options]) for tape in tapes]
