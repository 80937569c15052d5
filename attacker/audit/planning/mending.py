"""Changes that would let an attack run: codes of `attacker.audit.record.mends.MENDS`.

Nothing is concluded from the words of a refusal. What an update lacks is put in for a trial, the update is read again,
and the attack is asked again: a line is only named where the attack would then fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from attacker.attacks.base import check_observation
from attacker.attacks.registry import build_attack, entry_of
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.planning.plan import answered
from attacker.audit.record.schema import PlannedAttack
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import DEFENCE
from fl_precode.observation import Observation, Protocol

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MendTrial:
    """Whether an observation lacks something, and the protocol in which it is told."""

    lacks: Callable[[Observation], bool]
    told: Callable[[Protocol], Protocol]


TRIALS: Mapping[str, MendTrial] = MappingProxyType(
    {
        "local-epochs": MendTrial(
            lambda update: update.batch_size is None and update.protocol.local_epochs is None,
            lambda protocol: replace(protocol, local_epochs=1),
        ),
        "learning-rate": MendTrial(
            lambda update: update.kind == "weights" and update.protocol.learning_rate is None,
            lambda protocol: replace(protocol, learning_rate=0.1),
        ),
        "batch-size": MendTrial(
            lambda update: update.kind == "weights" and update.protocol.batch_size is None and update.batch_size != 1,
            lambda protocol: replace(protocol, batch_size=32),
        ),
    }
)
"""By code, what can be told for a trial."""


def with_mends(
    federations: Sequence[AuditedFederation], planned: Sequence[PlannedAttack], settings: AuditSettings
) -> list[PlannedAttack]:
    """The plan, each attack that does not run with the codes of what would let it run, as far as that is known."""
    readers = {federation.id: _Reader(federation, settings) for federation in federations}
    return [
        entry if entry.status == "run" else entry.model_copy(update={"mends": _mends(entry, readers[entry.federation])})
        for entry in planned
    ]


class _Reader:
    """Reads a federation's first update as if something were in the notes; each reading is kept, updates are large."""

    def __init__(self, federation: AuditedFederation, settings: AuditSettings) -> None:
        self.subject = federation.subject
        self._entry = federation.entries[0]
        self._knowledge = settings.knowledge
        self._read: dict[tuple[str, ...], Observation] = {}

    def observation(self, told: Sequence[str] = ()) -> Observation:
        """The update, read with what is told for a trial.

        Raises:
            TapeError: If it cannot be read so.
        """
        key = tuple(told)
        if key not in self._read:
            tape, header = self.subject.tape, self.subject.tape.header
            protocol = header.protocol
            for code in told:
                protocol = TRIALS[code].told(protocol)
            tape.header = replace(header, protocol=protocol)
            try:
                self._read[key] = tape.load(self._entry)
            finally:
                tape.header = header
        return self._read[key]

    def fits(self, attack: str, told: Sequence[str]) -> bool:
        """Whether the attack would fit the update, were this in the notes."""
        victim = self.subject.victim
        try:
            known = self._knowledge.of(self.observation(told), self.subject.defence)
            return (check_observation(victim, known) or build_attack(attack).refuses(victim, known)) is None
        except Exception:  # whatever an attack raises on a foreign model, no line is known to mend it
            return False


def _mends(planned: PlannedAttack, reader: _Reader) -> list[str]:
    if planned.status == "refused":
        return ["withheld"]
    if planned.status == "over_budget":
        return ["budget"]
    defence = reader.subject.defence
    if planned.attack == "portfolio":  # made of others, which are planned one by one
        return []
    if DEFENCE in entry_of(planned.attack).needs and not answered(planned.attack, reader.subject):
        return ["defence"] if defence == "unknown" else []
    try:
        observation = reader.observation()
        if check_observation(reader.subject.victim, observation) is not None:
            finite = all(bool(value.isfinite().all()) for value in observation.update.values())
            return ["model"] if finite else []
        return _that_help(planned.attack, reader, observation)
    except Exception:  # this is advice; a foreign model that raises must not end an audit for want of it
        _logger.warning("what would let %s run could not be found out", planned.attack, exc_info=True)
        return []


def _that_help(attack: str, reader: _Reader, observation: Observation) -> list[str]:
    """The fewest of the lines that must be added together for the attack to fit the first update; empty if none do."""
    lacking = [code for code, trial in TRIALS.items() if trial.lacks(observation)]
    if not lacking or not reader.fits(attack, lacking):
        return []
    needed = list(lacking)
    for code in lacking:
        fewer = [other for other in needed if other != code]
        if reader.fits(attack, fewer):
            needed = fewer
    return needed
