"""Joins what the attacks found with the truth, and assembles the record. Attacks never come here."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from attacker.attacks.base import Reconstruction
from attacker.attacks.registry import entry_of
from attacker.attacks.selection import not_compared
from attacker.audit.execution.attack_job import Chunk, Found, attack_seed
from attacker.audit.execution.files import Pictures
from attacker.audit.execution.machine import this_machine, versions
from attacker.audit.execution.work import ChunkStore
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.inputs.defence_check import Sighting, common_sightings, sightings
from attacker.audit.inputs.image_scale import ImageScale, estimate_scale
from attacker.audit.inputs.tape_source import summarise_federation
from attacker.audit.inputs.update_facts import assumptions_about, update_facts
from attacker.audit.planning.readings import readings
from attacker.audit.record.counting import beats
from attacker.audit.record.identification import with_identified
from attacker.audit.record.schema import (
    AttackDescription,
    AuditRecord,
    FederationSummary,
    ImageResult,
    PlannedAttack,
    Setting,
    VictimImage,
)
from attacker.audit.scoring.head_readings import head_readings
from attacker.audit.scoring.identification import Pools
from attacker.audit.scoring.placebos import same_images, updates_of_others
from attacker.audit.scoring.scene import Scene, Shuffled, pools_of
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD, compared, summarise
from attacker.audit.settings import AuditSettings
from attacker.optim.deadline import time_is_up
from attacker.reasons import codes_of
from fl_precode.tape import TapeEntry


def assemble(
    federations: Sequence[AuditedFederation],
    plan: Sequence[PlannedAttack],
    results: Found,
    settings: AuditSettings,
    *,
    title: str,
    pictures: Pictures,
    shuffled: Shuffled | None = None,
) -> AuditRecord:
    """The record of an audit whose attacks are done.

    Args:
        federations: Controls behind the federations that they belong to.
        plan: What was considered.
        results: Results, see `collect`.
        settings: Settings of the audit.
        title: Title of the report.
        pictures: Where pictures are kept.
        shuffled: What quick attacks made of shuffled updates.
    """
    specs = settings.specs or tuple(dict.fromkeys(planned.attack for planned in plan if planned.status == "run"))
    images: list[VictimImage] = []
    rows: list[ImageResult] = []
    entries: list[FederationSummary] = []
    pools: dict[str, Pools] = {}
    for federation in federations:
        scale = estimate_scale(federation.subject.victim.inputs, _alike(federation, federations, results))
        entry = _with_readings(federation_entry(federation, federations, settings, scale), federation, plan, settings)
        drawn = pools_of(federation, pools, settings)
        scene = Scene(federation, entry, scale.inputs, results, shuffled or {}, pictures, drawn)
        attacked, scores = scene.scored(
            [_runs(federation, update, specs, plan, results) for update in federation.entries]
        )
        images += attacked
        rows += scores
        lacks = scene.what_identification_lacks(settings.candidates)
        noted = {"identification_note": str(lacks), "identification_codes": list(lacks.codes)}
        entries.append(entry.model_copy(update=noted))
    rows = with_identified(rows, images)
    tried = {(row.federation, row.attack) for row in rows}
    return AuditRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=title,
        success_threshold=SUCCESS_THRESHOLD,
        settings=_asked(settings, specs),
        seeds={"audit": settings.seed, **{spec: attack_seed(settings.seed, spec) for spec in specs}},
        versions=versions(),
        machine=this_machine(),
        attacks=[_describe(spec, [summary.defence for summary in entries]) for spec in specs],
        federations=entries,
        victims=images,
        results=rows,
        summaries=[
            summarise(audited.id, spec, rows, images)
            for audited in federations
            for spec in specs
            if (audited.id, spec) in tried
        ],
        threat_model=settings.knowledge.record(),
        plan=list(plan),
    )


def _asked(settings: AuditSettings, specs: Sequence[str]) -> dict[str, Setting]:
    """What the audit was asked for."""
    return {
        "victims": settings.victims,
        "labels": settings.knowledge.labels,
        "attacks": " ".join(specs),
        "device": settings.device,
        "budget": settings.budget,
        "rounds": settings.identity()["rounds"],
        "threads": settings.threads,
        "control": settings.control,
        "leakage": settings.leakage,
        "candidates": settings.candidates,
        **({"standard": settings.standard} if settings.standard else {}),
    }


def collect(chunks: Sequence[Chunk], store: ChunkStore) -> dict[tuple[str, str, str], Reconstruction]:
    """Results of finished chunks, by federation, attack and file of the update; those that had no time are left out.

    Raises:
        ValueError: If a chunk was altered.
    """
    return {
        (chunk.federation, chunk.attack, target.file): reconstruction
        for chunk in chunks
        if store.has(chunk.id)
        for target, reconstruction in zip(chunk.targets, store.load(chunk.id), strict=True)
    }


def best_ssim(federation: AuditedFederation, chunk: Chunk, reconstructions: Sequence[Reconstruction]) -> float | None:
    """Best SSIM of a finished chunk, of images beyond any guess without the update; None where there is none."""
    entries = {entry.file: entry for entry in federation.entries}
    best: list[float] = []
    inputs = estimate_scale(federation.subject.victim.inputs, reconstructions).inputs
    for target, reconstruction in zip(chunk.targets, reconstructions, strict=True):
        source, truth = federation.subject.truth, federation.truth(entries[target.file])
        if source is None or truth is None:
            continue
        guesses = source.guesses.at(truth.images, truth.labels, source.client_images(entries[target.file]))
        rows, _ = compared(reconstruction, truth.images, inputs, guesses)
        best += [row.ssim for row in rows if row.ssim is not None and beats(row.ssim, row.guess_ssim, 0.0)]
    return max(best, default=None)


def _alike(
    audited: AuditedFederation, federations: Sequence[AuditedFederation], results: Found
) -> list[Reconstruction]:
    """What was reconstructed of the same clients' images: from a federation and its control."""
    origin = audited.control_of or audited.id
    same = {candidate.id for candidate in federations if origin in (candidate.id, candidate.control_of)}
    return [result for (federation, _, _), result in results.items() if federation in same]


