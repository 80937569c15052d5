"""One federation to be audited: its tape, the victim's model, and what is known for the evaluation."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import nn

from attacker.audit.inputs.guarantees import conditions_on_tape, privacy_claims
from attacker.audit.inputs.noise_source import noise_from_a_seed, privacy_of
from attacker.audit.inputs.nothing_to_attack import NothingToAttack
from attacker.audit.inputs.update_facts import tape_identity
from attacker.audit.record.schema import (
    FederationSummary,
    LabelKnowledge,
    LeftOut,
    LossNamedBy,
    RoundResult,
    Setting,
    TapeSampling,
    UpdateFacts,
    finite,
)
from attacker.audit.truth.base import TruthSource
from attacker.audit.truth.federation import differing_settings
from attacker.audit.truth.open import TruthWish, open_truth
from attacker.reasons import Reason, codes_of
from attacker.victim import Victim
from fl_precode.defences.recognise import contained_defence, recognised, recognised_defence
from fl_precode.defences.registry import apply_defence
from fl_precode.import_path import is_import_path
from fl_precode.loss import Loss, importable_name, load_loss
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.layout import ModelLayout
from fl_precode.observation import CROSS_ENTROPY, Protocol
from fl_precode.tape import Tape
from fl_precode.tape.checked_files import CheckedFiles
from fl_precode.tape.interpretation import announced_by
from fl_precode.tape.notes import with_notes

_logger = logging.getLogger(__name__)

UPDATES: Final = CheckedFiles()
"""Updates that the audit of this process, or a worker of one, has read and checked."""

RESULT_NAME = "result.json"
_UNKNOWN = ("", "unknown")
_STATISTICS = ("running_mean", "running_var")


@contextmanager
def updates_read_once() -> Iterator[None]:
    """While this lasts each update is read and checked once, as far as `UPDATES` has room; then all are let go."""
    try:
        yield
    finally:
        UPDATES.clear()


@dataclass(frozen=True, kw_only=True)
class TapeSource:
    """A tape, and what the auditor adds to what stands in its header.

    Attributes:
        tape: Folder of the tape.
        evaluation: ``evaluation.json`` of the run; None looks for it beside the tape.
        truth: Where the true images are known from, as ``--truth`` takes it, or a function of node id and round; True
            looks beside the tape, False leaves the truth out even when it could be known.
        model: Model spec in place of the header's.
        defence: Defence spec in place of the header's.
        inputs: Input domain in place of the header's.
        loss: What the clients minimise in place of the header's, as `fl_precode.loss.importable_name` takes it.
        attacks: Specs of the attacks that are tried on this federation, among those that the audit names; None for all
            of them.
    """

    tape: Path
    evaluation: Path | None = None
    truth: TruthWish = True
    model: str | None = None
    defence: str | None = None
    inputs: InputSpec | None = None
    loss: Loss | str | None = None
    attacks: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An opened tape with its victim.

    Attributes:
        tape: The tape.
        victim: Public knowledge for the attacks.
        defence: Defence spec, ``unknown`` where neither tape nor auditor say.
        undefended: The same model without the defence, for comparing costs.
        truth: Knows true images, or None.
        truth_note: Why there is no truth, or none of some updates; empty when there is.
        result: Content of the run's ``result.json``, empty without one.
        loss_named_by: Who named the clients' loss; None where none can be replayed.
    """

    tape: Tape
    victim: Victim
    defence: str
    undefended: nn.Module
    truth: TruthSource | None
    truth_note: Reason
    result: Mapping[str, Any]
    loss_named_by: LossNamedBy | None = None


