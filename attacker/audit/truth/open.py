"""Chooses where the truth of a tape comes from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from attacker.audit.truth.base import Located, TruthSource
from attacker.audit.truth.federation import EVALUATION_NAME, FederationTruth
from attacker.audit.truth.files import FolderTruth, NpzTruth
from attacker.audit.truth.function import FunctionTruth, TruthFunction, import_function
from attacker.audit.truth.recorded import RecordedTruth
from attacker.reasons import Reason, because
from fl_precode.models.input_spec import InputSpec
from fl_precode.recorded_truth import truth_folder
from fl_precode.tape import Tape
from fl_precode.tape.notes import client_names

_NUMBER = re.compile(r"-\d+$")

TruthWish = bool | str | TruthFunction
"""True looks beside the tape, False leaves the truth out, text and functions name it."""


def truth_path(tape: Path, wish: TruthWish, evaluation: Path | None) -> Path | None:
    """The file or folder that the truth is read from; None where it is none, or there is none."""
    if evaluation is not None:
        return evaluation
    if isinstance(wish, str):
        kind, _, place = wish.partition(":")
        return Path(place).expanduser() if kind in ("recorded", "folder", "npz") else None
    tape = tape.expanduser().absolute()
    # A further run under the same name has a numbered tape, and its clients write beside the first.
    first = tape.with_name(_NUMBER.sub("", tape.name))
    there = [path for path in (tape.parent / EVALUATION_NAME, truth_folder(tape), truth_folder(first)) if path.exists()]
    return there[0] if wish is True and there else None


def open_truth(
    tape: Tape, inputs: InputSpec, wish: TruthWish, evaluation: Path | None
) -> tuple[TruthSource | None, Reason]:
    """The truth of a tape, or why there is none.

    Args:
        tape: The tape, opened.
        inputs: Images of the audit.
        wish: What the auditor asked for.
        evaluation: ``evaluation.json`` of a reference federation, when it was named.

    Raises:
        ValueError: If what was named is no such thing, or is of another run.
        OSError: If a file was named and cannot be read.
        RuntimeError: If the reference federation's data set is not on this machine.
    """
    if wish is False:
        return None, because("truth-left-out")
    clients, nodes = client_names(tape.path.absolute()), {entry.node for entry in tape.entries}
    if callable(wish):
        name = getattr(wish, "__name__", "the function")
        return FunctionTruth(wish, f"the truth by {name}", clients, tape.entries), Reason("")
    path = truth_path(tape.path, wish, evaluation)
    if isinstance(wish, str) and evaluation is None:
        return _named(wish, path, tape, clients, inputs), Reason("")
    if path is None:
        folder = truth_folder(tape.path).name
        return None, because("truth-not-there", evaluation=EVALUATION_NAME, folder=folder)
    if evaluation is not None or path.name == EVALUATION_NAME:
        return _of_federation(path, tape, nodes, inputs), Reason("")
    return _found_beside(path, tape, clients)


def _found_beside(path: Path, tape: Tape, clients: dict[str, str]) -> tuple[TruthSource | None, Reason]:
    """Recorded truth that nobody named: what is wrong with it costs the comparison, not the audit."""
    try:
        source = RecordedTruth(path, clients)
    except (ValueError, OSError) as error:
        return None, because("truth-unreadable", error=error)
    if tape.entries and not knows_any(source, tape.entries):
        return None, because("truth-of-another-run", path=path)
    return source, Reason("")


def knows_any(source: TruthSource, entries: Sequence[Located]) -> bool:
    """Whether the truth of any of these updates is known."""
    return any(map(source.knows, entries))


def _named(wish: str, path: Path | None, tape: Tape, clients: dict[str, str], inputs: InputSpec) -> TruthSource:
    kind = wish.partition(":")[0]
    nodes = {entry.node for entry in tape.entries}
    if path is not None:
        if kind == "recorded":
            return RecordedTruth(path, clients)
        return FolderTruth(path, clients, nodes, inputs) if kind == "folder" else NpzTruth(path, clients, nodes)
    if ":" not in wish or Path(wish).exists():
        raise ValueError(
            f"expected the truth as recorded:PATH, folder:PATH, npz:PATH or module:function, got {wish!r}; a reference "
            f"federation's {EVALUATION_NAME} is given by --evaluation"
        )
    return FunctionTruth(import_function(wish), wish, clients, tape.entries)


def _of_federation(path: Path, tape: Tape, nodes: set[str], inputs: InputSpec) -> FederationTruth:
    truth = FederationTruth.read(path)
    truth.check_tape(tape.header.settings, nodes)
    shape = tuple(truth.mean_image.shape)
    if shape != inputs.shape:
        raise ValueError(
            f"{path} speaks of images of shape {shape}, but the audit is of images of shape {inputs.shape}"
        )
    return truth
