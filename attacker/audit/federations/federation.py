"""The federations of an audit: tapes, controls without their defence, and the updates that are attacked."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from attacker.audit.clock import OPENING, UNLIMITED, Clock
from attacker.audit.execution.attack_job import Site, Target
from attacker.audit.execution.passes import replayed_images, seconds_of_pass
from attacker.audit.federations.control_training import SECONDS
from attacker.audit.federations.undefended_control import control_training, open_control, why_no_control, write_control
from attacker.audit.federations.victim_selection import choose_updates, node_rank
from attacker.audit.inputs.tape_source import UPDATES, Subject, TapeSource, open_subject
from attacker.audit.inputs.truth_check import MOST_IMAGES, check_truth
from attacker.audit.record.schema import ControlRound
from attacker.audit.settings import AuditSettings
from attacker.audit.truth.base import Truth
from attacker.optim.deadline import within
from attacker.reasons import Reason, because
from fl_precode.observation import Observation
from fl_precode.tape import Tape, TapeEntry

_logger = logging.getLogger(__name__)

_SHARE = 0.05
"""Of an audit's budget, for training the control of one federation."""


@dataclass(frozen=True, kw_only=True)
class AuditedFederation:
    """One federation of an audit.

    Attributes:
        id: In the record.
        subject: The opened tape.
        site: The tape as attackers open it.
        entries: Updates that are attacked.
        targets: The same as attackers see them.
        control_of: Identifier of the defended federation, for a control.
        no_control: Why there is no control, where there should be one and none could be made; else None.
        training: How well trained a control is, where the defence has layers of its own.
        refused: File of an update to the reason why its truth is not scored.
        attacks: Attacks of the audit that are tried here; None for all.
    """

    id: str
    subject: Subject
    site: Site
    entries: tuple[TapeEntry, ...]
    targets: tuple[Target, ...]
    control_of: str | None = None
    no_control: Reason | None = None
    training: tuple[ControlRound, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    attacks: tuple[str, ...] | None = None

    def observations(self) -> list[Observation]:
        """Updates that are attacked, as the tape has them."""
        return [self.subject.tape.load(entry) for entry in self.entries]

    def truth(self, entry: TapeEntry) -> Truth | None:
        """The truth of an update, where it is known and can be compared."""
        source = self.subject.truth
        if source is None or entry.file in self.refused or not source.knows(entry):
            return None
        truth = source.truth(entry)
        return truth if truth is not None and len(truth.images) <= MOST_IMAGES else None

    def true_labels(self, entry: TapeEntry) -> Tensor | None:
        """Classes of the images behind an update, where they are known and can be compared, also of many images."""
        source, refused = self.subject.truth, self.refused.get(entry.file)
        if source is None or not source.knows(entry):
            return None
        if refused is not None and "truth-too-large" not in getattr(refused, "codes", ()):
            return None
        return source.labels(entry)


def open_federations(
    sources: Sequence[TapeSource],
    settings: AuditSettings,
    controls: Path,
    *,
    fresh: bool = True,
    clock: Clock = UNLIMITED,
) -> list[AuditedFederation]:
    """Open the tapes, choose the updates, and write or open the controls; each control follows its federation.

    Args:
        sources: The tapes.
        settings: Settings of the audit.
        controls: Folder for the tapes of controls.
        fresh: Whether controls are written; otherwise those that an earlier run wrote are opened.
        clock: Clock of the audit. When its share for this is over truths are not checked any more, and what that says
            is noted; a control is of as many updates as there is time for, or left out with the reason.

    Raises:
        ValueError: If there is no tape, one cannot be audited, or labels are to be granted and are not known.
        OSError: If a control cannot be written.
    """
    if not sources:
        raise ValueError("expected at least one tape and one victim, got 0 tapes")
    subjects = [open_subject(source, checked=UPDATES) for source in sources]
    _check_labels(subjects, settings)
    federations: list[AuditedFederation] = []
    for number, (source, subject) in enumerate(zip(sources, subjects, strict=True), start=1):
        entries = choose_updates(subject, victims=settings.victims, seed=settings.seed, rounds=settings.rounds)
        with within(clock.left(OPENING)):
            checked = check_truth(subject, entries)
        subject = replace(subject, truth=subject.truth if checked.scored else None, truth_note=checked.note)
        federation = _federation(f"f{number}", subject, source, entries, settings, checked.refused)
        repeated = [entry for entry in entries if entry.file not in checked.refused]
        reason = why_no_control(subject, repeated) if settings.control else because("control-not-wanted")
        needed = settings.control and subject.defence != "none"
        if needed and fresh and not reason:
            reason = _why_no_time(subject, repeated[0], clock)
        control: list[AuditedFederation] = []
        if needed and not reason:
            try:
                with within(clock.left(OPENING)):
                    control = [_control(federation, controls / federation.id, settings, fresh=fresh)]
            except (ValueError, OSError):
                raise
            except Exception as error:  # the clients' model is foreign code, and is trained here
                _logger.warning("there is no undefended control of %s", federation.id, exc_info=True)
                reason = because("control-raised", kind=type(error).__name__, error=error)
        federations += [AuditedFederation(**{**vars(federation), "no_control": reason if needed else None}), *control]
    return federations


def _why_no_time(subject: Subject, entry: TapeEntry, clock: Clock) -> Reason | None:
    """Why there is no time to repeat even one client's training; None where there is."""
    if clock.budget is None:
        return None
    observation = subject.tape.load(entry)
    needed, left = replayed_images(observation) * seconds_of_pass(subject.victim, observation), clock.left(OPENING)
    return None if needed <= left else because("control-needs-time", needed=needed, left=left)


def _control(defended: AuditedFederation, folder: Path, settings: AuditSettings, *, fresh: bool) -> AuditedFederation:
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
        repeated = [entry for entry in defended.entries if entry.file not in defended.refused]
        seconds = SECONDS if settings.budget is None else min(SECONDS, _SHARE * settings.budget)
        write_control(defended.subject, repeated, folder, seconds=seconds)
    subject = open_control(defended.subject, folder)
    source = TapeSource(tape=folder, attacks=defended.attacks)
    control = _federation(f"{defended.id}-control", subject, source, subject.tape.entries, settings)
    return AuditedFederation(
        **{**vars(control), "control_of": defended.id, "training": tuple(control_training(folder))}
    )


def _federation(
    identifier: str,
    subject: Subject,
    source: TapeSource,
    entries: Sequence[TapeEntry],
    settings: AuditSettings,
    refused: Mapping[str, str] | None = None,
) -> AuditedFederation:
    bare = AuditedFederation(
        id=identifier,
        subject=subject,
        site=Site.of(source, stamp(subject.tape, entries)),
        entries=tuple(entries),
        targets=(),
        refused=refused or {},
        attacks=source.attacks,
    )
    targets = tuple(_target(bare, entry, labels=settings.knowledge.labels == "granted") for entry in entries)
    return AuditedFederation(**{**vars(bare), "targets": targets})


def _target(federation: AuditedFederation, entry: TapeEntry, *, labels: bool) -> Target:
    truth = federation.truth(entry) if labels else None
    return Target(
        file=entry.file,
        round=entry.round,
        node=entry.node,
        identity=f"{entry.round}|{node_rank(federation.subject.truth, entry.node)}",
        batch_size=federation.subject.tape.batch_size(entry),
        labels=None if truth is None else tuple(truth.labels.tolist()),
    )


def stamp(tape: Tape, entries: Sequence[TapeEntry]) -> str:
    """Digest of a tape's header and the files of some updates: equal as long as the same would be attacked."""
    files = [(entry.file, entry.sha256, entry.sent.sha256 if entry.sent else "") for entry in entries]
    return hashlib.sha256(json.dumps([repr(tape.header), files]).encode()).hexdigest()[:16]


def _check_labels(subjects: Sequence[Subject], settings: AuditSettings) -> None:
    unknown = [str(subject.tape.path) for subject in subjects if subject.truth is None]
    if settings.knowledge.labels == "granted" and unknown:
        raise ValueError(
            f"labels cannot be granted for {', '.join(unknown)}: without an evaluation.json or a recorded truth the "
            "true labels are not known. Let the attacks recover them (--labels recovered), or give the file "
            "(--evaluation FILE) or the truth (--truth)"
        )
