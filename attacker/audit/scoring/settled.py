"""Questions that exact formulas have answered: what is left of a campaign would change no verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from attacker.attacks.base import Outcome
from attacker.audit.execution.attack_job import Chunk
from attacker.audit.execution.work import ChunkStore
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.planning.costs import replays
from attacker.audit.record.confirmed import agrees
from attacker.audit.record.entry import Role
from attacker.audit.record.schema import PlannedAttack
from attacker.audit.scoring.assemble import counted_images


@dataclass(kw_only=True)
class Settled:
    """Says which chunks are needless, because formulas reconstructed every image of their federation.

    An image is settled when the update itself confirms it (`attacker.audit.record.confirmed`) and, where the true one
    is known, it counts as reconstructed. Where formulas that ignore the defence settle all of them, the federation
    leaks whatever a search finds. Where that takes formulas that know the defence, plain attacks may still turn "leaks
    to an adaptive attacker" into "leaks": they are needed, other adaptive ones and the control are not.

    Attributes:
        federations: Controls behind the federations that they belong to.
        plan: The roles of attacks.
        chunks: The whole campaign.
        store: Finished chunks.
    """

    federations: Sequence[AuditedFederation]
    plan: Sequence[PlannedAttack]
    chunks: Sequence[Chunk]
    store: ChunkStore
    _by: dict[str, Role | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._roles = {(one.federation, one.attack): one.role for one in self.plan}
        self._originals = {one.id: one.control_of or one.id for one in self.federations}

    def needless(self, chunk: Chunk) -> bool:
        """Whether a chunk would change no verdict; False as long as formulas are not done."""
        origin = self._originals[chunk.federation]
        if chunk.federation == origin and not replays(chunk.attack):
            return False
        by = self._settled_by(origin)
        if by == "adaptive":
            return chunk.federation != origin or self._roles[chunk.federation, chunk.attack] == "adaptive"
        return by == "plain"

    def _settled_by(self, origin: str) -> Role | None:
        """The role of the formulas that settle every image of a federation; None where they do not."""
        if origin not in self._by:
            formulas = [chunk for chunk in self.chunks if chunk.federation == origin and not replays(chunk.attack)]
            if not all(self.store.has(chunk.id) for chunk in formulas):
                return None
            self._by[origin] = self._role(origin, formulas)
        return self._by[origin]

    def _role(self, origin: str, formulas: Sequence[Chunk]) -> Role | None:
        federation = next(one for one in self.federations if one.id == origin)
        whole = {entry.file for entry in federation.entries}
        found: dict[Role, set[str]] = {"plain": set(), "adaptive": set()}
        for chunk in formulas:
            results = self.store.load(chunk.id)
            confirmed = [result.outcome is Outcome.CONVERGED and agrees(result.matching_loss) for result in results]
            if any(confirmed):
                counted = counted_images(federation, chunk, results)
                found[self._roles[origin, chunk.attack]] |= {
                    target.file
                    for target, sure, counts in zip(chunk.targets, confirmed, counted, strict=True)
                    if sure and counts is not False
                }
        if found["plain"] == whole:
            return "plain"
        return "adaptive" if found["plain"] | found["adaptive"] == whole else None
