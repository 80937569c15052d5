"""The undefended control: what the same clients would have sent without their defence, at the same weights.

Evaluation only: it needs the true images. If attacks do not reconstruct images from the control either, their failure
on the defended federation says nothing about the defence.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attacker.audit.federations.control_training import MOST_IMAGES, SECONDS, ControlTraining
from attacker.audit.inputs.tape_source import UPDATES, Subject
from attacker.audit.record.schema import ControlRound
from attacker.audit.truth.base import SameClients, Truth, TruthSource, known_scale
from attacker.gradients.observed import steps_behind
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.local_training import batch_gradient, local_training
from fl_precode.loss import Loss, described
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation
from fl_precode.private_file import write_private
from fl_precode.tape import Tape, TapeEntry, TapeWriter

_GUARDS = ("bottleneck", "dropout")


@dataclass(frozen=True, kw_only=True)
class _Training:
    """How the federation's clients train, from its run configuration or from what they announce."""

    kind: Literal["gradient", "weights"]
    learning_rate: float
    momentum: float
    weight_decay: float
    optimiser: str
    batch_norm: str

    @classmethod
    def of(cls, subject: Subject, observation: Observation) -> _Training:
        assert subject.truth is not None
        settings = subject.truth.settings
        return cls._configured(settings) if settings else cls._announced(observation)

    @classmethod
    def _announced(cls, observation: Observation) -> _Training:
        """What was not announced is taken as plain SGD has it, as attacks take it."""
        return cls(
            kind=observation.kind,
            learning_rate=observation.protocol.learning_rate or 0.0,
            momentum=observation.protocol.momentum or 0.0,
            weight_decay=observation.protocol.weight_decay or 0.0,
            optimiser=observation.protocol.optimiser or "sgd",
            batch_norm=observation.protocol.batch_norm or "batch",
        )

    @classmethod
    def _configured(cls, settings: Mapping[str, Any]) -> _Training:
        return cls(
            kind="gradient" if settings["protocol"] == "fedsgd" else "weights",
            learning_rate=settings["learning-rate"],
            momentum=settings["momentum"],
            weight_decay=settings["weight-decay"],
            optimiser=settings["local-optimiser"],
            batch_norm=settings["batch-norm"],
        )


def why_no_control(subject: Subject, entries: Sequence[TapeEntry]) -> Reason | None:
    """Why these updates cannot have an undefended control, or need none; None when they can.

    Args:
        subject: The defended federation.
        entries: Updates that are attacked.
    """
    if subject.defence == "none":
        return because("control-needs-defence")
    if subject.defence == "unknown":
        return because("control-needs-defence.unknown")
    truth = subject.truth
    if truth is None or not any(map(truth.knows, entries)):
        return because("control-needs-truth")
    names = base_names(subject.victim.model)
    base = subject.undefended.state_dict()
    if set(names.values()) != base.keys():
        return because("control-needs-weights")
    if truth.settings:
        return None
    reasons = (_why_not_repeated(subject, truth, entry) for entry in entries if truth.knows(entry))
    return next(filter(None, reasons), None)


def _why_not_repeated(subject: Subject, truth: TruthSource, entry: TapeEntry) -> Reason | None:
    """Why a foreign client's training cannot be repeated on its images; None when it can."""
    observation = subject.tape.load(entry)
    if known_scale(truth, subject.victim.inputs) is None:
        return because("control-needs-training")
    if observation.frozen:
        return because("control-needs-training.frozen")
    if observation.kind == "gradient":
        return None
    if observation.protocol.learning_rate is None:
        return because("control-needs-training.rate")
    steps, recorded = steps_behind(observation), len(truth.steps(entry))
    if steps is None:
        return because("control-needs-training.steps")
    if steps != recorded:
        return because("control-needs-training.batches", steps=steps, recorded=recorded)
    return None


