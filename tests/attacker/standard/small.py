"""A standard of two quick attacks, and a tape whose truth is sealed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from attacker.standard.definition import STANDARD_1
from attacker.standard.sealing import new_key, seal, write_key
from tests.attacker.taped_federation import Taped, tape_federation

SMALL = replace(
    STANDARD_1,
    name="standard-0",
    attacks=("first-layer", "inverting-gradients:iterations=15,total_variations=1e-6|1e-2", "dropout-inversion"),
    candidates=40,
)


def sealed_federation(folder: Path, **settings) -> tuple[Taped, Path]:
    """A tape beside its sealed truth, and the file with the key."""
    taped = tape_federation(folder / "sealed", clients=5, rounds=1, **settings)
    evaluation, key, file = taped.folder / "evaluation.json", new_key(), folder / "sealed.key"
    write_key(key, file)
    seal(evaluation.read_bytes(), key, taped.tape)
    evaluation.unlink()
    return taped, file
