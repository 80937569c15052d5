"""Scores reconstructions of others as an audit scores its own attacks: by the same scene, guesses and candidates."""

from __future__ import annotations

import tempfile
from pathlib import Path

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.execution.files import Pictures
from attacker.audit.federations.federation import AuditedFederation, open_federations
from attacker.audit.inputs.image_scale import estimate_scale
from attacker.audit.inputs.tape_source import TapeSource, updates_read_once
from attacker.audit.record.identification import with_identified
from attacker.audit.scoring.assemble import federation_entry
from attacker.audit.scoring.scene import Scene, pools_of
from attacker.audit.scoring.similarity import summarise
from attacker.standard.definition import STANDARD_1, Standard
from attacker.standard.reconstructions import checked, name_of, read_reconstructions
from attacker.standard.result import Score, attacked_tape, figures, updates
from attacker.standard.sealing import unsealed


@updates_read_once()
def score(
    tape: Path,
    reconstructions: Path,
    *,
    key: Path | None = None,
    name: str = "reconstructions",
    standard: Standard = STANDARD_1,
) -> Score:
    """How good reconstructions of a tape's updates are.

    Args:
        tape: Folder of the tape.
        reconstructions: File of images, see `attacker.standard.reconstructions`.
        key: File with the key of a sealed tape; None takes the truth that lies beside the tape.
        name: Name of what made them.
        standard: Whose updates and candidates are used.

    Raises:
        NothingToAttack: If the model or the images are not known, or there is no update.
        ValueError: If the truth is not known, the tape was altered, the key does not fit or the file is wrong.
        OSError: If a file cannot be read.
    """
    arrays, digest = read_reconstructions(reconstructions)
    settings = standard.settings()
    with unsealed(tape, key) as evaluation, tempfile.TemporaryDirectory(prefix="fl-precode-") as folder:
        (federation,) = open_federations([TapeSource(tape=tape, evaluation=evaluation)], settings, Path(folder))
        sizes = _sizes(federation, tape)
        inputs = federation.subject.victim.inputs
        names = [name_of(entry.file) for entry in federation.subject.tape.entries]
        made = {
            file: Reconstruction(inputs=inputs.normalise(images), labels=None, outcome=Outcome.ITERATION_LIMIT)
            for file, images in zip(sizes, checked(arrays, _named(sizes), names, inputs.shape).values(), strict=True)
        }
        entry = federation_entry(federation, [federation], settings, estimate_scale(inputs, []))
        results = {(federation.id, name, file): result for file, result in made.items()}
        pools = pools_of(federation, {}, settings, by_features=False)  # a score has figures by pixels only
        scene = Scene(federation, entry, inputs, results, {}, Pictures(Path(folder)), pools)
        images, rows = scene.scored([[(name, made[update.file])] for update in federation.entries])
    rows = with_identified(rows, images)
    return Score(
        name=name,
        standard=standard.name,
        definition=standard.digest,
        tape=attacked_tape(entry),
        attacked=updates(rows),
        reconstructions=digest,
        figures=figures(summarise(federation.id, name, rows, images), rows),
    )


def _sizes(federation: AuditedFederation, tape: Path) -> dict[str, int]:
    """Images behind each update that is scored, by file."""
    if federation.subject.truth is None:
        note = federation.subject.truth_note
        raise ValueError(f"the true images of {tape} are not known ({note}); a sealed tape needs its key (--key FILE)")
    if problems := federation.subject.tape.verify():
        raise ValueError(f"{tape} was altered or damaged: {'; '.join(problems[:2])}; take the tape anew")
    sizes = {}
    for entry in federation.entries:
        truth = federation.truth(entry)
        if truth is None:
            why = federation.refused.get(entry.file, "its true images are not known")
            raise ValueError(f"{entry.file} cannot be scored: {why}")
        sizes[entry.file] = len(truth.images)
    return sizes


def _named(sizes: dict[str, int]) -> dict[str, int]:
    return {name_of(file): count for file, count in sizes.items()}