def write_control(
    subject: Subject, entries: Sequence[TapeEntry], folder: Path, *, seconds: float = SECONDS
) -> list[ControlRound]:
    """Write the control as a tape: the same rounds and nodes, no defence.

    Where the defence has layers of its own, what is left without them is trained until it is as well trained as the
    defended model.

    Args:
        subject: The defended federation; `why_no_control` has nothing against it.
        entries: Updates to repeat; those whose images are not known are left out.
        folder: Folder of the new tape; absent or empty.
        seconds: For that training.

    Returns:
        How well trained it is in each round; empty where the defence has no layers of its own.

    Raises:
        ValueError: If the folder is not empty, or an update cannot be read.
        OSError: If the tape could not be written whole.
    """
    assert subject.truth is not None
    header = subject.tape.header
    known = [entry for entry in entries if subject.truth.knows(entry)]
    training = _Training.of(subject, subject.tape.load(known[0]))
    writer = TapeWriter(
        folder,
        replace(
            header,
            model=subject.victim.name,
            defence="none",
            kind=training.kind,
            inputs=subject.victim.inputs,
            protocol=replace(header.protocol, defence="none", loss=_loss_name(subject)),
            settings={**header.settings, "defence": "none"},
        ),
    )
    names = base_names(subject.victim.model)
    inputs = known_scale(subject.truth, subject.victim.inputs) or subject.victim.inputs
    own_layers = len(names) < len(subject.victim.model.state_dict())
    trainer = _trainer(subject, inputs, training.batch_norm, seconds) if own_layers else None
    models: dict[int, nn.Module] = {}
    # In the order of training: the control of a round goes on from that of the last one.
    for entry in sorted(known, key=lambda update: update.round):
        if models and time_is_up():
            break  # a control of fewer updates is one, too
        observation = subject.tape.load(entry)
        first = entry.round not in models
        if first:
            cut = undefended(subject.undefended, observation, names)
            models = {entry.round: cut if trainer is None else trainer.at(observation, cut)}
        model = models[entry.round]
        buffers = [
            name for name, _ in model.named_buffers() if name in {names.get(buffer) for buffer in observation.buffers}
        ]
        if first:
            writer.write_round(entry.round, _arrays(model, buffers))
        reply, worked = _reply(model, subject.truth, entry, inputs, training, subject.victim.criterion)
        arrays = {name: value.detach().numpy() for name, value in reply.items()}
        # Running statistics are returned as the client's work left them, where its own did.
        after = _arrays(worked if observation.returned else model, buffers)
        arrays |= {name: value for name, value in after.items() if name in buffers}
        writer.write_observation(entry.round, entry.node, arrays, batch_size=observation.batch_size, buffers=buffers)
    if writer.lost:
        raise OSError(f"the undefended control could not be written to {folder}; is the disk full?")
    rounds = [] if trainer is None else trainer.rounds
    write_private(
        _beside(folder), json.dumps([control_round.model_dump() for control_round in rounds], indent=1).encode()
    )
    return rounds


def _loss_name(subject: Subject) -> str | None:
    """By which the control's tape is replayed under the same loss."""
    loss = subject.victim.loss
    return subject.tape.header.protocol.loss if loss is None else described(loss)


def control_training(folder: Path) -> list[ControlRound]:
    """How well trained a control is that `write_control` wrote to this folder; empty where it did not say."""
    try:
        return [ControlRound.model_validate(entry) for entry in json.loads(_beside(folder).read_bytes())]
    except FileNotFoundError:
        return []


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.training.json")


def _trainer(subject: Subject, inputs: InputSpec, batch_norm: str, seconds: float) -> ControlTraining:
    """What trains the control on, with all images that the evaluation knows."""
    truth = subject.truth
    assert truth is not None
    known = truth.training_images()
    if known is None:
        batches = [truth.truth(entry) for entry in subject.tape.entries[:MOST_IMAGES] if truth.knows(entry)]
        each = [batch for batch in batches if batch is not None]
        known = Truth(
            images=torch.cat([batch.images for batch in each]), labels=torch.cat([batch.labels for batch in each])
        )
    return ControlTraining(
        defended=subject.victim.model,
        known=known,
        inputs=inputs,
        batch_norm=batch_norm,
        loss=subject.victim.criterion,
        seconds=seconds,
    )


