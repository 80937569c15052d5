"""The command ``recommend``."""

from __future__ import annotations

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


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("recommend")(recommend)


def recommend(
    out: Annotated[Path, typer.Option(help="Folder of the search; one that was begun is taken up.")],
    model: Annotated[str, typer.Option(help="Model spec.")] = "lenet",
    data: Annotated[
        str, typer.Option(help="Image set: a name, npz:PATH, folder:PATH, or a file or folder.")
    ] = "photos",
    scale: ScaleOption = "smoke",
    candidates: Annotated[int, typer.Option(min=1, help="Try at most so many.")] = 24,
    attacks: AttacksOption = None,
    data_root: RootOption = "",
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    device: Device = AUTO,
) -> None:
    """Search the cheapest defence that no attack breaks and that costs at most one point of accuracy.

    Candidates are defences, combinations, places of the bottleneck, batch

    sizes and local steps, by rising cost. Attacks are stopped by validation

    images; what is recommended is judged on others. Exit code 1: there is none.

    Example: fl-precode recommend --model mlp --data photos --out outputs/recommend
    """
    experiment = chosen_experiment(scale, [data], model, ["none"], attacks, data_root, seed, device)
    if len(experiment.models) != 1:
        raise typer.BadParameter(f"expected one model, got {model!r}", param_hint="--model")
    from attacker.experiments.defence_search.search import RECOMMENDATION_NAME, DefenceSearch

    use_threads(1)
    folder = out.expanduser().absolute()
    with progress_bar("starting", keep=True) as bar:

        def tell(text: str, share: float) -> None:
            bar(share, text, line=True)

        search = DefenceSearch(experiment, folder, tell, workers=how_many(workers, experiment.device))
        recommendation = search.run(at_most=candidates)
    if recommendation.trials:
        _trials(recommendation)
    typer.echo(recommendation.sentence)
    typer.echo(f"record: {folder / RECOMMENDATION_NAME}")
    if not recommendation.found:
        raise typer.Exit(1)


def _trials(recommendation: Recommendation) -> None:
    from rich.console import Console
    from rich.table import Table

    from attacker import wording

    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(header_style="bold")
    for heading in ("defence", "images", "a client sends", "verdict", "reason"):
        table.add_column(heading, overflow="fold")
    for trial in recommendation.trials:
        cells = (trial.defence, f"{trial.batch_size} x {trial.local_steps}", wording.size(trial.payload_bytes))
        table.add_row(*(cell.replace("[", r"\[") for cell in (*cells, trial.verdict, trial.reason)))
    console.print(table)
