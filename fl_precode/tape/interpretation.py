"""Turns what is on a tape into observations: which arrays are which tensors, what they mean, how many images they hold.

Nothing is worked out when the tape is written. What was announced, what the notes beside the tape say and what the
arrays themselves show decide when it is read; every guess becomes a named assumption of the observation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor

from fl_precode.assumption import Assumption
from fl_precode.defences.registry import gradient_defence
from fl_precode.models.layout import MatchedArrays, ModelLayout
from fl_precode.observation import Observation, Protocol
from fl_precode.tape.announced_settings import announced_settings, examples_of
from fl_precode.tape.format import StoredRecord, TapeEntry, TapeError, TapeHeader
from fl_precode.tape.optimiser_traces import optimiser_trace
from fl_precode.tape.update_meaning import Meaning, MeaningGuess, meaning_of, rank_of, steps_counted

Tensors = Mapping[str, Tensor]
Load = Callable[[StoredRecord], Tensors]

_SHOWN: Final = 4
"""Names that a sentence lists."""

ONE_PASS = Assumption(
    code="one-pass",
    sentence="each client is taken to have used its announced number of examples, all of them, as one batch",
    doubt="a client's code that goes over its images several times, or in several batches",
    line="[protocol]\nlocal-epochs = 1\nbatch-size = 8",
)
ONE_EPOCH = Assumption(
    code="one-epoch",
    sentence="the clients are taken to have trained for one epoch",
    doubt="a client's code that goes over its images several times, or over a part of them",
    line="[protocol]\nlocal-epochs = 1",
)
BATCHES_COUNTED = Assumption(
    code="examples-are-batches",
    sentence="the clients' number of examples equals their number of local steps, so that it is taken to count batches",
    doubt="local batches of one image each",
    line="[protocol]\nbatch-size = 8",
)
_MORE_IMAGES = Assumption(
    code="examples-are-batches",
    sentence="the update of one step has a higher rank than the one example that the client named allows, so that its "
    "number of examples is taken to count batches, and the number of images is not known",
    doubt="noise or an optimiser's rounding in an update of one image",
    line='examples = "batches"\n[protocol]\nbatch-size = 8',
)


@dataclass(frozen=True, kw_only=True)
class Interpretation:
    """How a tape is read.

    Attributes:
        header: Header of the tape, with what stands in the notes put in.
        layout: Layout of the model, where it is known; without it names, shapes and kinds are taken as they were
            recorded.
        assumptions: What was guessed about the whole tape.
    """

    header: TapeHeader
    layout: ModelLayout | None = None
    assumptions: tuple[Assumption, ...] = ()

    def observation(self, entry: TapeEntry, load: Load) -> Observation:
        """One reply as an observation.

        Args:
            entry: Its line.
            load: Gives the tensors of a stored record by name.

        Raises:
            TapeError: If it does not fit what was sent.
        """
        if entry.sent is None:
            raise TapeError(f"{entry.file}: what the server sent in round {entry.round} is not on the tape")
        aligned = self._aligned(entry, entry.sent, load)
        update, assumed = self._update(entry, aligned)
        moved = _moved(update, self.layout)
        parameters = {name: aligned.sent[name] for name in update if name in moved}
        frozen = frozenset(name for name in aligned.parameters if name not in parameters)
        buffers = {name: value for name, value in aligned.sent.items() if name not in parameters}
        protocol, batch_size, guesses = self._protocol(entry, aligned, update)
        if assumed.kind == "weights":
            protocol, more = self._optimiser(protocol, batch_size, {name: update[name] for name in parameters})
            guesses += more
        return Observation(
            parameters=parameters,
            buffers=buffers,
            update={name: update[name] for name in parameters},
            kind=assumed.kind,
            batch_size=batch_size,
            protocol=protocol,
            round=entry.round,
            node=entry.node,
            frozen=frozen,
            assumptions=(*self.assumptions, *aligned.assumptions, *assumed.assumptions, *guesses),
            returned=_returned(aligned, assumed),
        )

    def _aligned(self, entry: TapeEntry, sent: TapeEntry, load: Load) -> _Aligned:
        if self.layout is None:
            return _as_recorded(entry, load(sent), load(entry))
        before, how_sent = _fitting(sent, self.layout, load)
        after, how_received = _fitting(entry, self.layout, load, preferred=before.record)
        if how_sent is None or how_received is None:
            return _as_recorded(entry, load(sent), load(entry))
        return _by_layout(entry, self.layout, before.tensors, how_sent, after.tensors, how_received)

    def _update(self, entry: TapeEntry, aligned: _Aligned) -> tuple[Tensors, _Kind]:
        names = [name for name in sorted(aligned.parameters) if name in aligned.received]
        for name in names:
            _check_array(entry, name, aligned)
        sent = {name: aligned.sent[name] for name in names}
        received = {name: aligned.received[name] for name in names}
        if entry.kind == "gradient":
            return received, _Kind("gradient")
        guess = self._meaning(entry, sent, received)
        assumptions = _meaning_assumed(guess) if self.header.reply == "unknown" else ()
        match guess.meaning:
            case "weights":
                return {name: received[name] - sent[name] for name in names}, _Kind("weights", assumptions)
            case "gradient":
                return received, _Kind("gradient", assumptions)
            case "difference":
                return received, _Kind("weights", assumptions, of_change=1)
        return {name: -received[name] for name in names}, _Kind("weights", assumptions, of_change=-1)

    def _meaning(self, entry: TapeEntry, sent: Tensors, received: Tensors) -> MeaningGuess:
        said: Mapping[str, Meaning] = {"weights": "weights", "difference": "difference", "gradient": "gradient"}
        if self.header.reply in said:
            return MeaningGuess(said[self.header.reply], "the notes say so")
        floats = {name: value for name, value in received.items() if value.is_floating_point()}
        if self.layout is None or not floats:
            return MeaningGuess("weights", "nothing else was announced")
        return meaning_of(
            {name: sent[name] for name in floats},
            floats,
            classifier_bias=self.layout.classifier_bias,
            rate=announced_by(entry, self.header.protocol).learning_rate,
            images=examples_of({**entry.metrics, **entry.configs}, entry.weighted_by),
        )

    def _protocol(
        self, entry: TapeEntry, aligned: _Aligned, update: Tensors
    ) -> tuple[Protocol, int | None, tuple[Assumption, ...]]:
        protocol = announced_by(entry, self.header.protocol)
        examples = examples_of({**entry.metrics, **entry.configs}, entry.weighted_by)
        if self.layout is None or entry.kind == "gradient":
            return protocol, _announced_images(entry, protocol, examples), ()
        counted = steps_counted(aligned.sent, aligned.received)
        # Noise and pruning have any rank: only where the counters make it likely that batches were counted.
        if self.header.examples == "unknown" and counted == examples == 1 and self._least_images(aligned, update) > 1:
            return replace(protocol, local_steps=1), entry.batch_size, (_MORE_IMAGES,)
        return _worked_out(self.header, entry, protocol, examples, counted)

    def _optimiser(
        self, protocol: Protocol, images: int | None, update: Tensors
    ) -> tuple[Protocol, tuple[Assumption, ...]]:
        """The protocol with the optimiser that left its traces in an update, where nobody named one."""
        announced = self.header.defence
        defended = announced != "unknown" and gradient_defence(announced) is not None  # signs and levels are not Adam's
        if self.layout is None or protocol.optimiser is not None or defended:
            return protocol, ()
        steps = protocol.local_steps if images is None else protocol.steps_on(images)
        found = optimiser_trace(update, steps=steps, learning_rate=protocol.learning_rate)
        if found is None or found.optimiser is None:
            return protocol, ()
        return replace(protocol, optimiser=found.optimiser), (_by_adam(found.evidence),)

    def _least_images(self, aligned: _Aligned, update: Tensors) -> int:
        """Images that one step must have had, by the rank of the classifier's update."""
        name = None if self.layout is None else self.layout.classifier_weight
        change = None if name is None else update.get(name)
        if change is None or change.dim() != 2 or not change.is_floating_point():
            return 0
        return rank_of(aligned.sent[name or ""], change)


