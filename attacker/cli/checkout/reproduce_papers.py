"""The commands ``reproduce hybrid`` and ``reproduce i2f``: comparisons whose pieces do not need each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.audit import RayAddress, check_crew, use_threads
from attacker.cli.checkout.reproduce import (
    GROUP,
    RootOption,
    ScaleOption,
    SeedOption,
    WorkersOption,
    cell_progress,
    how_many,
    image_set,
)
from attacker.cli.device import AUTO, Device, find_device

if TYPE_CHECKING:
    from attacker.experiments.cell_work import Experimental
    from attacker.experiments.hybrid.summary import InversionSummary
    from attacker.experiments.i2f.page import InfluenceSummary
    from attacker.experiments.precode.run import C

_Data = Annotated[
    str, typer.Option(help="Image set: a name, npz:PATH, folder:PATH, or a file or folder. Default: the scale's.")
]
_Sets = Annotated[
    list[str] | None, typer.Option(help="Image set. Repeatable: the first is used for everything.", show_default=False)
]
_Out = Annotated[Path, typer.Option(help="Folder of the experiment; an interrupted one is resumed.")]


def register(app: typer.Typer) -> None:
    """Add the commands to those of ``reproduce``, which `attacker.cli.checkout.reproduce` adds to the command line."""
    del app
    GROUP.command("hybrid")(hybrid)
    GROUP.command("i2f")(i2f)


def hybrid(
    out: _Out,
    scale: ScaleOption = "smoke",
    data: _Data = "",
    data_root: RootOption = "",
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    ray_address: RayAddress = "",
    device: Device = AUTO,
) -> None:
    """Compare R-GAP, Hybrid and refinement with DLG and Inverting Gradients, on the nets of their papers.

    Every finished part is stored at once: after a crash or Ctrl-C the same
    command resumes, and a finished experiment only draws its page.

    Example: fl-precode reproduce hybrid --scale smoke --out outputs/hybrid
    """
    from attacker.experiments.hybrid.experiment import INVERSION_SCALES, Inversions
    from attacker.experiments.hybrid.page import finish_inversions
    from attacker.experiments.precode.experiment import default_root
    from attacker.experiments.scales import named

    check_crew(workers, ray_address)
    try:
        sizes = named(INVERSION_SCALES, scale)
        comparison = Inversions(
            scale=sizes, data=image_set(data) if data else sizes.data, data_root=default_root(data_root), seed=seed,
            device=find_device(device).type,
        )  # fmt: skip
        comparison.check()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    pieces = comparison.pieces()
    folder, made = _work(comparison, pieces, out, workers, ray_address)
    summary, page = finish_inversions(comparison, folder)
    _inversion_table(summary)
    _end(made, len(pieces), page)


def i2f(
    out: _Out,
    scale: ScaleOption = "smoke",
    data: _Sets = None,
    data_root: RootOption = "",
    seed: SeedOption = 0,
    workers: WorkersOption = 0,
    ray_address: RayAddress = "",
    device: Device = AUTO,
) -> None:
    """Compare influence (I2F, E-I2F, its lower bound) with the error of attacks, by noise, pruning, start and model.

    Every finished part is stored at once: after a crash or Ctrl-C the same
    command resumes, and a finished experiment only draws its page.

    Example: fl-precode reproduce i2f --scale smoke --out outputs/i2f
    """
    from attacker.experiments.i2f.experiment import Influences
    from attacker.experiments.i2f.page import finish_influences
    from attacker.experiments.i2f.scales import INFLUENCE_SCALES
    from attacker.experiments.precode.experiment import default_root
    from attacker.experiments.scales import named

    check_crew(workers, ray_address)
    try:
        sizes = named(INFLUENCE_SCALES, scale)
        comparison = Influences(
            scale=sizes, data=tuple(map(image_set, data)) if data else sizes.data, data_root=default_root(data_root),
            seed=seed, device=find_device(device).type,
        )  # fmt: skip
        comparison.check()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    pieces = comparison.pieces()
    folder, made = _work(comparison, pieces, out, workers, ray_address)
    summary, page = finish_influences(comparison, folder)
    _influence_table(summary)
    _end(made, len(pieces), page)


def _work(
    comparison: Experimental[C], pieces: Sequence[C], out: Path, workers: int, ray_address: str
) -> tuple[Path, int]:
    """Make the pieces that are missing; the folder, and how many there were."""
    from attacker.experiments.precode.run import run_pieces

    use_threads(1)
    folder = out.expanduser().absolute()
    with cell_progress() as watch:
        here = how_many(workers, comparison.device)
        return folder, run_pieces(comparison, pieces, folder, workers=here, ray_address=ray_address, watch=watch)


def _end(made: int, pieces: int, page: Path) -> None:
    typer.echo(f"{made} of {pieces} pieces were made now")
    typer.echo(f"figures: {page.parent / 'results.json'}")
    typer.echo(f"page: {page}")


def _inversion_table(summary: InversionSummary) -> None:
    from attacker import wording
    from attacker.experiments.hybrid.page import attack_name

    rows = []
    for net in summary.nets:
        for figures in net.attacks:
            psnr = wording.figure(figures.psnr, 1) if figures.images else figures.reason
            rows.append((net.name, attack_name(figures.attack), psnr, f"{figures.cpu_seconds:.2f}"))
    _print(("net", "attack", "PSNR, dB", "CPU s an image"), rows)


def _influence_table(summary: InfluenceSummary) -> None:
    from attacker import wording
    from attacker.experiments.i2f.page import change_name, small

    rows = []
    for group in (*summary.noise, *summary.random):
        rho = {correlation.name: wording.figure(correlation.rho) for correlation in group.correlations}
        measured = small(group.measured) + (" (random start)" if group.way == "random" else "")
        rows.append(
            (group.data, change_name(group.change), measured, wording.figure(group.ratio), rho["I2F"], rho["I_lb"])
        )
    _print(("images", "change", "measured RMSE", "I2F over it", "rho of I2F", "rho of I_lb"), rows)


def _print(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = 120
    table = Table(header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)
