"""Options of the commands that read a tape, and what their texts become."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attacker.audit.threat_model import Knowledge
    from fl_precode.models.input_spec import InputSpec

DEFAULT_BUDGET = "10m"


class Labels(StrEnum):
    """What the attacker knows of the labels."""

    GRANTED = "granted"
    RECOVERED = "recovered"


# What the options mean.
Tapes = Annotated[list[Path], typer.Argument(show_default=False, metavar="TAPE...")]
Attacks = Annotated[
    list[str] | None,
    typer.Option(
        help="Attacks, such as first-layer,inverting-gradients:iterations=600. Repeatable. Default: all that apply.",
        show_default=False,
    ),
]
Victims = Annotated[int, typer.Option(min=1, help="Number of updates to attack on each tape.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed for the choice of updates and for the attacks.")]
Budget = Annotated[
    str | None,
    typer.Option(
        help=f"Time limit of the whole audit, such as 90s, 10m or 2h. Default: {DEFAULT_BUDGET}; none if attacks are "
        "named.",
        show_default=False,
    ),
]
Know = Annotated[
    list[str] | None,
    typer.Option(
        help="Knowledge granted to the attacker beyond a server's usual knowledge: labels.", show_default=False
    ),
]
Withhold = Annotated[
    list[str] | None,
    typer.Option(
        help="Knowledge withheld from the attacker: batch-size, buffers, defence, learning-rate; several are separated "
        "by commas.",
        show_default=False,
    ),
]
LabelsOption = Annotated[
    Labels | None,
    typer.Option(
        help="Source of the labels: recovered (default) lets attacks find them; granted is --know labels.",
        show_default=False,
    ),
]
Rounds = Annotated[
    str | None, typer.Option(metavar="FIRST:LAST", help="Rounds to choose updates from.", show_default=False)
]
CanarySecret = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the secret that tells which canaries of an own app were in; see docs/explanation/bounds.md.",
        show_default=False,
    ),
]
Evaluation = Annotated[
    Path | None, typer.Option(help="evaluation.json of the run. Default: the one beside the tape.", show_default=False)
]
Truth = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:PATH",
        help="True images of an own app: recorded:PATH (by record_truth), folder:PATH, npz:PATH, or module:function; "
        "see docs/how-to/truth.md. Default: TAPE.truth beside the tape.",
        show_default=False,
    ),
]
NoTruth = Annotated[bool, typer.Option("--no-truth", help="Do not compare with the true images.")]
NoControl = Annotated[bool, typer.Option("--no-control", help="Leave out the undefended control.")]
Model = Annotated[
    str | None, typer.Option(help="Model, if the tape does not name it: package.module:factory.", show_default=False)
]
Loss = Annotated[
    str | None,
    typer.Option(
        help="Loss that the clients minimise, if the tape does not name it: package.module:function of (scores, "
        "labels).",
        show_default=False,
    ),
]
Defence = Annotated[
    str | None, typer.Option(help="Defence in the model, if the tape does not name it.", show_default=False)
]
Images = Annotated[
    str | None,
    typer.Option("--input", metavar="CxHxW", help="Image shape, such as 3x32x32. Needs --classes.", show_default=False),
]
Classes = Annotated[int | None, typer.Option(min=2, help="Number of classes, with --input.", show_default=False)]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean of each channel, such as 0.5,0.5,0.5, with --input. Default: 0 with --std; without both the scale "
        "is estimated.",
        show_default=False,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation of each channel, with --input. Default: 1 with --mean.", show_default=False),
]
Threads = Annotated[int, typer.Option(min=1, help="Number of processor threads of each process.")]


def parse_knowledge(
    know: Sequence[str] | None, withhold: Sequence[str] | None, labels: Labels | None = None
) -> Knowledge:
    """What the attacker knows, from the command line.

    Raises:
        typer.BadParameter: If there is no such kind, or one is granted and withheld.
    """
    from attacker.audit.threat_model import LABELS, Knowledge

    more = [kind.strip() for text in know or () for kind in text.split(",")]
    less = [kind.strip() for text in withhold or () for kind in text.split(",")]
    more += [LABELS] if labels is Labels.GRANTED else []
    less += [LABELS] if labels is Labels.RECOVERED else []
    try:
        return Knowledge.usual(know=more, withhold=less)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--know, --withhold, --labels") from None


def parse_budget(text: str) -> float:
    """Seconds of ``--budget``.

    Raises:
        typer.BadParameter: If it is no time.
    """
    from fl_precode.spec import parse_duration  # loads torch, which --help does without

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--budget") from None


def parse_rounds(text: str | None) -> tuple[int, int] | None:
    """First and last round from ``3:8``, or one from ``3``.

    Raises:
        typer.BadParameter: If it is something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip())
    if not match or int(match[1]) > int(match[2] or match[1]):
        raise typer.BadParameter(f"expected a first and a last round, such as 3:8, got {text!r}", param_hint="--rounds")
    return int(match[1]), int(match[2] or match[1])


