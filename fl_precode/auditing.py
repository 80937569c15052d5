"""The audit as a function: a tape in, a record out, with its verdicts and its page."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Final, TypeAlias, TypedDict, Unpack
from weakref import finalize

from pydantic import PrivateAttr

from attacker.attacks.base import Attack
from attacker.audit import audit as run
from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.record import schema as records
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import Knowledge
from fl_precode.tape import Tape
from fl_precode.tape.fetched import local_tape

if TYPE_CHECKING:
    from attacker.audit.truth.open import TruthWish
    from fl_precode.loss import Loss
    from fl_precode.models.input_spec import InputSpec

__all__ = ["AuditRecord", "TapeSource", "audit"]

_SECONDS: Final = 600.0
"""Budget of an audit that chooses its attacks itself, as on the command line."""

_Recorded: TypeAlias = "str | os.PathLike[str] | Tape | TapeSource"


class TapeOptions(TypedDict, total=False):
    """What an auditor adds to what stands on the tape.

    Attributes:
        model: Model spec in place of the tape's: ``package.module:Net``.
        defence: Defence spec in place of the tape's.
        inputs: Shape, scale and classes of the images in place of the tape's.
        loss: What the clients minimise in place of the tape's: a function of (scores, labels) that gives a scalar, or
            its name, ``package.module:function``.
        truth: Where the true images are known from, as ``--truth`` takes it; True looks beside the tape, False leaves
            them out.
    """

    model: str | None
    defence: str | None
    inputs: InputSpec | None
    loss: Loss | str | None
    truth: TruthWish


class AuditRecord(records.AuditRecord):
    """What an audit found: victims, results, summaries, flags and verdicts; as ``audit.json`` holds it."""

    _folder: Path = PrivateAttr()
    _temporary: bool = PrivateAttr(default=False)

    @property
    def folder(self) -> Path:
        """Where ``audit.json`` and the pictures lie; without ``out`` only as long as this record lives."""
        return self._folder

    def save_report(self, out: str | os.PathLike[str] | None = None, *, redact: bool = False) -> Path:
        """Write the page with images and verdicts, one file that needs no network.

        Args:
            out: Its folder; None for ``report`` in the audit's own folder.
            redact: Whether images are blurred.

        Returns:
            The page, ``index.html``.

        Raises:
            ValueError: If the audit was given no folder, and this is not either.
            ModuleNotFoundError: Without the extra ``report``.
        """
        if out is None and self._temporary:
            raise ValueError(
                "expected a folder for the report, save_report('outputs/report'): the audit was given none (out=), and "
                "what it wrote goes when this record does"
            )
        from attacker.report.page import write_report

        return write_report(self, folder=self._folder, out=Path(out or self._folder / "report"), redact=redact)


def audit(
    tape: _Recorded | Sequence[_Recorded],
    *,
    attacks: Sequence[Attack | str] | None = None,
    victims: int = 4,
    budget: float | None = None,
    workers: int = 1,
    out: str | os.PathLike[str] | None = None,
    seed: int = 0,
    know: Iterable[str] = (),
    withhold: Iterable[str] = (),
    control: bool = True,
    device: str = "cpu",
    leakage: bool = False,
    candidates: int = 1_000,
    **options: Unpack[TapeOptions],
) -> AuditRecord:
    """Attack a few updates of a tape, compare what is reconstructed with the truth where it is known, and judge.

    With ``out`` the audit can be killed at any moment, and the same call goes on with it.

    Args:
        tape: Folder of a tape, or its URL in an object store, or the opened tape; or several, of federations that are
            to be compared. A `TapeSource` says of one tape what ``options`` would say of all.
        attacks: Objects or specs, run as they are; None plans all that apply, plug-ins included, within the budget.
        victims: Updates to attack, at least 1; fewer when the tape has fewer.
        budget: Seconds that the whole audit may take; None for as long as named attacks need, and ten minutes where
            they are planned.
        workers: Processes on this machine; one works in this process.
        out: Folder of the audit; it gets ``audit.json`` and ``images``. None keeps nothing.
        seed: Random seed of the choice of updates and of the attacks.
        know: Kinds of knowledge that the attacker is granted besides: ``labels``, ``auxiliary-data``.
        withhold: Kinds that it has not.
        control: Whether defended federations get an undefended control to be compared with.
        device: As torch names it.
        leakage: Whether leakage indices are computed, where the model is small enough.
        candidates: Other images, of the same class where there are enough, that each true image is told from, to say
            whose image was reconstructed; 0 for none.
        **options: What is to be taken in place of what stands on the tape: ``model``, ``defence``, ``inputs``,
            ``loss``, ``truth``.

    Raises:
        NothingToAttack: If the model or the images are not known, or there is no update.
        ValueError: If an attack is unknown or named twice, a number is out of its range, or the tape cannot be
            audited otherwise.
        OSError: If the folder cannot be written.
        RuntimeError: If the work cannot go on, as on a full disk.
    """
    several = [tape] if isinstance(tape, str | os.PathLike | Tape | TapeSource) else list(tape)
    sources = [_source(one, options) for one in several]
    settings = AuditSettings(
        attacks=None if attacks is None else tuple(attacks),
        victims=victims,
        seed=seed,
        knowledge=Knowledge.usual(know=know, withhold=withhold),
        budget=_SECONDS if attacks is None and budget is None else budget,
        control=control,
        device=device,
        leakage=leakage,
        candidates=candidates,
    )
    folder = Path(mkdtemp(prefix="fl-precode-audit-") if out is None else out).expanduser().absolute()
    resumable = out is not None or workers > 1
    try:
        found = AuditRecord(**dict(run.audit(sources, settings, out=folder, workers=workers, resumable=resumable)))
    except BaseException:
        if out is None:
            rmtree(folder, ignore_errors=True)
        raise
    found._folder, found._temporary = folder, out is None
    if out is None:
        # Pictures of reconstructions: they go with the record, at the end of the process at the latest.
        finalize(found, rmtree, folder, ignore_errors=True)
    return found


def _source(tape: _Recorded, options: TapeOptions) -> TapeSource:
    if isinstance(tape, TapeSource):
        return replace(tape, tape=local_tape(tape.tape), **options)
    return TapeSource(tape=tape.path if isinstance(tape, Tape) else local_tape(os.fspath(tape)), **options)
