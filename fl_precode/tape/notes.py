"""A small TOML file beside a tape, for people: what an audit needs to know and a foreign app's tape may not say.

The tape itself is never changed after it was written. What stands in ``TAPE.toml`` goes before the tape's header::

    model = "my_app.task:Net"       # package.module:factory, importable where the audit runs
    loss = "my_app.task:loss"       # of (scores, labels), likewise; "cross-entropy"; nobody said where it is missing
    input = "3x32x32"               # channels x height x width
    classes = 10
    mean = [0.5, 0.5, 0.5]          # by channel, on the [0, 1] scale; 0 where only std is given
    std = [0.5, 0.5, 0.5]           # 1 where only mean is given; without both the scale is estimated
    defence = "none"
    reply = "weights"               # weights | difference (trained minus sent) | gradient
    examples = "images"             # what num-examples counts: images | batches

    [protocol]
    local-epochs = 1
    batch-size = 8
    learning-rate = 0.1

    [clients]                       # names that you have for Flower's node ids
    7318349394477056000 = "hospital-a"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol
from fl_precode.private_file import write_private
from fl_precode.tape.announced_settings import announced_settings
from fl_precode.tape.format import TapeHeader

_PROTOCOL = {item.name.replace("_", "-"): item.name for item in fields(Protocol)}
_TOP = {"model", "loss", "defence", "input", "classes", "mean", "std", "reply", "examples", "clients", "protocol"}


def notes_path(tape: Path) -> Path:
    """Where the notes of a tape are: ``/runs/1/tape`` has ``/runs/1/tape.toml``."""
    return tape.with_name(f"{tape.name}.toml")


def input_spec(shape: str, classes: int) -> InputSpec:
    """The input domain of images of which only the shape is known; see `InputSpec.parse`.

    Raises:
        ValueError: If the shape is something else.
    """
    return InputSpec.parse(shape, classes)


def protocol_of(run_config: Mapping[str, Any]) -> Protocol:
    """What a Flower app's run configuration says about local training, by the keys that are usual; zeros say nothing.

    >>> protocol_of({"lr": 0.1, "local-epochs": 1, "num-server-rounds": 3})
    ... # doctest: +NORMALIZE_WHITESPACE
    Protocol(name='unknown', local_steps=None, local_epochs=1, learning_rate=0.1, defence=None, batch_size=None,
             momentum=None, weight_decay=None, batch_norm=None, optimiser=None, loss=None)
    """
    return Protocol(**announced_settings(run_config).fields)


def write_notes(tape: Path, header: TapeHeader) -> bool:
    """Write what the header knows, and as comments what it does not; notes that are there already are left alone.

    Returns:
        Whether they were written.

    Raises:
        OSError: If the file cannot be written.
    """
    path = notes_path(tape)
    if path.exists():
        return False
    inputs = header.inputs
    known: dict[str, Any] = {
        "model": None if header.model == "unknown" else header.model,
        "loss": header.protocol.loss,
        "input": None if inputs is None else "x".join(map(str, inputs.shape)),
        "classes": None if inputs is None else inputs.classes,
        "mean": None if inputs is None or not inputs.scale_known else list(inputs.mean),
        "std": None if inputs is None or not inputs.scale_known else list(inputs.std),
        "defence": None if header.defence == "unknown" else header.defence,
    }
    examples = {
        "model": "package.module:factory",
        "loss": "package.module:function",
        "input": "3x32x32",
        "classes": 10,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "defence": "none",
    }
    lines = ["# What an audit of the tape beside this file needs to know; take the # away where something is missing."]
    for key, value in known.items():
        lines.append(f"# {key} = {json.dumps(examples[key])}" if value is None else f"{key} = {json.dumps(value)}")
    protocol = {key: value for key, value in asdict(header.protocol).items() if value is not None}
    protocol = {key: value for key, value in protocol.items() if key not in ("name", "loss")}
    lines += ["", "[protocol]", *(f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in protocol.items())]
    write_private(path, ("\n".join(lines) + "\n").encode())
    return True


def with_notes(header: TapeHeader, tape: Path) -> TapeHeader:
    """The header with what stands in the notes beside the tape put in; the header as it is without notes.

    Raises:
        ValueError: If the notes are no TOML, or have an unknown key or a value that cannot be.
        OSError: If there are notes that cannot be read.
    """
    path = notes_path(tape)
    if not path.exists():
        return header
    try:
        notes = tomllib.loads(path.read_text())
        _refuse_unknown(notes, _TOP)
        _refuse_unknown(notes.get("protocol", {}), set(_PROTOCOL))
        announced = {_PROTOCOL[key]: value for key, value in notes.get("protocol", {}).items()}
        if "loss" in notes:
            announced.setdefault("loss", str(notes["loss"]))
        return replace(
            header,
            model=str(notes.get("model", header.model)),
            defence=str(notes.get("defence", header.defence)),
            inputs=_inputs(notes) or header.inputs,
            reply=str(notes.get("reply", header.reply)),
            examples=str(notes.get("examples", header.examples)),
            protocol=replace(header.protocol, **announced),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _inputs(notes: Mapping[str, Any]) -> InputSpec | None:
    if "input" not in notes:
        if notes.keys() & {"classes", "mean", "std"}:
            raise ValueError("classes, mean and std describe the images of 'input', which is missing")
        return None
    if "classes" not in notes:
        raise ValueError("'input' needs 'classes', the number of classes")
    plain = input_spec(str(notes["input"]), int(notes["classes"]))
    mean, std = (tuple(map(float, notes.get(key, getattr(plain, key)))) for key in ("mean", "std"))
    return replace(plain, mean=mean, std=std, scale_known="mean" in notes or "std" in notes)


def _refuse_unknown(table: Mapping[str, Any], known: set[str]) -> None:
    odd = sorted(set(table) - known)
    if odd:
        raise ValueError(f"unknown key {odd[0]!r}; expected some of: {', '.join(sorted(known))}")


def client_names(tape: Path) -> dict[str, str]:
    """Names that people gave to clients, by node id: the table ``clients`` of the notes beside a tape.

    Raises:
        ValueError: If the notes are no TOML, or a name is no text.
        OSError: If there are notes that cannot be read.
    """
    path = notes_path(tape)
    if not path.exists():
        return {}
    try:
        table = tomllib.loads(path.read_text()).get("clients", {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(f'{path}: expected [clients] to be a table of names, node id = "name", got {table!r}')
    return dict(table)
