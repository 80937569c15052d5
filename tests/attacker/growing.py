"""A tape that grows round by round, as one does while a federation runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.attacker.taped_federation import Taped


class GrowingTape:
    """A copy of a finished tape that at first is not there.

    Args:
        whole: The finished federation.
        folder: Where the copy grows, with the run's evaluation file beside it from ``tell_truth`` on.
    """

    def __init__(self, whole: Taped, folder: Path) -> None:
        self.tape = folder / "tape"
        self._whole = whole
        self._lines = (whole.tape / "manifest.jsonl").read_text().splitlines(keepends=True)

    def grow(self, to: int) -> None:
        """Everything up to this round is on the tape."""
        self.tape.mkdir(parents=True, exist_ok=True)
        listed = [line for line in self._lines if json.loads(line)["round"] <= to]
        for line in listed:
            file = json.loads(line)["file"]
            (self.tape / file).parent.mkdir(exist_ok=True)
            shutil.copy(self._whole.tape / file, self.tape / file)
        (self.tape / "manifest.jsonl").write_text("".join(listed))
        shutil.copy(self._whole.tape / "tape.json", self.tape / "tape.json")

    def tell_truth(self) -> None:
        """The run wrote its evaluation file."""
        shutil.copy(self._whole.folder / "evaluation.json", self.tape.parent / "evaluation.json")