@dataclass(frozen=True)
class _Kind:
    """What an update is.

    Attributes:
        kind: For the observation.
        assumptions: What was guessed.
        of_change: 1 where the reply is what was trained minus what was sent, -1 where it is the opposite, 0 otherwise.
    """

    kind: Any
    assumptions: tuple[Assumption, ...] = ()
    of_change: int = 0


@dataclass(frozen=True, kw_only=True)
class _Aligned:
    """What was sent and received under the model's names.

    Attributes:
        sent: Everything of the model, by name.
        received: What was returned, by name.
        parameters: Names in ``sent`` that are parameters.
        assumptions: What was guessed on the way.
    """

    sent: Tensors
    received: Tensors
    parameters: frozenset[str]
    assumptions: tuple[Assumption, ...] = ()


@dataclass(frozen=True)
class _Chosen:
    record: str
    tensors: Tensors


def _fitting(
    entry: TapeEntry, layout: ModelLayout, load: Load, *, preferred: str = ""
) -> tuple[_Chosen, MatchedArrays | None]:
    """The record of a message that holds the model's tensors: the one that counts as weights, else the first fit."""
    records: list[StoredRecord] = sorted(
        [entry, *entry.extras], key=lambda one: one.record != (preferred or entry.record)
    )
    first = None
    for one in records:
        tensors = load(one)
        first = first or _Chosen(one.record, tensors)
        found = layout.match({name: tuple(value.shape) for name, value in tensors.items()})
        if found is not None:
            return _Chosen(one.record, tensors), found
    assert first is not None
    return first, None