def open_subject(source: TapeSource, *, checked: CheckedFiles | None = None) -> Subject:
    """Open a tape and build the model that its clients trained.

    Args:
        source: The tape.
        checked: Where its updates are kept once they were read; None reads them again each time.

    Raises:
        NothingToAttack: If the model or the images' shape are neither in its header nor given.
        ValueError: If it is no tape (`TapeError`), model or defence do not exist or do not fit, the loss cannot be
            imported or replayed, or the notes beside the tape or the evaluation file are wrong.
        OSError: If an evaluation file was named and cannot be read.
        RuntimeError: If the truth needs a data set that is not on this machine.
    """
    tape = Tape(source.tape, checked=checked)
    header = with_notes(tape.header, source.tape.absolute())
    if source.loss is not None:
        header = replace(header, protocol=replace(header.protocol, loss=importable_name(source.loss)))
    tape.header = header
    model, inputs = source.model or header.model, source.inputs or header.inputs
    if model in _UNKNOWN or inputs is None:
        missing = ["the model (--model package.module:factory)"] if model in _UNKNOWN else []
        missing += ["the images (--input 3x32x32 --classes 10)"] if inputs is None else []
        raise NothingToAttack(
            f"the tape {source.tape} does not say {' and '.join(missing)}; give what is missing",
            tape=source.tape,
            mends=[*(["model"] if model in _UNKNOWN else []), *(["input"] if inputs is None else [])],
        )
    plain = build_model(model, inputs, seed=0, strict=False)  # weights come with each update
    defence, defended = _defended(source.defence or header.defence, plain, inputs, tape)
    tape.layout = ModelLayout.of(defended)
    protocol = announced_by(tape.entries[0], header.protocol) if tape.entries else header.protocol
    victim = Victim(model=defended, inputs=inputs, name=model, loss=_announced_loss(protocol))
    _take_constants(victim.model, tape)
    truth, note = open_truth(tape, inputs, source.truth, source.evaluation)
    return Subject(
        tape=tape,
        victim=victim,
        defence=defence,
        undefended=plain,
        truth=truth,
        truth_note=note,
        result=_read_result(source, tape),
        loss_named_by=_loss_named_by(source, protocol, victim),
    )


def _loss_named_by(source: TapeSource, protocol: Protocol, victim: Victim) -> LossNamedBy | None:
    if victim.why_no_loss is not None:
        return None
    if source.loss is not None:
        return "auditor"
    return "tape" if protocol.loss == CROSS_ENTROPY or victim.loss is not None else "nobody"


def _announced_loss(protocol: Protocol) -> Loss | None:
    """What the clients minimise, where it was announced by a name that can be imported; None for cross-entropy."""
    announced = protocol.loss
    return None if announced is None or not is_import_path(announced) else load_loss(announced)


def _take_constants(model: nn.Module, tape: Tape) -> None:
    """Give the model the floating-point buffers that were sent first, such as what it normalises its input by.

    Traces of the model run with its own; running statistics, which training changes, come with each update.
    """
    sent = tape.first_sent()
    assert tape.layout is not None
    matched = tape.layout.match({name: tuple(value.shape) for name, value in sent.items()})
    if matched is None:
        return
    buffers = dict(model.named_buffers())
    for name, mine in matched.names.items():
        buffer = buffers.get(mine)
        if buffer is not None and buffer.is_floating_point() and mine.rpartition(".")[2] not in _STATISTICS:
            buffer.copy_(sent[name])


def _defended(announced: str, plain: nn.Module, inputs: InputSpec, tape: Tape) -> tuple[str, nn.Module]:
    """The defence and the defended model; a bottleneck of ours that nobody announced is recognised."""
    if announced not in _UNKNOWN:
        return announced, apply_defence(announced, plain, inputs)
    contained = contained_defence(plain)
    defence = contained or recognised_defence({name: tuple(value.shape) for name, value in tape.first_sent().items()})
    if defence is None:
        return "unknown", apply_defence("none", plain, inputs)
    try:
        defended = apply_defence("none" if contained else defence, plain, inputs)
    except ValueError as error:
        _logger.warning("%s: a bottleneck is on the tape that the model cannot have: %s", tape.path, error)
        return "unknown", apply_defence("none", plain, inputs)
    tape.assumptions += (recognised(defence),)
    return defence, defended


def _read_result(source: TapeSource, tape: Tape) -> Mapping[str, Any]:
    path = (source.evaluation or source.tape.absolute()).parent / RESULT_NAME
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        if content["format"] != "fl-precode-result" or content["version"] != 1:
            raise ValueError("it has another format or version")
        if differ := differing_settings(tape.header.settings, content["settings"]):
            raise ValueError(f"it is from another run: {'; '.join(differ)}")
        for row in content["rounds"]:
            _round_result(row)
            _left_out_of(row)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        # Only accuracy and left-out replies come from here; the report says that they are not known.
        _logger.warning("%s is not used: %s: %s", path, type(error).__name__, error)
        return {}
    return content