def read_secret(file: Path | None) -> str | None:
    """The text of a file, without space around it; a file that cannot be read is bad usage."""
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(
            f"expected a text file with the clients' secret: {error}", param_hint="--canary-secret"
        ) from None


def check_truth(no_truth: bool, evaluation: Path | None, truth: str | None = None) -> bool | str:
    """Where the truth comes from: a name, True for what lies beside the tape, False for none.

    Raises:
        typer.BadParameter: If more than one is asked for.
    """
    if no_truth and (evaluation is not None or truth is not None):
        raise typer.BadParameter(
            "either a file of the truth or --no-truth, not both", param_hint="--no-truth, --truth, --evaluation"
        )
    if evaluation is not None and truth is not None:
        raise typer.BadParameter(
            "either --evaluation, of a reference federation, or --truth, of any other app, not both",
            param_hint="--truth, --evaluation",
        )
    return not no_truth if truth is None else truth


def find_own_models() -> None:
    """Look for modules where the command is called, too: people's own models are there, and a tape may name one."""
    # A console script does not do so by itself.
    sys.path.append(str(Path.cwd()))


def looks_like_a_tape(folder: Path) -> bool:
    """Whether a folder has the header of a tape, as far as a glance tells."""
    try:
        return isinstance(json.loads((folder / "tape.json").read_bytes()), dict)
    except (OSError, ValueError):
        return False


def split_attacks(text: str) -> list[str]:
    """Attack specs from a list set apart by commas; an attack's own settings are, too, but have an equals sign.

    >>> split_attacks("first-layer,inverting-gradients:iterations=9,restarts=2")
    ['first-layer', 'inverting-gradients:iterations=9,restarts=2']
    """
    specs: list[str] = []
    for part in text.split(","):
        if specs and "=" in part and ":" not in part:
            specs[-1] += f",{part}"
        else:
            specs.append(part.strip())
    return specs


def parse_inputs(images: str | None, classes: int | None, mean: str | None, std: str | None) -> InputSpec | None:
    """The input domain from command-line text; None when no shape is given.

    Raises:
        typer.BadParameter: If a part is missing or no number.
    """
    if images is None:
        if classes is not None or mean is not None or std is not None:
            raise typer.BadParameter("--classes, --mean and --std describe the images of --input", param_hint="--input")
        return None
    from fl_precode.models.input_spec import InputSpec

    if classes is None:
        raise typer.BadParameter("--input needs --classes, the number of classes", param_hint="--classes")
    try:
        channels, height, width = (int(part) for part in images.lower().split("x"))
    except ValueError:
        raise typer.BadParameter(
            f"expected channels x height x width, such as 3x32x32, got {images!r}", param_hint="--input"
        ) from None
    try:
        return InputSpec(
            channels=channels,
            height=height,
            width=width,
            classes=classes,
            mean=_numbers(mean, channels, 0.0),
            std=_numbers(std, channels, 1.0),
            scale_known=mean is not None or std is not None,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--input") from None


def _numbers(text: str | None, channels: int, default: float) -> tuple[float, ...]:
    if text is None:
        return (default,) * channels
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"expected numbers set apart by commas, such as 0.5,0.5,0.5, got {text!r}") from None
