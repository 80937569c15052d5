"""The audit: opens tapes, attacks a few updates of each, joins the results with the truth, assembles the record."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from attacker.attacks.attack import Attack
from attacker.attacks.registry import ATTACKS, build_attack
from attacker.audit.announced import common_doubts, doubts
from attacker.audit.evaluate import SUCCESS_THRESHOLD, AttackRun, UpdateEvaluation, summarise
from attacker.audit.facts import update_facts
from attacker.audit.files import Pictures, make_private_folder
from attacker.audit.finish import finish_record, write_audit
from attacker.audit.machine import this_machine, versions
from attacker.audit.placement import CPU, brought_back, placed
from attacker.audit.record import (
    AttackDescription,
    AuditRecord,
    FederationSummary,
    ImageResult,
    LabelKnowledge,
    VictimImage,
)
from attacker.audit.selection import ordered_victims
from attacker.audit.subject import Subject, TapeSource, open_subject, summarise_federation
from attacker.audit.truth import Truth
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation
from fl_precode.tape import TapeError

_logger = logging.getLogger(__name__)

DEFAULT_ATTACKS = ("first-layer", "inverting-gradients")
AuditProgress = Callable[[str, float], None]
"""Receives a line about the work at hand, and the share of the whole audit that is done, in [0, 1]."""

# More images behind one update than this are not compared one by one.
_MOST_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is to be done with every tape."""

    attacks: dict[str, Attack]
    victims: int
    seed: int
    labels: LabelKnowledge
    device: torch.device
    pictures: Pictures


_Audited = tuple[FederationSummary, list[VictimImage], list[ImageResult]]


def audit_tape(
    tape: Path,
    *,
    out: Path,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    victims: int = 4,
    seed: int = 0,
    labels: LabelKnowledge = "recovered",
    evaluation: Path | None = None,
    model: str | None = None,
    defence: str | None = None,
    inputs: InputSpec | None = None,
    progress: AuditProgress | None = None,
) -> AuditRecord:
    """Audit one tape; see `audit_tapes`."""
    source = TapeSource(tape=tape, evaluation=evaluation, model=model, defence=defence, inputs=inputs)
    return audit_tapes([source], out=out, attacks=attacks, victims=victims, seed=seed, labels=labels, progress=progress)


def audit_tapes(
    sources: Sequence[TapeSource],
    *,
    out: Path,
    attacks: Sequence[str] = DEFAULT_ATTACKS,
    victims: int = 4,
    seed: int = 0,
    labels: LabelKnowledge = "recovered",
    title: str = "Audit of federated training",
    device: torch.device = CPU,
    progress: AuditProgress | None = None,
) -> AuditRecord:
    """Audit one or more federations into one record, ``OUT/audit.json``, with pictures in ``OUT/images``.

    An attack that raises is recorded as failed, with the reason, and the others go on.

    Args:
        sources: The tapes.
        out: Folder of the audit; created, 0700.
        attacks: Specs, as in the registry.
        victims: Updates to attack on each tape, at least 1; fewer when the tape has fewer.
        seed: Of the choice of victims and of the attacks, each of which draws from its own generator.
        labels: ``granted`` gives the attacker the true labels, the stronger threat model; ``recovered`` does not.
        title: Of the report.
        device: Where the attacks run; results come back to the CPU.
        progress: Told about the work now and then.

    Raises:
        ValueError: If an attack is unknown or named twice, a tape cannot be audited, or labels cannot be granted
            because the truth is not known.
        OSError: If the folder cannot be written.
        RuntimeError: If the truth needs a data set that is not on this machine.
    """
    built = _check(sources, attacks, victims, labels)
    subjects = [open_subject(source) for source in sources]
    _check_labels(subjects, labels)
    folder = make_private_folder(out)
    plan = _Plan(attacks=built, victims=victims, seed=seed, labels=labels, device=device, pictures=Pictures(folder))
    audited = [
        _audit_subject(subject, f"f{number + 1}", plan, _share(progress, number, len(subjects)))
        for number, subject in enumerate(subjects)
    ]
    record = finish_record(_assemble(audited, plan, title))
    write_audit(record, folder)
    return record


def _assemble(audited: Sequence[_Audited], plan: _Plan, title: str) -> AuditRecord:
    rows = [row for _, _, own in audited for row in own]
    return AuditRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=title,
        success_threshold=SUCCESS_THRESHOLD,
        settings={
            "victims": plan.victims,
            "labels": plan.labels,
            "attacks": " ".join(plan.attacks),
            "device": str(plan.device),
        },
        seeds={"audit": plan.seed, **{spec: attack_seed(plan.seed, spec) for spec in plan.attacks}},
        versions=versions(),
        machine=this_machine(),
        attacks=[_describe(spec) for spec in plan.attacks],
        federations=[federation for federation, _, _ in audited],
        victims=[image for _, images, _ in audited for image in images],
        results=rows,
        summaries=[summarise(federation.id, spec, rows) for federation, _, _ in audited for spec in plan.attacks],
    )


def _check(sources: Sequence[TapeSource], attacks: Sequence[str], victims: int, labels: str) -> dict[str, Attack]:
    if not sources or victims < 1:
        raise ValueError(f"expected at least one tape and one victim, got {len(sources)} tapes and {victims} victims")
    if labels not in ("granted", "recovered"):
        raise ValueError(f"expected labels to be 'granted' or 'recovered', got {labels!r}")
    return build_attacks(attacks)


