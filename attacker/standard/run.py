"""Runs a standard on a tape, by the audit: there is no second engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record.schema import AuditRecord
from attacker.jobs.progress import Watch
from attacker.standard.definition import STANDARD_1, Standard
from attacker.standard.result import RESULT_NAME, StandardResult, standard_result, write_result
from attacker.standard.sealing import unsealed


def run_standard(
    tape: Path,
    *,
    out: Path,
    standard: Standard = STANDARD_1,
    key: Path | None = None,
    workers: int = 1,
    watch: Watch | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[StandardResult, AuditRecord]:
    """Attack a tape by a standard; killed at any moment, the same call goes on and ends with the same bytes.

    Args:
        tape: Folder of the tape; its notes or its header have to say what the model is.
        out: Folder for ``standard.json``, and for everything that an audit writes.
        standard: What is run.
        key: File with the key of a sealed tape, whose truth is then compared with; attacks never see it.
        workers: Processes; the result is the same for any number.
        watch: Told about the work now and then.
        say: Told, in a sentence each, what a reader should know.

    Raises:
        NothingToAttack: If the model or the images are not known, or there is no update.
        ValueError: If the tape cannot be audited otherwise, or the key does not fit.
        OSError: If the folder cannot be written.
    """
    with unsealed(tape, key) as evaluation:
        record = audit(
            [TapeSource(tape=tape, evaluation=evaluation)],
            standard.settings(),
            out=out,
            workers=workers,
            title=f"{standard.name}: {tape.expanduser().absolute().parent.name}/{tape.expanduser().absolute().name}",
            watch=watch,
            say=say,
        )
    result = standard_result(record, standard)
    write_result(result, out / RESULT_NAME)
    return result, record
