"""Privacy that a federation's defence claims, and the guarantee of its formula for the tape."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from attacker.audit.inputs.noise_source import noise_from_a_seed
from attacker.audit.record.schema import PrivacyClaims, PrivacyGuarantee, finite
from fl_precode.observation import Protocol
from fl_precode.privacy import Claim, Conditions, Guarantee, PrivacyStatement, privacy_statement
from fl_precode.randomness.entropy import NOISE_FROM_A_SEED
from fl_precode.tape import Tape

_logger = logging.getLogger(__name__)

_EPSILON: Final = "claimed-epsilon"
_DELTA: Final = "claimed-delta"
"""Settings by which an app says what it claims, whatever its defence is."""


def conditions_on_tape(tape: Tape, protocol: Protocol, result: Mapping[str, Any], numbers: int) -> Conditions:
    """How often the mechanism worked, for the client that worked most often.

    Args:
        tape: Its updates are counted.
        protocol: What was announced.
        result: The run's ``result.json``, which knows what DP-SGD's batches were drawn from; empty without one.
        numbers: In one update.
    """
    often = Counter(entry.node for entry in tape.entries)
    rounds = max(often.values(), default=1)
    steps = 1 if protocol.name == "fedsgd" else protocol.local_steps
    known = Conditions(rounds=rounds, steps=steps, batch_size=protocol.batch_size, numbers=numbers)
    spent = result.get("privacy")
    if not isinstance(spent, Mapping) or protocol.batch_size is None:
        return known
    try:
        images = max(1, round(protocol.batch_size / float(spent["sample_rate"])))
        each = max(1, round(int(spent["steps"]) / max(1, len(result["rounds"]))))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        _logger.warning("what result.json says of DP-SGD's batches is not used: %s", error)
        return known
    return replace(known, images=images, steps=each)


def privacy_claims(defence: str, conditions: Conditions, settings: Mapping[str, Any]) -> PrivacyClaims | None:
    """The record's entry; None where nobody announced a defence and nobody claims an epsilon.

    Args:
        defence: Spec; ``none`` and ``unknown`` as well.
        conditions: How often it worked.
        settings: From the tape's header.
    """
    claim = _claimed(settings)
    if defence in ("none", "unknown") and claim is None:
        return None
    statement = privacy_statement(defence, conditions, claim)
    if statement.holds and noise_from_a_seed(defence, settings):
        statement = replace(statement, holds=False, why_not=NOISE_FROM_A_SEED)
    return _entry(statement)


def _claimed(settings: Mapping[str, Any]) -> Claim | None:
    """What an app's settings claim; what is no positive number claims nothing."""
    try:
        epsilon = float(settings[_EPSILON])
        delta = float(settings[_DELTA]) if _DELTA in settings else None
    except KeyError:
        return None
    except (TypeError, ValueError) as error:
        _logger.warning("the claimed epsilon or delta of the settings is not used: %s", error)
        return None
    valid = 0 < epsilon < math.inf and (delta is None or 0 < delta < 1)
    return Claim(epsilon=epsilon, delta=delta) if valid else None


def _entry(statement: PrivacyStatement) -> PrivacyClaims:
    claim = statement.claim
    return PrivacyClaims(
        claimed_epsilon=None if claim is None else claim.epsilon,
        claimed_delta=None if claim is None else claim.delta,
        claimed_sensitivity=None if claim is None else claim.sensitivity,
        guarantees=[_guarantee(one) for one in statement.guarantees],
        holds=statement.holds,
        why_not=statement.why_not,
        notes=list(statement.notes),
    )


def _guarantee(one: Guarantee) -> PrivacyGuarantee:
    return PrivacyGuarantee(
        level=one.level,
        a_round=finite(one.a_round),
        composed=finite(one.composed),
        delta=one.delta,
        sensitivity=finite(one.sensitivity),
        noise_multiplier=finite(one.noise_multiplier),
        classical=finite(one.classical),
        note=one.note,
    )
