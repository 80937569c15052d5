"""A chunk of an audit: one attack on a few updates of one tape. Plain data in, reconstructions out; no truth anywhere.

What a chunk gives depends on the chunk alone, whoever runs it and whatever ran before. Each update has a generator of
its own, seeded by the attack and by whose update it is: it draws the same whatever else is in the chunk, however many
updates an audit has, and where memory runs out and the chunk is attacked in halves. torch's global generators, of which
a foreign model or attack may draw, have a seed too, that of the first update.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from attacker.attacks.base import Attack, Outcome, Reconstruction
from attacker.attacks.registry import build_attack
from attacker.audit.execution.device import on_processor, placed
from attacker.audit.inputs.tape_source import UPDATES, Subject, TapeSource, open_subject
from attacker.audit.threat_model import Knowledge
from attacker.gradients.memory_budget import is_out_of_memory
from attacker.optim.deadline import share_of_time, within
from attacker.reasons import Reason, because, joined, raised
from attacker.victim import Victim
from fl_precode.loss import importable_name
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation
from fl_precode.randomness.seeding import seeded

_logger = logging.getLogger(__name__)

MOST_UPDATES: Final = 8
"""Updates of one chunk. Measured on a CPU, more of them gain little; less is lost when a run is killed."""

_MOST_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Target:
    """One update to attack.

    Attributes:
        file: On the tape.
        round: Round of the federation.
        node: Node id.
        identity: Names the client's work in this round; equal in federations that are to be compared, so that attacks
            draw the same there.
        batch_size: Distinct images behind the update, where it was announced.
        labels: True ones that the threat model grants, or None.
    """

    file: str
    round: int
    node: str
    identity: str
    batch_size: int | None = None
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where targets are: a tape, and what its header does not say. Plain data, so that it can be sent anywhere.

    Attributes:
        tape: Folder, absolute.
        stamp: Stamp of what the tape listed when the audit began; an opened tape with another stamp is opened anew.
        model: Model spec in place of the header's.
        defence: Defence spec in place of the header's.
        inputs: Input domain in place of the header's.
        loss: Name of what the clients minimise in place of the header's.
    """

    tape: str
    stamp: str = ""
    model: str | None = None
    defence: str | None = None
    inputs: InputSpec | None = None
    loss: str | None = None

    @classmethod
    def of(cls, source: TapeSource, stamp: str) -> Site:
        """What an attacker may know of a source; the truth stays behind."""
        tape = str(source.tape.absolute())
        loss = None if source.loss is None else importable_name(source.loss)
        return cls(tape=tape, stamp=stamp, model=source.model, defence=source.defence, inputs=source.inputs, loss=loss)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Site:
        """The site of which `asdict` made this, also where it was sent as JSON."""
        inputs = content["inputs"]
        return cls(**{**content, "inputs": None if inputs is None else _inputs(inputs)})

    def open(self) -> Subject:
        """The tape with its victim, without truth."""
        source = TapeSource(
            tape=Path(self.tape),
            truth=False,
            model=self.model,
            defence=self.defence,
            inputs=self.inputs,
            loss=self.loss,
        )
        return open_subject(source, checked=UPDATES)


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One attack on a few updates.

    Attributes:
        id: Unique in its audit; names its files.
        federation: Identifier in the record.
        attack: Spec.
        site: The tape.
        targets: What is attacked, in order.
        seed: Seed of this attack in this audit.
        granted: Kinds of knowledge that the attacker has.
        device: As torch names it.
        threads: Threads of the processor.
        pieces: Number of parts in which the targets are attacked one after another; above one only after a process
            died.
    """

    id: str
    federation: str
    attack: str
    site: Site
    targets: tuple[Target, ...]
    seed: int
    granted: tuple[str, ...]
    device: str = "cpu"
    threads: int = 1
    pieces: int = 1

    def to_content(self) -> dict[str, Any]:
        """Plain data, for a job, from which `from_content` makes an equal chunk."""
        return asdict(self)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Chunk:
        """The chunk of a job, also of one that was sent as JSON."""
        fields = {
            **content,
            "site": Site.from_content(content["site"]),
            "targets": tuple(_target(target) for target in content["targets"]),
            "granted": tuple(content["granted"]),
        }
        return cls(**fields)


def chunk_size(batch_size: int | None) -> int:
    """Updates of one chunk, whoever runs it; fewer when each has many images.

    >>> chunk_size(1), chunk_size(16), chunk_size(500)
    (8, 4, 1)
    """
    return max(1, min(MOST_UPDATES, _MOST_IMAGES // (batch_size or 1)))


def attack_seed(seed: int, spec: str) -> int:
    """Seed of one attack, a function of the audit's seed and the attack; the same on every tape."""
    return seed_of(seed, spec)


Found = Mapping[tuple[str, str, str], Reconstruction]
"""Results of an audit by federation, attack and file of the update."""