def open_control(subject: Subject, folder: Path) -> Subject:
    """The control as a federation of its own, with the truth of the defended one."""
    return Subject(
        tape=Tape(folder, checked=UPDATES),
        victim=Victim(
            model=subject.undefended,
            inputs=subject.victim.inputs,
            name=subject.victim.name,
            loss=subject.victim.loss,
        ),
        defence="none",
        undefended=subject.undefended,
        truth=None if subject.truth is None else SameClients(subject.truth, subject.tape.entries),
        truth_note=subject.truth_note,
        result={},
        loss_named_by=subject.loss_named_by,
    )


def base_names(defended: nn.Module) -> dict[str, str]:
    """Names of a defended model's state and the names without the defence; what belongs to the defence is left out.

    `fl_precode.extend` puts a layer ``fc`` and its guard into a Sequential, as ``fc.layer`` and ``fc.bottleneck``.
    """
    guards = {name: kind for name, module in defended.named_modules() if (kind := _guard(module))}
    plain_names: dict[str, str] = {}
    for name in defended.state_dict():
        base: str | None = name
        # The deepest first: a guard in front of a module lies outside of those within it.
        for place in sorted(guards, key=len, reverse=True):
            base = None if base is None else _without(base, place, guards[place])
        if base is not None:
            plain_names[name] = base
    return plain_names


def undefended(plain: nn.Module, observation: Observation, names: Mapping[str, str]) -> nn.Module:
    """A copy of the undefended model with the weights and buffers that the server sent; what was frozen stays so."""
    model = deepcopy(plain)
    sent = {**observation.parameters, **observation.buffers}
    model.load_state_dict({names[name]: value for name, value in sent.items() if name in names}, strict=False)
    frozen = {names[name] for name in observation.frozen if name in names}
    for name, value in model.named_parameters():
        if name in frozen:
            value.requires_grad_(False)
    return model


def _guard(module: nn.Module) -> str:
    """The kind of guard, where a Sequential was made by `fl_precode.extend`."""
    children = list(dict(module.named_children()))
    ours = isinstance(module, nn.Sequential) and len(children) == 2 and children[1] == "layer"
    return children[0] if ours and children[0] in _GUARDS else ""


def _without(name: str, place: str, guard: str) -> str | None:
    prefix = f"{place}." if place else ""
    if name.startswith(f"{prefix}{guard}."):
        return None
    inside = f"{prefix}layer."
    return prefix + name[len(inside) :] if name.startswith(inside) else name


def _arrays(model: nn.Module, buffers: Sequence[str]) -> dict[str, Any]:
    kept = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if n in buffers}}
    return {name: value.detach().cpu().numpy() for name, value in kept.items()}


def _reply(
    model: nn.Module,
    truth: TruthSource,
    entry: TapeEntry,
    inputs: InputSpec,
    training: _Training,
    loss: Loss | None,
) -> tuple[dict[str, Tensor], nn.Module]:
    """What the client sends, its gradient or its weights after local training, and its model after the work.

    The model is left as it is.
    """
    work = deepcopy(model)
    if training.kind == "gradient":
        whole = truth.truth(entry)
        assert whole is not None
        batch = inputs.normalise(whole.images), whole.labels
        return batch_gradient(work, batch, batch_norm=training.batch_norm, loss=loss)[0], work
    batches = [(inputs.normalise(step.images), step.labels) for step in truth.steps(entry)]
    local_training(
        work,
        batches,
        learning_rate=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        optimiser=training.optimiser,
        batch_norm=training.batch_norm,
        loss=loss,
    )
    return {name: value.detach() for name, value in work.named_parameters()}, work
