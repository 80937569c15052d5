"""The command ``notes``: what is known, assumed and missing about a tape, and the lines that settle it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from attacker.cli.options import Classes, Defence, Images, Loss, Mean, Model, Std, find_own_models, parse_inputs
from attacker.cli.reasons import (
    NOTHING_ATTACKED,
    assumption_lines,
    columns,
    end_of_nothing,
    mend_lines,
    not_run,
    reason_lines,
    shown,
    wrapped,
)

if TYPE_CHECKING:
    from attacker.audit.federations.federation import AuditedFederation
    from attacker.audit.inputs.tape_source import TapeSource
    from attacker.audit.record.schema import PlannedAttack
    from fl_precode.models.input_spec import InputSpec
    from fl_precode.observation import Observation, Protocol
    from fl_precode.tape import Tape

_LOOKED_AT: Final = 8
"""Updates that are read; what is assumed about one is mostly assumed about all."""

_BUDGET: Final = 600.0
_LABEL: Final = 17


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("notes")(notes)


def notes(
    tape: Annotated[Path, typer.Argument(help="Folder that the Interceptor wrote.", show_default=False)],
    model: Model = None,
    loss: Loss = None,
    defence: Defence = None,
    images: Images = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
) -> None:
    """Show what is known, assumed and missing about a tape, with the lines to add to the notes beside it.

    The notes of runs/1/tape are runs/1/tape.toml. Nothing is attacked and
    nothing is written. Exit code 3: nothing could be attacked as it stands.

    Example: fl-precode notes runs/1/tape
    """
    inputs = parse_inputs(images, classes, mean, std)
    find_own_models()

    from attacker.audit.inputs.nothing_to_attack import NothingToAttack
    from attacker.audit.inputs.tape_source import TapeSource
    from fl_precode.tape.fetched import local_tape

    source = TapeSource(tape=local_tape(tape), truth=False, model=model, defence=defence, inputs=inputs, loss=loss)
    try:
        runs = _show(source)
    except NothingToAttack as error:
        raise end_of_nothing(error) or error from None
    if not runs:
        raise typer.Exit(NOTHING_ATTACKED)


def _show(source: TapeSource) -> bool:
    """Print everything; whether an attack could run."""
    from attacker.audit.audit import plan
    from attacker.audit.settings import AuditSettings
    from fl_precode.tape import Tape
    from fl_precode.tape.notes import notes_path, with_notes

    width = columns()
    path = notes_path(source.tape.absolute())
    tape = Tape(source.tape)
    tape.header = with_notes(tape.header, source.tape.absolute())
    _print(wrapped(f"{shown(source.tape)}: {_holds(tape)}.", width))
    _print(wrapped(f"Notes: {shown(path)}{'' if path.exists() else ' (not there yet)'}", width))
    _print(["", "Known"])
    _print(_known(_facts(tape, source), width))
    settings = AuditSettings(victims=_LOOKED_AT, budget=_BUDGET, control=False)
    federations, planned = plan([source], settings, estimate=False)
    observations = federations[0].observations()
    _print(_known(_facts_of_updates(observations), width))
    _print_assumed(federations[0], observations, path, width)
    _print_missing(federations[0], planned, path, width)
    return any(attack.status == "run" for attack in planned)


def _print(lines: Sequence[str]) -> None:
    if lines:
        typer.echo("\n".join(lines))


def _holds(tape: Tape) -> str:
    """How much stands on a tape that may hold nothing."""
    from attacker.audit.inputs.nothing_to_attack import holdings
    from attacker.wording import counted, kept_of

    if not tape.entries:
        return holdings(tape)
    clients, rounds = ({getattr(entry, name) for entry in tape.entries} for name in ("node", "round"))
    parts = [
        f"{counted(len(tape.entries), 'update')} of {counted(len(clients), 'client')} in "
        f"{counted(len(rounds), 'round')}"
    ]
    if tape.samplings:
        parts.append(kept_of(len(tape.entries), tape.updates_seen, tape.sampled_by))
    if tape.failures:
        parts.append(counted(len(tape.failures), "failed reply", "failed replies"))
    if tape.problems:
        parts.append(f"damaged: {'; '.join(tape.problems[:3])}")
    return "; ".join(parts)


def _facts(tape: Tape, source: TapeSource) -> Iterator[tuple[str, str]]:
    """What header, notes and options say."""
    header = tape.header
    model, inputs = source.model or header.model, source.inputs or header.inputs
    yield "model", "not known" if model in ("", "unknown") else model
    yield "images", "not known" if inputs is None else _images(inputs)
    defence = source.defence or header.defence
    yield "defence", "not known" if defence in ("", "unknown") else defence
    yield "local training", _protocol(header.protocol) or "not known"
    if header.reply != "unknown":
        yield "clients reply", header.reply
    if header.examples != "unknown":
        yield "examples count", header.examples


def _images(inputs: InputSpec) -> str:
    shape = f"{'x'.join(map(str, inputs.shape))}, {inputs.classes} classes"
    if not inputs.scale_known:
        return f"{shape}; their mean and deviation not known"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (inputs.mean, inputs.std))
    return f"{shape}; mean {mean}; deviation {std}"


def _protocol(protocol: Protocol) -> str:
    """What is known of local training, in the keys of the notes."""
    known = {
        key: value for key, value in asdict(protocol).items() if value is not None and key not in ("name", "defence")
    }
    return ", ".join(f"{key.replace('_', '-')} {value}" for key, value in known.items())


def _facts_of_updates(observations: Sequence[Observation]) -> Iterator[tuple[str, str]]:
    """What the updates that were read show."""
    from attacker.gradients.observed import steps_behind

    kinds = Counter(
        "gradients" if observation.kind == "gradient" else "weights after training" for observation in observations
    )
    yield "clients send", ", ".join(kinds)
    yield "images behind", _range([observation.batch_size for observation in observations])
    yield "local steps", _range([steps_behind(observation) for observation in observations])
    if frozen := set[str]().union(*(observation.frozen for observation in observations)):
        moved = len(observations[0].parameters)
        yield "trained", f"{moved} of {moved + len(frozen)} parameters of the model; the others are constants"


def _range(values: Sequence[int | None]) -> str:
    """Numbers of several updates.

    >>> _range([8, 8, 4]), _range([1]), _range([None, 2])
    ('4 to 8 each', '1 each', '2 each, and not known for 1 of 2 updates')
    """
    known = sorted({value for value in values if value is not None})
    if not known:
        return "not known"
    text = f"{known[0]} each" if len(known) == 1 else f"{known[0]} to {known[-1]} each"
    missing = sum(value is None for value in values)
    return f"{text}, and not known for {missing} of {len(values)} updates" if missing else text


def _known(facts: Iterator[tuple[str, str]], width: int) -> list[str]:
    lines: list[str] = []
    for name, value in facts:
        lines += wrapped(f"  {name:<{_LABEL}}{value}", width, indent=" " * (_LABEL + 2))
    return lines


def _print_assumed(federation: AuditedFederation, observations: Sequence[Observation], path: Path, width: int) -> None:
    from attacker.audit.inputs.update_facts import assumptions_about

    assumptions = assumptions_about(federation.subject.victim, observations)
    if assumptions:
        _print(["", "Assumed (docs/reference/assumptions.md)"])
    for assumption in assumptions:
        _print(assumption_lines(assumption, len(observations), path, width))


def _print_missing(federation: AuditedFederation, planned: Sequence[PlannedAttack], path: Path, width: int) -> None:
    """What is not known, by how many attacks it keeps from running, and why else attacks do not run."""
    from attacker.audit.record.mends import MENDS

    missing = not_run(planned)
    blocked = Counter(code for attack in missing for code in attack.mends)
    scale = not federation.subject.victim.inputs.scale_known
    if blocked or scale:
        _print(["", "Missing, what matters most first"])
    for code in sorted(blocked, key=lambda mend: (mend in ("defence", "withheld", "budget"), -blocked[mend])):
        number = f"{blocked[code]} attack{'' if blocked[code] == 1 else 's'}"
        _print(wrapped(f"- {MENDS[code].lacking} ({number}).", width, indent="  "))
        _print(mend_lines([code], path, indent="    ", width=width))
    if scale:
        _print(wrapped(f"- {MENDS['scale'].lacking}; without it the audit estimates it.", width, indent="  "))
        _print(mend_lines(["scale"], path, indent="    ", width=width))
    runs = [entry.attack for entry in planned if entry.status == "run"]
    _print(["", f"attacks: {len(runs)} could run; {len(missing)} not"])
    if runs:
        _print(wrapped(f"- could run: {', '.join(spec.partition(':')[0] for spec in runs)}.", width, indent="  "))
    _print(reason_lines([attack for attack in missing if not attack.mends], path, width=width))
    if runs:
        _print(["", *wrapped(f"Audit it: fl-precode audit {shown(federation.subject.tape.path)}", width)])
