"""The verdict while attacks go on: what those that are done show of images. It is said, and kept nowhere."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from attacker.audit.clock import Clock
from attacker.audit.execution.attack_job import Chunk
from attacker.audit.execution.files import Pictures
from attacker.audit.execution.work import ChunkStore
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.planning.carried_out import as_it_went
from attacker.audit.planning.costs import replays
from attacker.audit.record.schema import AuditRecord, PlannedAttack, VerdictLine
from attacker.audit.scheduler import Needless
from attacker.audit.scoring.assemble import assemble, collect
from attacker.audit.settings import AuditSettings
from attacker.audit.verdict.finish import finish_record
from attacker.audit.verdict.verdict import title_of
from attacker.optim.deadline import within
from attacker.wording import capitalised, counted, duration

FIRST_BY: Final = 40.0
"""Seconds from the beginning after which the first verdict does not wait for formulas that are not done."""

_SETTLED: Final = "Formulas reconstructed every image. The other attacks are left out: they would change no verdict."

_SHARE: Final = 0.05
"""Of the time since the last verdict that working out the next one may take."""

_MOST_SECONDS: Final = 10.0
"""Of working out one; what is not compared by then is left out."""


@dataclass(kw_only=True)
class VerdictSoFar:
    """Says what the attacks that are done show, when the formulas are done and whenever that changes.

    Attributes:
        federations: Controls behind the federations that they belong to.
        plan: What is carried out.
        chunks: All of it.
        store: Those that are finished.
        settings: Settings of the audit.
        say: Told the sentence.
        clock: Clock of the audit.
        needless: Whether a chunk that was not begun will be left out.
    """

    federations: Sequence[AuditedFederation]
    plan: Sequence[PlannedAttack]
    chunks: Sequence[Chunk]
    store: ChunkStore
    settings: AuditSettings
    say: Callable[[str], None]
    clock: Clock
    needless: Needless = lambda _chunk: False
    _open: list[Chunk] = field(init=False)
    _said: list[str] = field(default_factory=list)
    _took: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._open = list(self.chunks)

    def __call__(self) -> None:
        """Look at what is done; to be called when a chunk is."""
        self._open = [chunk for chunk in self._open if not self.store.has(chunk.id)]
        if not self._open or not self._is_due():
            return
        if all(self.needless(chunk) for chunk in self._open):
            # The verdict itself comes next; working it out twice would only keep the reader waiting.
            self.say(_SETTLED)
            self._open = []
            return
        began = time.monotonic()
        with within(min(_MOST_SECONDS, self.clock.attacking() / 4)):
            sentences = self._sentences()
        self._last = time.monotonic()
        self._took = self._last - began
        if sentences != self._said:
            self._said = sentences
            self.say(f"So far, {self._done()}: {' '.join(sentences)} The attacks go on.")

    def _is_due(self) -> bool:
        """The first time when formulas are done or have taken long; then when it costs little."""
        if self._took:
            return self._took <= _SHARE * (time.monotonic() - self._last)
        return all(replays(chunk.attack) for chunk in self._open) or self.clock.spent >= FIRST_BY

    def _done(self) -> str:
        attacks = {(chunk.federation, chunk.attack) for chunk in self.chunks}
        left = {(chunk.federation, chunk.attack) for chunk in self._open}
        done = f"{len(attacks - left)} of {counted(len(attacks), 'attack')} done"
        return f"after {duration(self.clock.spent)} with {done}"

    def _sentences(self) -> list[str]:
        """The line about images of each federation that is no control."""
        record = self._record()
        titles = {federation.id: title_of(federation) for federation in record.federations if not federation.control_of}
        lines = [(verdict.federation, line) for verdict in record.verdicts for line in verdict.lines[:1]]
        alone = len(titles) == 1
        return [_sentence("" if alone else titles[of], line) for of, line in lines if of in titles]

    def _record(self) -> AuditRecord:
        with tempfile.TemporaryDirectory() as folder:
            whole = assemble(
                self.federations,
                as_it_went(self.plan, self.chunks, self.store, self.needless),
                collect(self.chunks, self.store),
                self.settings,
                title="",
                pictures=Pictures(Path(folder)),
            )
        return finish_record(whole)


def _sentence(title: str, line: VerdictLine) -> str:
    what = f"{line.subject}: {line.state}"
    return f"{f'{title}, {what}' if title else capitalised(what)}. {line.sentence}"
