"""Joins what the attacks found with the truth, and assembles the record. Attacks never come here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from attacker.attacks.attack import Outcome, Reconstruction
from attacker.attacks.registry import entry_of
from attacker.audit.announced import common_doubts, doubts
from attacker.audit.chunk import Chunk, attack_seed
from attacker.audit.chunk_store import ChunkStore
from attacker.audit.evaluate import (
    SUCCESS_THRESHOLD,
    AttackRun,
    UpdateEvaluation,
    as_images,
    score_images,
    summarise,
)
from attacker.audit.facts import common_assumptions, update_facts
from attacker.audit.files import Pictures
from attacker.audit.image_scale import ImageScale, estimate_scale
from attacker.audit.machine import this_machine, versions
from attacker.audit.record import (
    AttackDescription,
    AuditRecord,
    FederationSummary,
    ImageResult,
    PlannedAttack,
    VictimImage,
)
from attacker.audit.scope import Federation
from attacker.audit.settings import AuditSettings
from attacker.audit.subject import summarise_federation
from attacker.metrics import match_batch
from attacker.victim import assumptions_of
from fl_precode.models.input_spec import InputSpec

_Found = Mapping[tuple[str, str, str], Reconstruction]
"""By federation, attack and file of the update."""


def assemble(
    federations: Sequence[Federation],
    plan: Sequence[PlannedAttack],
    found: _Found,
    settings: AuditSettings,
    *,
    title: str,
    pictures: Pictures,
) -> AuditRecord:
    """The record of an audit whose attacks are done.

    Args:
        federations: Controls behind the federations that they belong to.
        plan: What was considered.
        found: Results, see `collect`.
        settings: Of the audit.
        title: Of the report.
        pictures: Where pictures are kept.
    """
    specs = settings.attacks or tuple(dict.fromkeys(one.attack for one in plan if one.status == "run"))
    images: list[VictimImage] = []
    rows: list[ImageResult] = []
    entries: list[FederationSummary] = []
    for own in federations:
        scale = estimate_scale(own.subject.victim.inputs, _alike(own, federations, found))
        entry = _entry(own, federations, settings, scale)
        entries.append(entry)
        for evaluation, runs in _evaluations(own, entry, specs, plan, found, pictures, scale.inputs):
            images += evaluation.victims()
            for place, run in runs:
                rows += evaluation.results(run, f"a{place}")
    tried = {(row.federation, row.attack) for row in rows}
    return AuditRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        title=title,
        success_threshold=SUCCESS_THRESHOLD,
        settings={
            "victims": settings.victims,
            "labels": settings.knowledge.labels,
            "attacks": " ".join(specs),
            "device": settings.device,
            "budget": settings.budget,
            "rounds": settings.identity()["rounds"],
            "threads": settings.threads,
            "control": settings.control,
            "leakage": settings.leakage,
        },
        seeds={"audit": settings.seed, **{spec: attack_seed(settings.seed, spec) for spec in specs}},
        versions=versions(),
        machine=this_machine(),
        attacks=[_describe(spec) for spec in specs],
        federations=entries,
        victims=images,
        results=rows,
        summaries=[summarise(own.id, spec, rows) for own in federations for spec in specs if (own.id, spec) in tried],
        threat_model=settings.knowledge.record(),
        plan=list(plan),
    )


def collect(chunks: Sequence[Chunk], store: ChunkStore) -> dict[tuple[str, str, str], Reconstruction]:
    """Results of finished chunks, by federation, attack and file of the update.

    Raises:
        ValueError: If a chunk was altered.
    """
    return {
        (chunk.federation, chunk.attack, target.file): one
        for chunk in chunks
        for target, one in zip(chunk.targets, store.load(chunk.id), strict=True)
    }


def best_ssim(federation: Federation, chunk: Chunk, found: Sequence[Reconstruction]) -> float | None:
    """Best SSIM of a finished chunk; None where nothing can be compared."""
    entries = {entry.file: entry for entry in federation.entries}
    best: list[float] = []
    inputs = estimate_scale(federation.subject.victim.inputs, found).inputs
    for target, one in zip(chunk.targets, found, strict=True):
        images = as_images(one, inputs)
        truth = federation.truth(entries[target.file])
        if images is None or truth is None or len(images) != len(truth.images):
            continue
        order = match_batch(images.nan_to_num(nan=0.5), truth.images)
        best += [score.ssim for score in score_images(images[order], truth.images) if score.ssim is not None]
    return max(best, default=None)


def _alike(own: Federation, federations: Sequence[Federation], found: _Found) -> list[Reconstruction]:
    """What came back of the same clients' images: from a federation and its control."""
    origin = own.control_of or own.id
    same = {one.id for one in federations if origin in (one.id, one.control_of)}
    return [one for (federation, _, _), one in found.items() if federation in same]


