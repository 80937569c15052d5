"""The command ``recommend``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.audit import use_threads
from attacker.cli.checkout.reproduce import (
    AttacksOption,
    RootOption,
    ScaleOption,
    SeedOption,
    WorkersOption,
    chosen_experiment,
    how_many,
)
from attacker.cli.device import AUTO, Device
from attacker.cli.progress import progress_bar

if TYPE_CHECKING:
    from attacker.experiments.defence_search.result import Recommendation
    from attacker.experiments.precode.experiment import Experiment


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("recommend")(recommend)


def recommend(
    out: Annotated[Path, typer.Option(help="Folder of the search; an interrupted one is resumed.")],
    model: Annotated[str, typer.Option(help="Model spec.")] = "lenet",
    data: Annotated[
        str, typer.Option(help="Image set: a name, npz:PATH, folder:PATH, or a file or folder.")
    ] = "photos",
    scale: ScaleOption = "smoke",
    families: Annotated[int, typer.Option(min=1, help="Maximum number of ways of adding noise to try.")] = 12,
    victims: Annotated[
        int, typer.Option(min=0, help="Number of unseen images to judge on; 0 takes the scale's number.")
    ] = 0,
    patient: Annotated[
        int,
        typer.Option(
            min=0, help="Number of these images for patient searches, from the first on; 0 takes the scale's number."
        ),
    ] = 0,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="recommendation.json of another model, for the same plot. Repeatable.", show_default=False),
    ] = None,
    attacks: AttacksOption = None,
    data_root: RootOption = "",
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    device: Device = AUTO,
) -> None:
    """Search for a defence that no attack breaks and that costs at most one point of accuracy.

    The noise behind a clip is raised step by step; Optuna chooses batches,
    local steps and bottlenecks. Validation images show which noise stops the
    attacks, and other images judge the recommended defence. Exit code 1: no
    defence was found.

    Example: fl-precode recommend --model mlp --data photos --out outputs/recommend
    """
    experiment = chosen_experiment(scale, [data], model, ["none"], attacks, data_root, seed, device)
    if len(experiment.models) != 1:
        raise typer.BadParameter(f"expected one model, got {model!r}", param_hint="--model")
    from attacker.experiments.defence_search.figures import keep_figures, read_recommendation
    from attacker.experiments.defence_search.search import RECOMMENDATION_NAME, DefenceSearch

    try:
        others = [read_recommendation(path) for path in beside or ()]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--beside") from None
    experiment = _sized(experiment, victims, patient)
    use_threads(1)
    folder = out.expanduser().absolute()
    with progress_bar("starting", keep=True) as bar:

        def tell(text: str, share: float) -> None:
            bar(share, text, line=True)

        search = DefenceSearch(experiment, folder, tell, workers=how_many(workers, experiment.device))
        recommendation = search.run(at_most=families)
    if recommendation.trials:
        _trials(recommendation)
    typer.echo(recommendation.sentence)
    typer.echo(f"record: {folder / RECOMMENDATION_NAME}")
    for path in keep_figures([recommendation, *others], folder):
        typer.echo(f"figures: {path}")
    if not recommendation.found:
        raise typer.Exit(1)


def _sized(experiment: Experiment, victims: int, patient: int) -> Experiment:
    scale = experiment.scale
    judged = victims or scale.judged
    wanted = patient or min(scale.patient, judged)
    if wanted > judged:
        raise typer.BadParameter(
            f"expected at most the {judged} images that are judged on, got {patient}", param_hint="--patient"
        )
    return replace(experiment, scale=replace(scale, judged=judged, patient=wanted))


def _trials(recommendation: Recommendation) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(header_style="bold")
    for heading in ("family", "images", "nothing back from", "affordable up to", "verdict", "reason"):
        table.add_column(heading, overflow="fold")
    for trial in recommendation.trials:
        quantile = "" if trial.quantile is None or trial.mechanism == "noise" else f" at {trial.quantile:g}"
        beside = f" + {trial.beside}" if trial.beside else ""
        cells = (
            f"{trial.mechanism}{quantile}{beside}", f"{trial.batch_size} x {trial.local_steps}",
            _noise(trial.lowest_holding), _noise(trial.highest_affordable), trial.verdict, trial.reason,
        )  # fmt: skip
        table.add_row(*(cell.replace("[", r"\[") for cell in cells))
    console.print(table)


def _noise(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"
