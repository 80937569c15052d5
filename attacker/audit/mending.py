"""What would let an attack run that does not: codes of `attacker.audit.mends.MENDS`.

Nothing is concluded from the words of a refusal. What an update lacks is put in for a trial, the update is read again,
and the attack is asked again: a line is only named where the attack would then fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from attacker.attacks.attack import check_observation
from attacker.attacks.registry import build_attack, entry_of
from attacker.audit.knowledge import DEFENCE
from attacker.audit.plan import answered
from attacker.audit.record import PlannedAttack
from attacker.audit.scope import Federation
from attacker.audit.settings import AuditSettings
from fl_precode.observation import Observation, Protocol
from fl_precode.tape import TapeError


@dataclass(frozen=True)
class Trial:
    """Whether an observation lacks something, and the protocol in which it is told."""

    lacks: Callable[[Observation], bool]
    told: Callable[[Protocol], Protocol]


TRIALS: Mapping[str, Trial] = MappingProxyType(
    {
        "local-epochs": Trial(
            lambda one: one.batch_size is None and one.protocol.local_epochs is None,
            lambda protocol: replace(protocol, local_epochs=1),
        ),
        "learning-rate": Trial(
            lambda one: one.kind == "weights" and one.protocol.learning_rate is None,
            lambda protocol: replace(protocol, learning_rate=0.1),
        ),
        "batch-size": Trial(
            lambda one: one.kind == "weights" and one.protocol.batch_size is None and one.batch_size != 1,
            lambda protocol: replace(protocol, batch_size=32),
        ),
    }
)
"""By code, what can be told for a trial."""


def with_mends(
    federations: Sequence[Federation], planned: Sequence[PlannedAttack], settings: AuditSettings
) -> list[PlannedAttack]:
    """The plan, each attack that does not run with the codes of what would let it run, as far as that is known."""
    by_id = {own.id: own for own in federations}
    return [
        one if one.status == "run" else one.model_copy(update={"mends": _mends(one, by_id[one.federation], settings)})
        for one in planned
    ]


def _mends(one: PlannedAttack, federation: Federation, settings: AuditSettings) -> list[str]:
    if one.status == "refused":
        return ["withheld"]
    if one.status == "over_budget":
        return ["budget"]
    defence = federation.subject.defence
    if one.attack == "portfolio":  # made of others, which are planned one by one
        return []
    if DEFENCE in entry_of(one.attack).needs and not answered(one.attack, defence):
        return ["defence"] if defence == "unknown" else []
    seen = federation.subject.tape.load(federation.entries[0])
    if check_observation(federation.subject.victim, seen) is not None:
        finite = all(bool(value.isfinite().all()) for value in seen.update.values())
        return ["model"] if finite else []
    return _that_help(one.attack, federation, seen, settings)


def _that_help(attack: str, federation: Federation, seen: Observation, settings: AuditSettings) -> list[str]:
    """The fewest of the lines that must be added together for the attack to fit the first update; empty if none do."""
    lacking = [code for code, trial in TRIALS.items() if trial.lacks(seen)]
    if not lacking or not _fits(attack, federation, lacking, settings):
        return []
    needed = list(lacking)
    for code in lacking:
        fewer = [one for one in needed if one != code]
        if _fits(attack, federation, fewer, settings):
            needed = fewer
    return needed


def _fits(attack: str, federation: Federation, told: Sequence[str], settings: AuditSettings) -> bool:
    """Whether the attack would fit the first update, were this in the notes."""
    subject = federation.subject
    tape, header = subject.tape, subject.tape.header
    protocol = header.protocol
    for code in told:
        protocol = TRIALS[code].told(protocol)
    tape.header = replace(header, protocol=protocol)
    try:
        known = settings.knowledge.of(tape.load(federation.entries[0]), subject.defence)
        refusal = check_observation(subject.victim, known) or build_attack(attack).refuses(subject.victim, known)
    except TapeError:
        return False
    except Exception:  # whatever an attack raises on a foreign model, no line is known to mend it
        return False
    finally:
        tape.header = header
    return refusal is None