def _describe(spec: str, defences: Sequence[str]) -> AttackDescription:
    """The attack, with what it answers of every one of these defences that has it."""
    entry = entry_of(spec)
    same = {name: getattr(entry, name) for name in ("description", "adaptive", "oblivious")}
    return AttackDescription(spec=spec, answers=sorted(entry.answers_as(spec) - not_compared(defences)), **same)


def federation_entry(
    federation: AuditedFederation, federations: Sequence[AuditedFederation], settings: AuditSettings, scale: ImageScale
) -> FederationSummary:
    """The record's entry of one federation, after its updates were read."""
    # Opening a tape compares sizes only; what was altered in place shows when everything is read.
    federation.subject.tape.verify()
    victim, defence = federation.subject.victim, federation.subject.defence
    observations = federation.observations()
    shown: list[tuple[Sighting, ...]] = []
    for observation in observations:
        if shown and time_is_up():
            break  # the sentences say how many updates were looked at
        shown.append(sightings(victim, observation, defence))
    doubts, unexplained = common_sightings(shown)
    facts = update_facts(victim, observations)
    entry = summarise_federation(
        federation.subject, federation.id, settings.knowledge.labels, doubts, facts, observations[0].protocol
    )
    of_all = [] if scale.assumption is None else [scale.assumption]
    of_updates = {
        "assumptions": assumptions_about(victim, observations, of_all),
        "not_announced": list(map(str, unexplained)),
    }
    of_updates["not_announced_codes"] = codes_of(unexplained)
    entry = entry.model_copy(update=of_updates)
    if federation.control_of is None:
        return entry
    defended = next(candidate for candidate in federations if candidate.id == federation.control_of)
    return entry.model_copy(
        update={
            "control_of": federation.control_of,
            "control_training": list(federation.training),
            "tape": str(defended.subject.tape.path.absolute()),
            "settings": {**entry.settings, "defence": "none"},
            "doubts": [],
            "not_announced": [],
            "privacy": None,
            "claims": None,
            "tape_identity": None,  # made for this audit and gone with it: nothing to compare with
        }
    )


def _with_readings(
    entry: FederationSummary, federation: AuditedFederation, plan: Sequence[PlannedAttack], settings: AuditSettings
) -> FederationSummary:
    """With what is cheap to read: where no search can answer the updates, and where clients train a head alone."""
    if entry.facts is None:
        return entry
    unanswerable = any(planned.unanswerable and planned.federation == federation.id for planned in plan)
    facts = entry.facts.model_copy(
        update={
            "readings": readings(federation, settings) if unanswerable else [],
            "head_readings": head_readings(federation, settings),
        }
    )
    return entry.model_copy(update={"facts": facts})


def count_others(federations: Sequence[AuditedFederation]) -> dict[tuple[str, str], int]:
    """How many other updates each one that has a truth can be compared with, by federation and file."""
    counted: dict[tuple[str, str], int] = {}
    for federation in federations:
        truths = [federation.truth(update) for update in federation.entries]
        others = updates_of_others(same_images([None if batch is None else batch.images for batch in truths]))
        for update, truth, some in zip(federation.entries, truths, others, strict=True):
            if truth is not None:
                counted[federation.id, update.file] = len(some)
    return counted


def _runs(
    federation: AuditedFederation,
    update: TapeEntry,
    specs: Sequence[str],
    plan: Sequence[PlannedAttack],
    results: Found,
) -> list[tuple[str, Reconstruction | None]]:
    planned = {entry.attack: entry for entry in plan if entry.federation == federation.id}
    return [(spec, results.get((federation.id, spec, update.file)) or _not_run(planned.get(spec))) for spec in specs]


def _not_run(planned: PlannedAttack | None) -> Reconstruction | None:
    """What stands for an attack that does not fit; None for one that was not tried, which only the plan names."""
    if planned is None or planned.status in ("run", "over_budget"):
        return None
    return Reconstruction.not_applicable(planned.why)
