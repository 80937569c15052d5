"""The commands ``audit`` and ``report``, and what every audit prints at its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli_device import AUTO, Device, find_device

if TYPE_CHECKING:
    from attacker.audit.record import AuditRecord
    from attacker.audit.run import AuditProgress
    from fl_precode.models.input_spec import InputSpec


class Labels(StrEnum):
    """What the attacker knows of the labels."""

    GRANTED = "granted"
    RECOVERED = "recovered"


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("audit")(audit)
    app.command("report")(report)


# What the options of `audit` mean.
_Tape = Annotated[Path, typer.Argument(show_default=False)]
_Out = Annotated[Path, typer.Option(help="Folder for audit.json, images and the report.")]
_Attacks = Annotated[
    list[str] | None,
    typer.Option(
        help="Attacks, such as first-layer,inverting-gradients:iterations=600. Repeatable. Default: those two.",
        show_default=False,
    ),
]
_Victims = Annotated[int, typer.Option(min=1, help="Updates to attack.")]
_Seed = Annotated[int, typer.Option(min=0, help="Of the choice of updates and of the attacks.")]
_Labels = Annotated[Labels, typer.Option(help="Tell the attacker the labels, or let it recover them.")]
_Evaluation = Annotated[
    Path | None, typer.Option(help="evaluation.json of the run. Default: the one beside the tape.", show_default=False)
]
_NoTruth = Annotated[bool, typer.Option("--no-truth", help="Do not compare with the true images.")]
_Model = Annotated[
    str | None, typer.Option(help="Model, where the tape does not say: package.module:factory.", show_default=False)
]
_Defence = Annotated[
    str | None, typer.Option(help="Defence in the model, where the tape does not say.", show_default=False)
]
_Images = Annotated[
    str | None,
    typer.Option("--input", metavar="CxHxW", help="Image shape, such as 3x32x32. Needs --classes.", show_default=False),
]
_Classes = Annotated[int | None, typer.Option(min=2, help="Number of classes, with --input.", show_default=False)]
_Mean = Annotated[
    str | None, typer.Option(help="Mean by channel, such as 0.5,0.5,0.5, with --input. Default: 0.", show_default=False)
]
_Std = Annotated[str | None, typer.Option(help="Deviation by channel, with --input. Default: 1.", show_default=False)]

_Threads = Annotated[int, typer.Option(min=1, help="Processor threads for the attacks.")]


def audit(
    tape: _Tape,
    out: _Out = Path("audit"),
    attacks: _Attacks = None,
    victims: _Victims = 4,
    seed: _Seed = 0,
    labels: _Labels = Labels.RECOVERED,
    evaluation: _Evaluation = None,
    no_truth: _NoTruth = False,
    model: _Model = None,
    defence: _Defence = None,
    images: _Images = None,
    classes: _Classes = None,
    mean: _Mean = None,
    std: _Std = None,
    threads: _Threads = 1,
    device: Device = AUTO,
) -> None:
    """Attack the updates on a tape and write what came back: audit.json and a report.

    TAPE is the folder that the Interceptor wrote. Where its run left an
    evaluation.json beside it, the images are compared with the true ones.

    Example: fl-precode audit runs/1/tape --out runs/1/audit --victims 8
    """
    inputs = parse_inputs(images, classes, mean, std)
    specs = _checked_attacks(attacks)
    use_threads(threads)
    where = find_device(device)
    # A console script does not look for modules where it is called, and people's own models are there. The model may be
    # named on the tape.
    sys.path.append(str(Path.cwd()))

    from attacker.audit.run import audit_tapes
    from attacker.audit.subject import TapeSource

    source = TapeSource(
        tape=tape, evaluation=evaluation, truth=not no_truth, model=model, defence=defence, inputs=inputs
    )
    with audit_progress() as progress:
        record = audit_tapes(
            [source],
            out=out,
            attacks=specs,
            victims=victims,
            seed=seed,
            labels="granted" if labels is Labels.GRANTED else "recovered",
            device=where,
            progress=progress,
        )
    finish(record, out)


def use_threads(threads: int) -> None:
    """Limit PyTorch's threads in this process.

    One is the default: beside other busy processes, several threads that wait for each other were measured to be 20 to
    50 times slower than one.
    """
    import torch

    torch.set_num_threads(threads)


def report(
    record: Annotated[Path, typer.Argument(help="audit.json, or the folder it is in.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="Folder for index.html. Default: `report` beside the record.")
    ] = None,
) -> None:
    """Write the report of an audit again, from its audit.json and pictures.

    RECORD is the audit.json, or the folder that it is in.
    """
    from attacker.audit.record_file import read_record
    from attacker.report.page import write_report

    folder = record if record.is_dir() else record.absolute().parent
    page = write_report(read_record(record), folder=folder, out=out or folder / "report")
    typer.echo(f"report: {page}")


def finish(record: AuditRecord, folder: Path) -> Path | None:
    """Write the report of a fresh audit into ``folder/report``, print the table of results and where the report is.

    Returns:
        Absolute path of the page; None where the extra ``report`` is not installed, which is said.
    """
    from rich.console import Console
    from rich.table import Table

    from attacker.report import words
    from attacker.report.verdict import overall, verdicts

    table = Table(title=None, header_style="bold")
    for heading in ("model", "defence", "attack"):
        table.add_column(heading, overflow="fold")
    for heading in ("came back", "95 %", "SSIM"):
        table.add_column(heading, justify="right")
    names = {one.id: one for one in record.federations}
    for one in record.summaries:
        own = names[one.federation]
        back = "does not apply" if not one.images else "not known"
        back = f"{one.successes} of {one.images}" if one.successes is not None else back
        between = words.interval(*one.interval) if one.interval else "–"
        cells = (own.model, own.defence, one.attack, back, between, words.figure(one.mean_ssim))
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console = Console()
    console.print(table)
    console.print(overall(verdicts(record)), markup=False, highlight=False)
    typer.echo(f"record: {folder.absolute() / 'audit.json'}")
    try:
        from attacker.report.page import write_report
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        typer.echo(f"no page: it needs pip install 'fl-precode[report]'; then: fl-precode report {folder}")
        return None
    page = write_report(record, folder=folder, out=folder / "report")
    typer.echo(f"report: {page}")
    return page


@contextmanager
def audit_progress() -> Iterator[AuditProgress]:
    """A progress bar on stderr for `audit_tapes`; nothing is drawn where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    text = TextColumn("{task.description:<28}", markup=False)
    columns = (text, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("audit", total=1.0)
        yield lambda text, done: bar.update(task, description=text, completed=done)


def _checked_attacks(specs: Sequence[str] | None) -> list[str]:
    """The attacks asked for, or the usual two; a wrong one is bad usage and stops before anything is opened."""
    from attacker.audit.run import DEFAULT_ATTACKS, build_attacks

    wanted = [spec for text in specs for spec in split_attacks(text)] if specs else list(DEFAULT_ATTACKS)
    try:
        build_attacks(wanted)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--attacks") from None
    return wanted


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
