"""The evidence of one round at a site: what the server would hold of it, and the true images, until it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from logging import WARNING
from pathlib import Path
from shutil import rmtree

from flwr.app import Context, Message
from flwr.common import log

from fl_precode.flower.recorder import Answer, Asked, Recorder
from fl_precode.flower.truth import answered_by, recorded_for_a_guard
from fl_precode.models.input_spec import InputSpec
from fl_precode.private_file import make_private_folder
from fl_precode.recorded_truth import SUFFIX, Answered, truth_folder
from fl_precode.tape.notes import notes_path


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A tape of one update and its true images, in the folder of the round."""

    folder: Path
    answered: Answered
    recorder: Recorder
    asked: Asked

    @classmethod
    @contextmanager
    def of(
        cls,
        message: Message,
        context: Context,
        number: int,
        *,
        folder: Path,
        model: str,
        inputs: InputSpec,
        loss: str | None,
    ) -> Iterator[Evidence]:
        """Write down what was sent, before the client can train in place on it; at the end all but the audit goes.

        Args:
            message: What the server sent.
            context: The client's.
            number: Round.
            folder: The guard's; the round gets one in it.
            model: Where an audit finds the model.
            inputs: The images' domain.
            loss: What the client minimises.

        Raises:
            OSError: If nothing can be written.
            ValueError: If the message is none that the evidence of a round can be kept of.
        """
        answered = answered_by(message, context)
        if answered is None:
            raise ValueError("the message has neither an id nor a round, by which its images are found")
        if not any(message.content.array_records.values()):
            raise ValueError("the message has no arrays, of which an update could be told")
        place = _new_folder(make_private_folder(folder), number)
        try:
            recorder = Recorder(
                place / "tape", batch_size=None, buffers=None, model=model, inputs=inputs, classes=None,
                run_config=context.run_config, loss=loss,
            )  # fmt: skip
            asked = recorder.write_sent(number, message)
            evidence = cls(folder=place, answered=answered, recorder=recorder, asked=asked)
            with recorded_for_a_guard(answered, evidence.truth):
                yield evidence
        finally:
            _remove_private(place)

    @property
    def tape(self) -> Path:
        """The tape's folder."""
        return self.folder / "tape"

    @property
    def truth(self) -> Path:
        """Where the client's true images go."""
        return truth_folder(self.tape)

    def complete(self, reply: Message) -> str:
        """Write down what the client answers.

        Returns:
            What is missing for a judgement; empty where nothing is.
        """
        self.recorder.write_replies(self.asked.round, [Answer(asked=self.asked, node=self.answered.node, reply=reply)])
        if not any(self.truth.glob(f"*{SUFFIX}")):
            advice = "call fl_precode.flower.record_truth(images, labels) where the client trains"
            return f"no true images were recorded; {advice}"
        return ""


def _remove_private(place: Path) -> None:
    """Remove the update, the true images and what the audit would go on with; the folder too, where nothing is left."""
    tape = place / "tape"
    for folder in (tape, truth_folder(tape), place / "campaign"):
        rmtree(folder, ignore_errors=True)
        if folder.exists():
            log(WARNING, "Leakage guard: %s cannot be removed; remove it, it holds private data", folder)
    notes_path(tape).unlink(missing_ok=True)
    with suppress(OSError):  # the audit is in it
        place.rmdir()


def _new_folder(parent: Path, number: int) -> Path:
    """A folder for a round, 0700; a numbered one where another run, or another client, has left one."""
    name = f"round-{number:04d}"
    for attempt in count(1):
        folder = parent / (name if attempt == 1 else f"{name}-{attempt}")
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("numbers do not end")
