"""Costs of attacks on this machine, kept from audit to audit, so that a plan need not run any.

A plan reckons in iterations of gradient matching. How long one takes is measured by the first audit of a model; how
long each attack then really took is learnt at the end of every audit. Both are kept in a file of digests and seconds
in the user's cache folder: it names no model, and holds nothing of any update. Where it is away, cannot be read or
cannot be written, costs are measured anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import torch

from attacker.attacks.base import Outcome
from attacker.audit.execution.attack_job import Found
from attacker.audit.execution.machine import this_machine
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.planning.costs import cost
from attacker.audit.record.schema import PlannedAttack
from attacker.audit.settings import AuditSettings
from attacker.gradients.observed import steps_behind
from fl_precode.places.cache_folder import cache_folder
from fl_precode.spec import parse_spec

_logger = logging.getLogger(__name__)

ITERATION: Final = "iteration"
"""What the seconds of one iteration of gradient matching are kept under; attacks are kept under their names."""

_VERSION: Final = 1
_MOST_KEPT: Final = 1_000
"""Kinds of updates in the file; of more, those that were met longest ago are left out."""

_WEIGHT_OF_NEW: Final = 0.5
"""Of what was measured now, beside what was known: one audit on a busy machine must not decide all that follow."""

Seconds = dict[str, float]


@dataclass(frozen=True)
class Prices:
    """Seconds that attacks on one kind of update take here.

    Attributes:
        unit: Unit of one iteration of gradient matching for one update; None where it is not known.
        learnt: By attack, seconds for each iteration that it is reckoned to cost.
    """

    unit: float | None = None
    learnt: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, spec: str, *, steps: int = 1) -> float | None:
        """What an attack takes for one update; None where nothing is known.

        Args:
            spec: The attack.
            steps: Steps that an iteration replays and this attack does not.
        """
        if (rate := self.learnt.get(kind_of(spec))) is not None:
            return rate * cost(spec)
        return None if self.unit is None else self.unit / steps * cost(spec)


def kind_of(spec: str) -> str:
    """What an attack is known by here: its name and preset, whatever its number of iterations.

    >>> kind_of("inverting-gradients:preset=precode-paper,iterations=100"), kind_of("first-layer")
    ('inverting-gradients:precode-paper', 'first-layer')
    """
    parsed = parse_spec(spec)
    preset = parsed.options.get("preset")
    return f"{parsed.name}:{preset}" if preset else parsed.name


def known_prices(key: str) -> Prices:
    """What is known of one kind of update, see `key_of`."""
    seconds = dict(_read().get(key, {}))
    return Prices(unit=seconds.pop(ITERATION, None), learnt=seconds)


def keep(key: str, measured: Mapping[str, float]) -> None:
    """Keep what was measured of one kind of update, beside what was known of it.

    Args:
        key: Result of `key_of`.
        measured: Seconds by attack, see `Prices`, and of one `ITERATION`.
    """
    known = _read()
    seconds = known.pop(key, {})
    for name, value in measured.items():
        if math.isfinite(value) and value > 0:
            old = seconds.get(name, value)
            seconds[name] = (1 - _WEIGHT_OF_NEW) * old + _WEIGHT_OF_NEW * value
    if seconds:
        _write(dict([*known.items(), (key, seconds)][-_MOST_KEPT:]))


def key_of(federation: AuditedFederation, settings: AuditSettings) -> str:
    """Digest of all that decides what an iteration costs: machine, model, and what is behind an update."""
    victim, observation = federation.subject.victim, federation.subject.tape.load(federation.entries[0])
    decides = {
        "machine": this_machine().model_dump(mode="json"), "torch": torch.__version__, "device": settings.device,
        "threads": settings.threads, "model": repr(victim.model), "inputs": asdict(victim.inputs),
        "numbers": [list(value.shape) for value in observation.parameters.values()],
        "kind": observation.kind, "steps": steps_behind(observation), "images": observation.batch_size,
        "protocol": repr(observation.protocol), "defence": federation.subject.defence,
        "updates": len(federation.targets),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()


def learn(
    federations: Sequence[AuditedFederation], plan: Sequence[PlannedAttack], found: Found, settings: AuditSettings
) -> None:
    """Keep how long the attacks of an audit really took, those that were neither cut nor failed.

    Args:
        federations: That were attacked.
        plan: As it was carried out.
        found: What the attacks gave.
        settings: Settings of the audit.
    """
    for federation in federations:
        learnt: dict[str, float] = {}
        for planned in plan:
            if planned.status != "run" or planned.federation != federation.id:
                continue
            results = [found.get((federation.id, planned.attack, entry.file)) for entry in federation.entries]
            made = [result for result in results if result is not None]
            spent = math.fsum(result.seconds for result in made)
            if spent and not any(result.cut or result.outcome is Outcome.FAILED for result in made):
                learnt[kind_of(planned.attack)] = spent / (len(made) * cost(planned.attack))
        if learnt:
            keep(key_of(federation, settings), learnt)


def _file() -> Path:
    return cache_folder() / "costs.json"


def _read() -> dict[str, Seconds]:
    try:
        content = json.loads(_file().read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            return {}
        return {
            str(key): {str(name): float(value) for name, value in seconds.items() if 0 < float(value) < math.inf}
            for key, seconds in content["costs"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _logger.warning("costs that were kept in %s cannot be read, and are measured anew: %s", _file(), error)
        return {}


def _write(costs: Mapping[str, Seconds]) -> None:
    """Whole or not at all: audits may run side by side."""
    path, temporary = _file(), ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            temporary = file.name
            json.dump({"version": _VERSION, "costs": costs}, file)
        os.replace(temporary, path)
    except OSError as error:
        _logger.info("what attacks cost cannot be kept in %s: %s", path, error)
        if temporary:
            with suppress(OSError):
                os.unlink(temporary)
