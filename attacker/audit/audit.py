"""The audit: opens tapes, plans, attacks a few updates of each, joins the results with the truth, writes the record."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from attacker.attacks.base import Reconstruction
from attacker.attacks.objects import check_travel
from attacker.audit.clock import UNLIMITED, Clock
from attacker.audit.execution.attack_job import Chunk, attack_seed
from attacker.audit.execution.checkpoint import CampaignFolder, OtherSettings
from attacker.audit.execution.files import Pictures
from attacker.audit.execution.machine import threads_restored, versions
from attacker.audit.execution.work import ChunkStore
from attacker.audit.federations.federation import AuditedFederation, open_federations
from attacker.audit.inputs.tape_source import TapeSource, updates_read_once
from attacker.audit.planning.carried_out import as_it_went, left_over
from attacker.audit.planning.kept_costs import learn
from attacker.audit.planning.mending import with_mends
from attacker.audit.planning.plan import plan_audit
from attacker.audit.record.schema import AuditRecord, PlannedAttack
from attacker.audit.scheduler import Needless, Score, cut, run_chunks
from attacker.audit.scoring.assemble import assemble, best_ssim, collect, count_others
from attacker.audit.scoring.canaries import canary_audit
from attacker.audit.scoring.channels import reply_channels
from attacker.audit.scoring.label_disclosure import label_disclosure
from attacker.audit.scoring.leakage_summary import leakage_of, needs_indices
from attacker.audit.scoring.settled import Settled
from attacker.audit.scoring.shuffled import MOST_SECONDS, attack_shuffled
from attacker.audit.settings import AuditSettings, build_attacks
from attacker.audit.so_far import VerdictSoFar
from attacker.audit.truth.open import TruthWish
from attacker.audit.verdict.finish import finish_record, write_audit
from attacker.jobs.progress import State, Watch
from attacker.jobs.run import hire_for
from attacker.jobs.store import MemoryStore
from attacker.jobs.workers import OwnProcess
from attacker.optim.deadline import within
from attacker.wording import counted, duration
from fl_precode.models.input_spec import InputSpec
from fl_precode.private_file import make_private_folder

__all__ = ["attack_seed", "audit", "build_attacks", "plan"]

Say = Callable[[str], None]
"""Receives a sentence for the reader."""


@threads_restored()
@updates_read_once()
def audit(
    sources: Sequence[TapeSource],
    settings: AuditSettings,
    *,
    out: Path,
    workers: int = 1,
    ray_address: str = "",
    resumable: bool = True,
    title: str = "Audit of federated training",
    truth: TruthWish = True,
    watch: Watch | None = None,
    say: Say | None = None,
    clock: Clock | None = None,
) -> AuditRecord:
    """Audit one or more federations as a campaign in ``OUT/campaign``: killed at any moment, the same call goes on.

    What is found does not depend on who works, nor on how often the campaign was interrupted. Where the budget ends
    before the work, searches give the best until then and say so, what was not begun is left out, and the same call
    goes on with that, in as much time again. An audit of other
    settings that is in the folder, finished or not, is set aside into ``OUT/earlier-1`` (or the next number), which is
    said. An attack that raises is recorded as failed, with the reason, and the others go on.

    Args:
        sources: The tapes.
        settings: What is to be done.
        out: Folder of the audit; created, 0700. It gets ``audit.json`` and ``images`` when everything is done.
        workers: Processes on this machine, at least 1; one works in this process, also where opening the tapes again
            would take several longer than they save.
        ray_address: Address of an existing Ray cluster, which works instead; its nodes must see ``out`` and the tapes.
        resumable: Whether finished work is kept on the disk while it goes on. Otherwise it is done at once, in this
            process, and nobody measures beforehand what named attacks will take.
        title: Title of the report.
        truth: Where the true images of all tapes are known from, as ``--truth`` takes it, or a function of node id and
            round; True leaves it to each source.
        watch: Told about the work now and then.
        say: Told, in a sentence each, what a reader should know.
        clock: Clock of the budget, where it began earlier, with the command; None begins now.

    Raises:
        NothingToAttack: If a tape's model or images are not known, or it holds no update.
        ValueError: If a tape cannot be audited otherwise, or another audit is at work in the folder.
        OSError: If the folder cannot be written.
        RuntimeError: If the work cannot go on, as on a full disk or without the cluster.
    """
    if workers < 1:
        raise ValueError(f"expected at least one worker, got {workers}")
    if workers > 1 or ray_address:
        check_travel(settings.specs or ())
        if not resumable:
            raise ValueError("expected a resumable audit where several processes work: they write what they finish")
    if truth is not True:
        sources = [replace(source, truth=truth) for source in sources]
    if not resumable:
        return _at_once(sources, settings, out, title, watch)
    clock = clock or Clock(settings.budget, settings.leakage)
    with CampaignFolder(out) as campaign:
        planned = _begun(campaign, sources, settings, say, clock)
        began = time.monotonic()
        federations = open_federations(sources, settings, campaign.controls, fresh=planned is None, clock=clock)
        opened = time.monotonic() - began
        if planned is None:
            planned = plan_audit(federations, settings, clock=clock, say=say)
            planned = _if_any_fits(_and_those_that_refuse(planned), settings, clock)
            planned = with_mends(federations, planned, settings)
            if workers > 1 or ray_address:
                check_travel([attack.attack for attack in planned if attack.status == "run"])
            campaign.begin(_identity(federations, settings), planned)
        chunks = cut(federations, planned, settings)
        if say is not None:
            say(_ahead(federations, planned))
        gpu = settings.device.startswith("cuda")
        workers = _worth_their_start(workers, planned, opened)
        hire = hire_for(campaign.chunks, workers=workers, ray_address=ray_address, gpu=gpu)
        needless = _needless(federations, planned, chunks, campaign.chunks, settings)
        so_far = say and VerdictSoFar(
            federations=federations, plan=planned, chunks=chunks, store=campaign.chunks, settings=settings, say=say,
            clock=clock, needless=needless,
        )  # fmt: skip
        run_chunks(
            chunks, campaign.chunks, hire, plan=planned, score=_score(federations), watch=watch, clock=clock,
            after_each=so_far, needless=needless, controls=_controls(federations),
        )  # fmt: skip
        went = as_it_went(planned, chunks, campaign.chunks, needless)
        if say is not None and (left := left_over(planned, went)):
            say(_over(left))
        folder = out.expanduser().absolute()
        return _finish(federations, went, chunks, campaign.chunks, settings, title, folder, watch, workers, clock)


def _at_once(
    sources: Sequence[TapeSource], settings: AuditSettings, out: Path, title: str, watch: Watch | None
) -> AuditRecord:
    """The audit in this process, with what is finished in memory."""
    with tempfile.TemporaryDirectory() as controls:
        federations = open_federations(sources, settings, Path(controls))
        folder = make_private_folder(out)
        planned = _and_those_that_refuse(plan_audit(federations, settings, estimate=settings.attacks is None))
        store: MemoryStore[Sequence[Reconstruction]] = MemoryStore()
        chunks = cut(federations, planned, settings)
        needless = _needless(federations, planned, chunks, store, settings)
        run_chunks(
            chunks, store, lambda hear: OwnProcess(store, hear), watch=watch, needless=needless,
            controls=_controls(federations),
        )  # fmt: skip
        went = as_it_went(planned, chunks, store, needless)
        return _finish(federations, went, chunks, store, settings, title, folder, watch)


def _controls(federations: Sequence[AuditedFederation]) -> set[str]:
    return {federation.id for federation in federations if federation.control_of is not None}


def _needless(
    federations: Sequence[AuditedFederation],
    planned: Sequence[PlannedAttack],
    chunks: Sequence[Chunk],
    store: ChunkStore,
    settings: AuditSettings,
) -> Needless:
    """What is left out where formulas settle the answer; attacks that were named all run."""
    if settings.attacks is not None:
        return lambda _chunk: False
    return Settled(federations=federations, plan=planned, chunks=chunks, store=store).needless


@threads_restored()
def plan(
    sources: Sequence[TapeSource],
    settings: AuditSettings,
    *,
    estimate: bool = True,
    say: Say | None = None,
    clock: Clock | None = None,
) -> tuple[list[AuditedFederation], list[PlannedAttack]]:
    """What `audit` would do, without doing it; only the time of a few iterations is measured.

    Args:
        sources: The tapes.
        settings: What is to be done.
        estimate: Whether that time is measured.
        say: Told in a sentence about updates that no search can answer.
        clock: Clock of the budget; None begins now.

    Raises:
        NothingToAttack: As `audit`.
        ValueError: As `audit`.
    """
    clock = clock or Clock(settings.budget, settings.leakage)
    with ExitStack() as stack:
        controls = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        federations = open_federations(sources, settings, controls, clock=clock)
        planned = plan_audit(federations, settings, estimate=estimate, clock=clock, say=say)
        return federations, with_mends(federations, planned, settings)


def _over(left: int) -> str:
    return (
        f"The budget ended before {counted(left, 'update')} could be attacked, counted for each attack; the record "
        "says which. The same command goes on with them, in as much time again."
    )


def _begun(
    campaign: CampaignFolder, sources: Sequence[TapeSource], settings: AuditSettings, say: Say | None, clock: Clock
) -> list[PlannedAttack] | None:
    """The plan of the audit that is in the folder; None where there is none, or it was another one and is set aside."""
    if not campaign.begun:
        return None
    # Without controls: those of the earlier audit may be of another defence, and are not there for this one.
    bare = open_federations(sources, replace(settings, control=False), campaign.controls, clock=clock)
    try:
        return campaign.resume(_identity(bare, settings))
    except OtherSettings as differ:
        aside = campaign.set_aside()
        if say is not None:
            say(
                f"This folder held an audit that was begun otherwise: {differ}. It is kept in {aside}, and this one "
                "begins anew. With that folder as --out, the command of then goes on with it."
            )
        return None


def _ahead(federations: Sequence[AuditedFederation], planned: Sequence[PlannedAttack]) -> str:
    """What is going to be done, in a line."""
    originals = [federation for federation in federations if federation.control_of is None]
    updates = sum(len(federation.targets) for federation in originals)
    attacks = sum(attack.status == "run" for attack in planned)
    expected = sum(attack.expected_seconds or 0.0 for attack in planned if attack.status == "run")
    controls = ", the undefended control included" if len(originals) < len(federations) else ""
    return (
        f"Audit of {counted(updates, 'update')}: {counted(attacks, 'attack')}{controls}; "
        f"expected: {duration(expected)} of one processor."
    )


_LARGE: Final = 5.0
"""Seconds for opening the tapes, from which on it counts that every worker opens them again."""


def _worth_their_start(workers: int, planned: Sequence[PlannedAttack], opened: float) -> int:
    """The number of workers, or 1 where opening large tapes again takes them longer than they save.

    Args:
        workers: As asked for.
        planned: Says what is to be done.
        opened: Seconds that this process took to open the tapes.
    """
    expected = [attack.expected_seconds for attack in planned if attack.status == "run"]
    known = [seconds for seconds in expected if seconds is not None]
    if opened <= _LARGE or len(known) < len(expected):
        return workers
    return 1 if sum(known) * (1 - 1 / workers) < opened else workers


def _finish(
    federations: Sequence[AuditedFederation],
    planned: Sequence[PlannedAttack],
    chunks: Sequence[Chunk],
    store: ChunkStore,
    settings: AuditSettings,
    title: str,
    folder: Path,
    watch: Watch | None,
    processes: int = 1,
    clock: Clock = UNLIMITED,
) -> AuditRecord:
    if watch is not None:
        watch(State.after(f"{federations[0].id}: comparing with the truth", len(chunks)))
    reconstructions = collect(chunks, store)
    learn(federations, planned, reconstructions, settings)
    # A standard's result depends on no clock.
    longest = math.inf if settings.standard else min(MOST_SECONDS, clock.finishing() / 3)
    placebos = attack_shuffled(chunks, reconstructions, count_others(federations), seconds=longest)
    with within(clock.left() / 3):
        labels = [found for one in federations if (found := label_disclosure(one, settings)) is not None]
        channels = [one for audited in federations if audited.control_of is None for one in reply_channels(audited)]
    with within(clock.finishing()):
        whole = assemble(
            federations, planned, reconstructions, settings, title=title, pictures=Pictures(folder), shuffled=placebos
        )
    whole = whole.model_copy(update={"label_disclosures": labels, "channels": channels})
    record = finish_record(_with_canaries(whole, federations, settings))
    write_audit(record, folder)
    if not settings.leakage:
        return record
    # The audit is safe by now, even if this takes all memory and the process is killed.
    summaries = []
    wanted = [candidate for candidate in federations if needs_indices(candidate, federations)]
    longest = clock.explaining() / max(1, len(wanted))
    for number, federation in enumerate(wanted):
        if watch is not None:
            watch(State.after(f"{federation.id}: leakage indices", len(chunks)))
        summaries.append(
            leakage_of(
                federation,
                record,
                seed=settings.seed,
                processes=processes,
                seconds=min(longest, clock.finishing() / (len(wanted) - number)),
            )
        )
    record = finish_record(record, summaries)
    write_audit(record, folder)
    return record


def _with_canaries(
    record: AuditRecord, federations: Sequence[AuditedFederation], settings: AuditSettings
) -> AuditRecord:
    """The record with what canaries measured, where a tape announces some."""
    found = [canary_audit(audited, settings.canary_secret) for audited in federations if audited.control_of is None]
    return record.model_copy(update={"canaries": [measured for measured in found if measured is not None]})


def _and_those_that_refuse(planned: list[PlannedAttack]) -> list[PlannedAttack]:
    """The plan, if anything runs.

    Raises:
        ValueError: If an attack is refused to which nothing else is left.
    """
    if not any(attack.status == "run" for attack in planned) and all(attack.status == "refused" for attack in planned):
        reasons = "; ".join(f"{refusal.attack}: {refusal.reason}" for refusal in planned)
        raise ValueError(f"this threat model refuses every attack: {reasons}")
    return planned


_SHORTEST: Final = 1.0
"""Seconds for attacks, below which a budget has room for nothing; with more, labels and channels are read at least."""


def _if_any_fits(planned: list[PlannedAttack], settings: AuditSettings, clock: Clock) -> list[PlannedAttack]:
    """The plan, unless its budget has no room for anything: where no attack fits, labels are still to be told.

    Raises:
        ValueError: If so; the shortest attack is named.
    """
    left_out = [attack for attack in planned if attack.status == "over_budget"]
    if any(attack.unanswerable for attack in planned):
        return planned  # that is what the audit has to say
    left = clock.planned() or 0.0
    if left_out and left < _SHORTEST and not any(attack.status == "run" for attack in planned):
        shortest = min(left_out, key=lambda attack: attack.expected_seconds or 0.0)
        raise ValueError(
            f"a budget of {settings.budget:g} s has no room for any attack: {left:.2g} s of it are left for attacks, "
            f"and the shortest, {shortest.attack}, is expected to take {shortest.expected_seconds or 0.0:.2g} s; give "
            "a larger --budget, or name attacks with --attacks"
        )
    return planned


def _identity(federations: Sequence[AuditedFederation], settings: AuditSettings) -> dict[str, Any]:
    known = versions()
    tapes: dict[str, Any] = {}
    for federation in federations:
        if federation.control_of is None:
            subject, tape = federation.subject, federation.site.tape
            tapes |= {
                f"updates of {tape}": federation.site.stamp,
                # The stamp is of what the tape and its notes say; these may come from the command line.
                f"model of {tape}": subject.victim.name,
                f"defence of {tape}": subject.defence,
                f"images of {tape}": _words(subject.victim.inputs),
            }
    return {**settings.identity(), **tapes, **{name: known[name] for name in ("fl-precode", "torch") if name in known}}


def _words(inputs: InputSpec) -> str:
    shape = "x".join(map(str, inputs.shape))
    return f"{shape}, {inputs.classes} classes, mean {inputs.mean}, deviation {inputs.std}"


def _score(federations: Sequence[AuditedFederation]) -> Score:
    by_id = {federation.id: federation for federation in federations}

    def score(chunk: Chunk, reconstructions: Sequence[Reconstruction]) -> float | None:
        federation = by_id[chunk.federation]
        return None if federation.control_of is not None else best_ssim(federation, chunk, reconstructions)

    return score