def _as_recorded(entry: TapeEntry, sent: Tensors, received: Tensors) -> _Aligned:
    extra = sorted(received.keys() - sent.keys())
    parameters = frozenset(name for name in sent if name not in entry.buffers)
    absent = sorted(parameters - received.keys())
    if extra or len(absent) == len(parameters):
        raise TapeError(f"{entry.file}: other arrays than the server sent; absent: {absent}, not sent: {extra}")
    return _Aligned(sent=sent, received=received, parameters=parameters)


def _by_layout(
    entry: TapeEntry,
    layout: ModelLayout,
    sent: Tensors,
    how_sent: MatchedArrays,
    received: Tensors,
    how_received: MatchedArrays,
) -> _Aligned:
    before = {own: sent[name] for name, own in how_sent.names.items() if own not in layout.tied}
    whole = {name for name in layout.parameters if not _has_gradients(layout.values[name])}
    aside = layout.tied | whole  # parameters of whole numbers are constants: no step changes them
    after = {own: received[name] for name, own in how_received.names.items() if own not in aside}
    built = {name: layout.values[name] for name in layout.parameters if name not in before}
    assumptions = []
    if built:
        assumptions.append(_taken_from_the_factory(sorted(built)))
    if "order" in (how_sent.how, how_received.how):
        assumptions.append(
            Assumption(
                code="names-by-order",
                sentence="the arrays have no names and are taken in the order of the model's state dict, whose shapes "
                "they have",
                doubt="layers of equal shape in another order",
            )
        )
    if unknown := [*how_sent.unknown, *how_received.unknown]:
        assumptions.append(
            Assumption(
                code="arrays-set-aside",
                sentence=f"arrays that the model does not have are set aside: {_listed(unknown)}",
                doubt="a layer of the model that the factory builds under another name",
            )
        )
    given = frozenset(entry.buffers) if entry.buffers_given else frozenset[str]()
    parameters = frozenset(layout.parameters) - given
    return _Aligned(sent={**built, **before}, received=after, parameters=parameters, assumptions=tuple(assumptions))


