"""The command ``audit``, and what every audit prints at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.allocator import keep_freed_memory
from attacker.cli_device import AUTO, Device
from attacker.cli_options import (
    Attacks,
    Budget,
    Classes,
    Defence,
    Evaluation,
    Images,
    Know,
    LabelsOption,
    Mean,
    Model,
    NoControl,
    NoTruth,
    Rounds,
    Seed,
    Std,
    Tapes,
    Threads,
    Truth,
    Victims,
    Withhold,
    audit_settings,
    check_truth,
    find_own_models,
    parse_inputs,
)
from attacker.cli_plan import duration

if TYPE_CHECKING:
    from attacker.audit.campaign import CampaignState, Watch
    from attacker.audit.record import AuditRecord
    from attacker.audit.run import AuditProgress


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("audit")(audit)


_Out = Annotated[Path, typer.Option(help="Folder for audit.json, images and the report.")]
_Workers = Annotated[int, typer.Option(min=1, help="Processes that attack; what they find is the same for any number.")]
_RayAddress = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", help="Attack on a Ray cluster that is there; auto finds one here.", show_default=False
    ),
]
_Leakage = Annotated[
    bool,
    typer.Option(
        "--leakage/--no-leakage",
        help="Compute what one update determines of an image, where the model is small enough; up to about two minutes "
        "for each tape, beside the budget.",
    ),
]


def audit(
    tapes: Tapes,
    out: _Out = Path("audit"),
    attacks: Attacks = None,
    victims: Victims = 4,
    budget: Budget = None,
    seed: Seed = 0,
    labels: LabelsOption = None,
    know: Know = None,
    withhold: Withhold = None,
    no_control: NoControl = False,
    rounds: Rounds = None,
    evaluation: Evaluation = None,
    truth: Truth = None,
    no_truth: NoTruth = False,
    model: Model = None,
    defence: Defence = None,
    images: Images = None,
    classes: Classes = None,
    mean: Mean = None,
    std: Std = None,
    workers: _Workers = 1,
    ray_address: _RayAddress = "",
    threads: Threads = 1,
    device: Device = AUTO,
    leakage: _Leakage = True,
) -> None:
    """Attack the updates on a tape and write what came back: audit.json and a report.

    TAPE is the folder that the Interceptor wrote. Where its run left an
    evaluation.json beside it, or the clients a TAPE.truth (record_truth), the
    images are compared with the true ones.
    Interrupted or killed, the same command goes on where it was.

    Example: fl-precode audit runs/1/tape --out runs/1/audit --victims 64 --workers 2
    """
    inputs = parse_inputs(images, classes, mean, std)
    wish = check_truth(no_truth, evaluation, truth)
    _check_crew(workers, ray_address)
    settings = audit_settings(
        attacks=attacks, victims=victims, budget=budget, seed=seed, labels=labels, know=know, withhold=withhold,
        control=not no_control, rounds=rounds, threads=threads, device=device, leakage=leakage,
    )  # fmt: skip
    use_threads(threads)
    find_own_models()

    from attacker.audit import run
    from attacker.audit.subject import TapeSource

    sources = [
        TapeSource(tape=tape, evaluation=evaluation, truth=wish, model=model, defence=defence, inputs=inputs)
        for tape in tapes
    ]
    try:
        with campaign_progress() as watch:
            record = run.audit(sources, settings, out=out, workers=workers, ray_address=ray_address, watch=watch)
    except KeyboardInterrupt:
        if (out / "campaign").is_dir():
            typer.echo(f"What was finished is kept in {out}; the same command goes on from there.", err=True)
        raise
    finish(record, out)


def _check_crew(workers: int, ray_address: str) -> None:
    if not ray_address:
        return
    from attacker.audit.ray_crew import is_address

    if workers > 1:
        raise typer.BadParameter(
            "either --workers, which work on this machine, or --ray-address, whose cluster works instead",
            param_hint="--workers, --ray-address",
        )
    if not is_address(ray_address):
        raise typer.BadParameter(
            f"expected HOST:PORT of a Ray cluster that is there, or auto for one on this machine, got {ray_address!r}",
            param_hint="--ray-address",
        )


def use_threads(threads: int) -> None:
    """Limit PyTorch's threads in this process, and let it keep the memory that it frees.

    One is the default: beside other busy processes, several threads that wait for each other were measured to be 20 to
    50 times slower than one.
    """
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()


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
        defence = f"{own.defence}, control" if own.control_of else own.defence
        cells = (own.model, defence, one.attack, back, between, words.figure(one.mean_ssim))
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console = Console()
    console.print(table)
    for line in without_result(record):
        console.print(line, markup=False, highlight=False)
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


def without_result(record: AuditRecord) -> list[str]:
    """Why attacks gave nothing, a line for each reason."""
    found = [(one.attack, "; ".join(one.reasons)) for one in record.summaries if not one.images]
    if not record.summaries:
        found = [(one.attack, one.reason) for one in record.plan]
    names: dict[str, list[str]] = {}
    for attack, reason in found:
        names.setdefault(reason, []).append(attack)
    return [f"{', '.join(dict.fromkeys(attacks))}: {reason}" for reason, attacks in names.items()]


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


@contextmanager
def campaign_progress() -> Iterator[Watch]:
    """A progress bar on stderr for a campaign; nothing is drawn where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("audit", total=1.0)

        def watch(state: CampaignState) -> None:
            bar.update(task, description=state_line(state), completed=state.share)

        yield watch


def state_line(state: CampaignState) -> str:
    """One line about how far a campaign is."""
    parts = [f"{state.title.partition(':')[0]}: {state.title.partition(': ')[2].partition(':')[0]}"]
    parts.append(f"{state.done} of {state.of} chunks")
    if state.failing:
        parts.append(f"{state.failing} failing")
    if state.best_ssim is not None:
        parts.append(f"best SSIM {state.best_ssim:.2f}")
    if state.seconds_left is not None:
        parts.append(f"{duration(state.seconds_left)} left")
    return " · ".join(parts)