def _describe(spec: str) -> AttackDescription:
    entry = entry_of(spec)
    same = {name: getattr(entry, name) for name in ("description", "adaptive", "oblivious")}
    return AttackDescription(spec=spec, answers=sorted(entry.answers), **same)


def _entry(
    own: Federation, federations: Sequence[Federation], settings: AuditSettings, scale: ImageScale
) -> FederationSummary:
    # Opening a tape compares sizes only; what was altered in place shows when everything is read.
    own.subject.tape.verify()
    victim, defence = own.subject.victim, own.subject.defence
    seen = own.observations()
    found = common_doubts([doubts(victim, one, defence) for one in seen])
    facts = update_facts(victim, seen)
    entry = summarise_federation(own.subject, own.id, settings.knowledge.labels, found, facts, seen[0].protocol)
    of_all = [*assumptions_of(victim), *([] if scale.assumption is None else [scale.assumption])]
    entry = entry.model_copy(update={"assumptions": common_assumptions(seen, of_all)})
    if own.control_of is None:
        return entry
    defended = next(one for one in federations if one.id == own.control_of)
    return entry.model_copy(
        update={
            "control_of": own.control_of,
            "control_training": list(own.training),
            "tape": str(defended.subject.tape.path.absolute()),
            "settings": {**entry.settings, "defence": "none"},
            "doubts": [],
            "privacy": None,
            "tape_identity": None,  # made for this audit and gone with it: nothing to compare with
        }
    )


def _evaluations(
    own: Federation,
    entry: FederationSummary,
    specs: Sequence[str],
    plan: Sequence[PlannedAttack],
    found: _Found,
    pictures: Pictures,
    inputs: InputSpec,
) -> list[tuple[UpdateEvaluation, list[tuple[int, AttackRun]]]]:
    planned = {one.attack: one for one in plan if one.federation == own.id}
    source = own.subject.truth
    result = []
    for number, update in enumerate(own.entries, start=1):
        truth = own.truth(update)
        evaluation = UpdateEvaluation(
            federation=entry,
            number=number,
            observation=own.subject.tape.load(update),
            inputs=inputs,
            truth=truth,
            mean_image=None if source is None else source.mean_image,
            class_names=() if source is None else source.class_names,
            pictures=pictures,
        )
        runs = []
        for place, spec in enumerate(specs, start=1):
            one = found.get((own.id, spec, update.file)) or _not_run(planned.get(spec))
            if one is not None:
                granted = any(target.file == update.file and target.labels is not None for target in own.targets)
                runs.append((place, _run(spec, one, granted)))
        result.append((evaluation, runs))
    return result


def _run(spec: str, one: Reconstruction, granted: bool) -> AttackRun:
    if one.outcome is Outcome.FAILED and one.inputs is None:
        return AttackRun(spec=spec, reconstruction=None, error=one.reason)
    return AttackRun(spec=spec, reconstruction=one, labels_granted=granted)


def _not_run(planned: PlannedAttack | None) -> Reconstruction | None:
    """What stands for an attack that does not fit; None for one that was not tried, which only the plan names."""
    if planned is None or planned.status in ("run", "over_budget"):
        return None
    return Reconstruction.not_applicable(planned.reason)
