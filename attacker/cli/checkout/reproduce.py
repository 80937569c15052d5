"""The command ``reproduce``. It needs the repository, and Flower for its federations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.audit import RayAddress, check_crew, use_threads
from attacker.cli.device import AUTO, Device, find_device
from attacker.cli.options import split_attacks
from attacker.cli.progress import progress_bar

if TYPE_CHECKING:
    from attacker.experiments.precode.experiment import Experiment
    from attacker.experiments.precode.summary import Summary
    from attacker.jobs.progress import State, Watch


GROUP = typer.Typer(no_args_is_help=True, help="Re-run a published experiment, resumable, with a page of plots.")


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    GROUP.command("precode")(precode)
    app.add_typer(GROUP, name="reproduce")


# What the options mean.
ScaleOption = Annotated[str, typer.Option(help="smoke (minutes), small (tens of minutes) or paper (a GPU, days).")]
_Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Image set: a name, npz:PATH, folder:PATH, or a file or folder. Repeatable. Default: the scale's.",
        show_default=False,
    ),
]
_Models = Annotated[str, typer.Option(help="Model specs, separated by commas.")]
_Defences = Annotated[
    list[str] | None,
    typer.Option(help="Defence specs, separated by commas. Repeatable. Default: the scale's.", show_default=False),
]
AttacksOption = Annotated[
    list[str] | None,
    typer.Option(help="Attack specs in place of those that fit each defence. Repeatable.", show_default=False),
]
RootOption = Annotated[str, typer.Option(help="Folder of downloaded image sets. Default: ~/.cache/fl-precode.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Random seed.")]
WorkersOption = Annotated[
    int, typer.Option(min=0, help="Number of worker processes; 0 takes one for each processor, or one on a GPU.")
]


def precode(
    out: Annotated[Path, typer.Option(help="Folder of the experiment; an interrupted one is resumed.")],
    scale: ScaleOption = "smoke",
    data: _Data = None,
    models: _Models = "",
    defences: _Defences = None,
    attacks: AttacksOption = None,
    data_root: RootOption = "",
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    ray_address: RayAddress = "",
    device: Device = AUTO,
) -> None:
    """Re-run the PRECODE paper's experiment: accuracy and attack success of each defence, plain and adaptive attacks.

    Every finished part is stored at once: after a crash or Ctrl-C the same
    command resumes, and a finished experiment only draws its page.

    Example: fl-precode reproduce precode --scale smoke --out outputs/precode
    """
    check_crew(workers, ray_address)
    experiment = chosen_experiment(scale, data, models, defences, attacks, data_root, seed, device)
    from attacker.experiments.precode.finish import finish
    from attacker.experiments.precode.run import run_cells

    setups, left_out = experiment.split()
    use_threads(1)
    with cell_progress() as watch:
        folder = out.expanduser().absolute()
        cells = experiment.cells(setups)
        here = how_many(workers, experiment.device)
        made = run_cells(experiment, cells, folder, workers=here, ray_address=ray_address, watch=watch)
    summary, page = finish(experiment, setups, left_out, folder)
    _table(summary)
    typer.echo(f"{made} of {len(cells)} pieces were made now")
    typer.echo(f"figures: {page.parent / 'results.json'}")
    typer.echo(f"page: {page}")


def chosen_experiment(
    scale: str,
    data: Sequence[str] | None,
    models: str,
    defences: Sequence[str] | None,
    attacks: Sequence[str] | None,
    data_root: str,
    seed: int,
    device: str,
) -> Experiment:
    """The experiment asked for; what does not exist is bad usage.

    Raises:
        typer.BadParameter: If a name is wrong, a selection is empty, or a defence fits none of the models.
        RuntimeError: If the images are not on this machine.
    """
    from attacker.experiments.precode.experiment import Experiment, default_root
    from attacker.experiments.scales import SCALES, named

    try:
        sizes = named(SCALES, scale)
        experiment = Experiment(
            scale=sizes,
            data=tuple(map(image_set, data)) if data else sizes.data,
            models=tuple(split_attacks(models)) if models else sizes.models,
            defences=tuple(split_many(defences)) if defences else sizes.defences,
            attacks=tuple(split_many(attacks)) if attacks else None,
            data_root=default_root(data_root),
            seed=seed,
            device=find_device(device).type,
        )
        experiment.split()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return experiment


def split_many(texts: Sequence[str]) -> list[str]:
    """Specs from several lists set apart by commas.

    >>> split_many(["none,noise:std=0.01", "dp:max_norm=1,noise_multiplier=2"])
    ['none', 'noise:std=0.01', 'dp:max_norm=1,noise_multiplier=2']
    """
    return [spec for text in texts for spec in split_attacks(text) if spec]


def image_set(text: str) -> str:
    """A name as it is; a file or folder as ``npz:`` or ``folder:`` with its absolute path.

    >>> image_set("photos"), image_set("npz:/data/own.npz")
    ('photos', 'npz:/data/own.npz')
    """
    kind, colon, path = text.partition(":")
    if colon and kind in ("npz", "folder"):
        return f"{kind}:{Path(path).expanduser().resolve()}"
    place = Path(text).expanduser()
    if place.is_dir() or place.suffix == ".npz":
        return f"{'folder' if place.is_dir() else 'npz'}:{place.resolve()}"
    return text


def how_many(workers: int, device: str) -> int:
    """Worker processes: as asked for, or one for each processor; a GPU serves one best."""
    from fl_precode.federation.federation import choose_device

    if workers:
        return workers
    return 1 if choose_device(device).type == "cuda" else os.cpu_count() or 1


@contextmanager
def cell_progress() -> Iterator[Watch]:
    """A bar with the time left; without a terminal a line for every finished piece."""
    from attacker.wording import duration

    with progress_bar("starting", keep=True) as tell:
        finished = -1

        def watch(state: State) -> None:
            nonlocal finished
            left = "" if state.seconds_left is None else f"about {duration(state.seconds_left)} left"
            note = " ".join(filter(None, (f"{state.done}/{state.of}", left)))
            tell(state.share, state.title, note, line=state.done > finished >= 0)
            finished = state.done

        yield watch


def _table(summary: Summary) -> None:
    from rich.console import Console
    from rich.table import Table

    from attacker import wording

    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(header_style="bold")
    for heading in ("images", "model", "defence", "falls to", "found"):
        table.add_column(heading, overflow="fold")
    names = {"plain": "a plain attack", "adaptive": "an adaptive attack", "none tried": "none that was tried"}
    for fall in summary.falls:
        cells = (fall.data, wording.model_name(fall.model), wording.defence_name(fall.defence))
        outcome = (names.get(fall.assumption, fall.assumption), fall.sentence)
        table.add_row(*(cell.replace("[", r"\[") for cell in (*cells, *outcome)))
    console.print(table)