def _check_labels(subjects: Sequence[Subject], labels: LabelKnowledge) -> None:
    unknown = [str(subject.tape.path) for subject in subjects if subject.truth is None]
    if labels == "granted" and unknown:
        raise ValueError(
            f"labels cannot be granted for {', '.join(unknown)}: without an evaluation.json the true labels are not "
            "known. Let the attacks recover them (--labels recovered), or give the file (--evaluation FILE)"
        )


def build_attacks(specs: Sequence[str]) -> dict[str, Attack]:
    """Attacks by spec, in order.

    Raises:
        ValueError: If there is none, one is unknown or one is named twice.
    """
    if not specs or len(set(specs)) != len(specs):
        raise ValueError(f"expected one or more different attacks, got {', '.join(specs) or 'none'}")
    return {spec: build_attack(spec) for spec in specs}


def attack_seed(seed: int, spec: str) -> int:
    """Seed of one attack's generator, a function of the audit's seed and the attack; the same on every tape."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{spec}".encode()).digest()[:8], "big") >> 1


def _describe(spec: str) -> AttackDescription:
    entry = ATTACKS[spec.partition(":")[0]]
    same = {name: getattr(entry, name) for name in ("description", "adaptive", "oblivious")}
    return AttackDescription(spec=spec, answers=sorted(entry.answers), **same)


def _share(progress: AuditProgress | None, part: int, parts: int) -> AuditProgress:
    def report(text: str, done: float) -> None:
        if progress is not None:
            progress(text, (part + min(max(done, 0.0), 1.0)) / parts)

    return report


def _stage(progress: AuditProgress, number: int, attacks: int, federation: str, spec: str) -> Callable[[float], None]:
    report = _share(progress, number, attacks)
    return lambda done: report(f"{federation}: {spec}", done)


def _audit_subject(subject: Subject, identifier: str, plan: _Plan, progress: AuditProgress) -> _Audited:
    chosen = choose_observations(subject, victims=plan.victims, seed=plan.seed)
    truths = [_truth(subject, one) for one in chosen]
    name = f"{subject.victim.name}, {subject.defence}"
    runs = {
        spec: _attack_all(spec, subject, chosen, truths, plan, _stage(progress, number, len(plan.attacks), name, spec))
        for number, spec in enumerate(plan.attacks)
    }
    progress(name, 1.0)
    # Opening a tape compares sizes only; what was altered in place shows when everything is read.
    subject.tape.verify()
    found = common_doubts([doubts(subject.victim, one, subject.defence) for one in chosen])
    federation = summarise_federation(subject, identifier, plan.labels, found, update_facts(subject.victim, chosen))
    images: list[VictimImage] = []
    rows: list[ImageResult] = []
    for number, (observation, truth) in enumerate(zip(chosen, truths, strict=True)):
        evaluation = UpdateEvaluation(
            federation=federation,
            number=number + 1,
            observation=observation,
            inputs=subject.victim.inputs,
            truth=truth,
            mean_image=None if subject.truth is None else subject.truth.mean_image(),
            class_names=() if subject.truth is None else subject.truth.class_names,
            pictures=plan.pictures,
        )
        images += evaluation.victims()
        for place, spec in enumerate(plan.attacks):
            rows += evaluation.results(runs[spec][number], f"a{place + 1}")
    return federation, images, rows


def choose_observations(subject: Subject, *, victims: int, seed: int) -> list[Observation]:
    """Load the updates to attack; those that the tape cannot give are passed over (the tape names them).

    Nodes whose truth can be known come first: an update without truth shows nothing.
    """
    truth = subject.truth

    def rank(node: str) -> str:
        return f"{truth.partition_of(node):09}" if truth is not None and truth.knows(node) else f"unknown {node}"

    order = ordered_victims(subject.tape.entries, seed=seed, rank=rank)
    if truth is not None:
        order.sort(key=lambda entry: not truth.knows(entry.node))
    chosen: list[Observation] = []
    for entry in order:
        if len(chosen) == victims:
            break
        try:
            chosen.append(subject.tape.load(entry))
        except TapeError as error:
            _logger.warning("passed over: %s", error)
    if not chosen:
        problems = "; ".join(subject.tape.problems[:3]) or "it lists no client update"
        raise ValueError(f"the tape {subject.tape.path} has nothing to attack: {problems}")
    return sorted(chosen, key=lambda one: (one.round, rank(one.node)))


def _truth(subject: Subject, observation: Observation) -> Truth | None:
    if subject.truth is None or not subject.truth.knows(observation.node):
        return None
    truth = subject.truth.truth(observation.node, observation.round)
    return truth if len(truth.images) <= _MOST_IMAGES else None


def _attack_all(
    spec: str,
    subject: Subject,
    observations: Sequence[Observation],
    truths: Sequence[Truth | None],
    plan: _Plan,
    progress: Callable[[float], None],
) -> list[AttackRun]:
    granted = plan.labels == "granted"
    labels: list[Tensor | None] = [truth.labels if granted and truth is not None else None for truth in truths]
    generator = torch.Generator().manual_seed(attack_seed(plan.seed, spec))
    progress(0.0)
    try:
        victim, seen = placed(subject.victim, observations, plan.device)
        done = plan.attacks[spec](
            victim,
            seen,
            generator=generator,
            labels=labels,
            progress=lambda share, _best: progress(share),
        )
    except Exception as error:
        # One attack's defect must not cost the results of the others; the record names it.
        _logger.exception("the attack %s failed", spec)
        return [AttackRun(spec=spec, reconstruction=None, error=f"{type(error).__name__}: {error}")] * len(observations)
    return [
        AttackRun(spec=spec, reconstruction=brought_back(one), labels_granted=label is not None)
        for one, label in zip(done, labels, strict=True)
    ]