def summarise_federation(
    subject: Subject,
    identifier: str,
    labels: LabelKnowledge,
    doubts: Iterable[Reason],
    facts: UpdateFacts | None = None,
    protocol: Protocol | None = None,
) -> FederationSummary:
    """The record's entry of one federation, after its attacks (which may have found problems of the tape).

    ``protocol`` is what was found out about the attacked updates; without it the tape's header has it.
    """
    tape, inputs = subject.tape, subject.victim.inputs
    rounds = [_round_result(row) for row in subject.result.get("rounds", [])]
    sizes = {tape.batch_size(entry) for entry in tape.entries}
    left_out = _left_out(subject)
    settings = _settings(subject)
    dataset = settings.get("dataset")
    protocol = protocol or tape.header.protocol
    conditions = conditions_on_tape(tape, protocol, subject.result, _parameters(subject.victim.model))
    return FederationSummary(
        id=identifier,
        tape=str(tape.path.absolute()),
        model=subject.victim.name,
        defence=subject.defence,
        dataset=str(dataset) if dataset else None,
        shape=inputs.shape,
        classes=inputs.classes,
        protocol=protocol.name,
        local_steps=protocol.local_steps,
        local_epochs=protocol.local_epochs,
        learning_rate=finite(protocol.learning_rate),
        loss=None if (criterion := subject.victim.criterion) is None else criterion.name,
        loss_named_by=subject.loss_named_by,
        batch_size=sizes.pop() if len(sizes) == 1 else None,
        **_counts(tape),
        accuracy=rounds,
        final_accuracy=rounds[-1].accuracy if rounds else None,
        final_loss=rounds[-1].loss if rounds else None,
        parameters=_parameters(subject.victim.model),
        parameters_undefended=_parameters(subject.undefended),
        payload_bytes=_payload_bytes(subject.victim.model),
        payload_bytes_undefended=_payload_bytes(subject.undefended),
        left_out=left_out,
        tape_problems=list(tape.problems),
        doubts=list(map(str, doubts)),
        doubt_codes=codes_of(doubts),
        lost=subject.result.get("tape_lost"),
        truth_known=subject.truth is not None,
        truth_note=str(subject.truth_note),
        truth_codes=list(subject.truth_note.codes),
        labels=labels,
        settings=settings,
        tape_identity=tape_identity(tape),
        facts=facts,
        noise_from_seed=noise_from_a_seed(subject.defence, tape.header.settings),
        privacy=privacy_of(subject.defence, tape.header.settings, subject.result),
        claims=privacy_claims(subject.defence, conditions, tape.header.settings),
        statistics=sum(name.endswith(".running_mean") for name, _ in subject.victim.model.named_buffers()),
    )


def _counts(tape: Tape) -> dict[str, Any]:
    """How much is on a tape, and of how much."""
    return {
        "rounds": len({entry.round for entry in tape.entries}),
        "clients": len({entry.node for entry in tape.entries}),
        "updates": len(tape.entries),
        "sampled": TapeSampling(seen=tape.updates_seen, by=tape.sampled_by) if tape.samplings else None,
    }


def _round_result(row: Mapping[str, Any]) -> RoundResult:
    return RoundResult(
        round=row["round"], accuracy=finite(row["accuracy"]), loss=finite(row["loss"]), usable=row["usable"]
    )


def _left_out(subject: Subject) -> list[LeftOut]:
    """Failures that the tape names, and replies that the server left out for other reasons."""
    failures = [
        LeftOut(round=failure.round, node=failure.node, reason=failure.reason) for failure in subject.tape.failures
    ]
    named = {(failure.round, failure.node) for failure in failures}
    server = [left for row in subject.result.get("rounds", []) for left in _left_out_of(row)]
    return failures + [left for left in server if (left.round, left.node) not in named]


def _left_out_of(row: Mapping[str, Any]) -> list[LeftOut]:
    return [LeftOut(round=row["round"], node=str(left["node"]), reason=left["reason"]) for left in row["left_out"]]


def _settings(subject: Subject) -> dict[str, Setting]:
    public: dict[str, Setting] = dict(subject.tape.header.settings)
    return public if subject.truth is None else {**public, **subject.truth.settings}


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _payload_bytes(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())