def _has_gradients(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def _taken_from_the_factory(names: list[str]) -> Assumption:
    return Assumption(
        code="weights-of-the-factory",
        sentence=f"weights that the server did not send are taken as the factory builds them: {_listed(names)}",
        doubt="a factory that draws them at random, or clients that hold weights of their own",
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _check_array(entry: TapeEntry, name: str, aligned: _Aligned) -> None:
    sent, received = aligned.sent[name], aligned.received[name]
    if received.shape != sent.shape:
        raise TapeError(
            f"{entry.file}: expected {name!r} of shape {tuple(sent.shape)}, as it was sent, got {tuple(received.shape)}"
        )
    if not all(one.is_floating_point() or one.is_complex() for one in (sent, received)):
        raise TapeError(
            f"{entry.file}: expected floating-point {name!r}; name arrays that are no parameters as buffers"
        )


def _returned(aligned: _Aligned, assumed: _Kind) -> dict[str, Tensor]:
    """Buffers after the client's work; whoever sends changes of the weights sends those of the buffers with them."""
    values = {
        name: value
        for name, value in aligned.received.items()
        if name in aligned.sent and name not in aligned.parameters and value.shape == aligned.sent[name].shape
    }
    if not assumed.of_change:
        return values
    return {name: aligned.sent[name] + assumed.of_change * value for name, value in values.items()}


def _moved(update: Tensors, layout: ModelLayout | None) -> frozenset[str]:
    """Parameters with a change: those that are zero throughout, while others are not, were not trained."""
    if layout is None:
        return frozenset(update)
    moved = frozenset(name for name, value in update.items() if bool(value.any()))
    return moved or frozenset(update)


def _meaning_assumed(guess: MeaningGuess) -> tuple[Assumption, ...]:
    if guess.meaning == "weights":
        return ()
    words = {
        "difference": "the change of the weights, trained minus sent",
        "negative difference": "the change of the weights, sent minus trained",
        "gradient": "gradients",
    }[guess.meaning]
    line = {"gradient": 'reply = "gradient"', "difference": 'reply = "difference"'}.get(guess.meaning, "")
    return (
        Assumption(
            code="reply-guessed",
            sentence=f"the clients' arrays are taken for {words}: {guess.because}",
            doubt="a client's code that sends something else",
            line=line,
        ),
    )


def announced_by(entry: TapeEntry, protocol: Protocol) -> Protocol:
    """The protocol with what the server's message and the reply say where the tape and its notes say nothing."""
    said: dict[str, Any] = {}
    for records in (entry.asked, entry.configs, entry.metrics):
        for record in records.values():
            said = {**announced_settings(record).fields, **said}
    return replace(protocol, **{name: value for name, value in said.items() if getattr(protocol, name) is None})


def _announced_images(entry: TapeEntry, protocol: Protocol, examples: int | None) -> int | None:
    if examples is None:
        return entry.batch_size
    images = examples if entry.kind == "gradient" else protocol.images_behind(examples)
    return entry.batch_size if images is None else images


def _worked_out(
    header: TapeHeader, entry: TapeEntry, protocol: Protocol, examples: int | None, counted: int | None
) -> tuple[Protocol, int | None, tuple[Assumption, ...]]:
    """Protocol, images behind the update and assumptions, from what was announced and what counters show."""
    assumptions: list[Assumption] = []
    if counted is not None and protocol.local_steps is None and protocol.steps_on(examples or 0) is None:
        protocol = replace(protocol, local_steps=counted)
        assumptions.append(_steps_of_counters(counted))
    batches = header.examples == "batches"
    if header.examples == "unknown" and examples is not None and counted == examples and examples > 1:
        batches = True
        assumptions.append(BATCHES_COUNTED)
    if batches and examples is not None:
        examples = None if protocol.batch_size is None else examples * protocol.batch_size
    images = _announced_images(entry, protocol, examples)
    if images is not None or examples is None:
        return protocol, images, tuple(assumptions)
    if protocol.local_steps is not None:  # a number of steps of unknown size
        size = -(-examples // protocol.local_steps)
        one_epoch = replace(protocol, batch_size=protocol.batch_size or size)
        return one_epoch, examples, (*assumptions, ONE_EPOCH)
    if protocol.batch_size is not None:
        return replace(protocol, local_epochs=1), examples, (*assumptions, ONE_EPOCH)
    return protocol, examples, (*assumptions, ONE_PASS)


def _by_adam(evidence: str) -> Assumption:
    return Assumption(
        code="optimiser-guessed",
        sentence=f"the clients are taken to train by Adam or one of its kind: {evidence}",
        doubt="an optimiser in the client's code that sums gradients",
        line='[protocol]\noptimiser = "adam"  # or "sgd"',
    )


def _steps_of_counters(steps: int) -> Assumption:
    return Assumption(
        code="steps-counted",
        sentence=f"the clients are taken to have made {steps} local step{'' if steps == 1 else 's'}, as the counters "
        "of their batch normalisation say",
        doubt="forward passes in training mode without a step",
        line=f"[protocol]\nlocal-steps = {steps}",
    )