def run_chunk(
    chunk: Chunk,
    progress: Callable[[float], None] | None = None,
    *,
    seconds: float | None = None,
    change: Callable[[Observation], Observation] | None = None,
) -> list[Reconstruction]:
    """Attack the targets of a chunk.

    Args:
        chunk: The chunk.
        progress: Told the share that is done.
        seconds: After which searches end with the best that they have; None for as long as it takes. What a chunk
            gives depends on it only where it is cut, and then says so.
        change: Makes another update of each, which is attacked in its place.

    Returns:
        One for each target. An attack that raises gives reconstructions that have failed, with the reason; its defect
        must not cost the results of others. One that runs out of memory is tried again on halves. One whose time ends
        gives the best until then.

    Raises:
        ValueError: If the tape, or an update on it, is not what it was.
    """
    with nullcontext() if seconds is None else within(seconds):
        return _run(chunk, progress, change)


def _run(
    chunk: Chunk, progress: Callable[[float], None] | None, change: Callable[[Observation], Observation] | None
) -> list[Reconstruction]:
    torch.set_num_threads(chunk.threads)
    subject = opened(chunk.site)
    entries = {entry.file: entry for entry in subject.tape.entries}
    gone = [target.file for target in chunk.targets if target.file not in entries]
    if gone:
        raise ValueError(f"{gone[0]} is not on the tape {chunk.site.tape} any more")
    knowledge = Knowledge(frozenset(chunk.granted))
    loaded = [subject.tape.load(entries[target.file]) for target in chunk.targets]
    observations = [
        knowledge.of(observation if change is None else change(observation), subject.defence) for observation in loaded
    ]
    attempt = Attempt(
        name=chunk.id,
        method=build_attack(chunk.attack),
        victim=subject.victim,
        updates=observations,
        labels=[None if target.labels is None else torch.tensor(target.labels) for target in chunk.targets],
        seeds=[seed_of(chunk.seed, target.identity) for target in chunk.targets],
        device=torch.device(chunk.device),
        progress=progress,
    )
    parts = min(chunk.pieces, len(observations))
    bounds = [len(observations) * number // parts for number in range(parts + 1)]
    reconstructions: list[Reconstruction] = []
    for number in range(parts):
        with share_of_time(number, parts):
            reconstructions += attempt.results(bounds[number], bounds[number + 1])
    return reconstructions


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attack on some updates: what is done in chunks of audits and in cells of experiments.

    Attributes:
        name: For the log.
        method: The attack.
        victim: Public knowledge about the model.
        updates: As the attacker sees them.
        labels: Granted for each update, (batch,), or None.
        seeds: One for each update; while several are attacked, torch's own generators have that of the first.
        device: Where the attack computes; None where the victim is. What it finds is on the CPU.
        progress: Told the share that is done.
    """

    name: str
    method: Attack
    victim: Victim
    updates: Sequence[Observation]
    labels: Sequence[Tensor | None]
    seeds: Sequence[int]
    device: torch.device | None = None
    progress: Callable[[float], None] | None = None

    def results(self, start: int = 0, end: int | None = None) -> list[Reconstruction]:
        """Results of a range of the updates, all unless given; `run_chunk` says what becomes of attacks that raise."""
        end = len(self.updates) if end is None else end
        try:
            return self._attack(start, end)
        except Exception as error:
            if is_out_of_memory(error) and end - start > 1:
                _logger.warning("%s: out of memory with %d updates; halved", self.name, end - start)
                middle = (start + end) // 2
                return [*self.results(start, middle), *self.results(middle, end)]
            _logger.exception("the attack %s failed", self.method.name)
            return [failed(raised(error))] * (end - start)

    def _attack(self, start: int, end: int) -> list[Reconstruction]:
        victim, observations, seeds = self.victim, list(self.updates[start:end]), self.seeds[start:end]
        if self.device is not None:
            victim, observations = placed(victim, observations, self.device)
        with seeded(seeds[0]), within(math.inf) as deadline:
            reconstructions = self.method(
                victim,
                observations,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                labels=self.labels[start:end],
                progress=lambda share, _best: self._tell(start, end, share),
            )
        return [
            on_processor(reconstruction)
            for reconstruction in (_cut(reconstructions) if deadline.cut else reconstructions)
        ]

    def _tell(self, start: int, end: int, share: float) -> None:
        if self.progress is not None:
            self.progress((start + min(max(share, 0.0), 1.0) * (end - start)) / len(self.updates))


def _cut(results: Sequence[Reconstruction]) -> list[Reconstruction]:
    """Results of an attack that was cut; where it does not say which, what is not known to have converged was."""
    if any(result.cut for result in results):
        return list(results)
    return [
        result
        if result.inputs is None or result.outcome is Outcome.CONVERGED
        else replace(result, cut=True, reason=joined([result.reason, because("time-ended.attack")]))
        for result in results
    ]


def failed(reason: Reason) -> Reconstruction:
    """The result of an attack that raised."""
    return Reconstruction(inputs=None, labels=None, outcome=Outcome.FAILED, reason=reason)


@lru_cache(maxsize=2)
def opened(site: Site) -> Subject:
    """See `Site.open`; a process that works on a tape opens it once."""
    return site.open()


def seed_of(*parts: object) -> int:
    """A seed of its own for whatever is named."""
    text = "|".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _target(content: Mapping[str, Any]) -> Target:
    labels = content["labels"]
    return Target(**{**content, "labels": None if labels is None else tuple(labels)})


def _inputs(content: Mapping[str, Any]) -> InputSpec:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return InputSpec(**given)
