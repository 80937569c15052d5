"""The commands ``standard`` and ``score``: a frozen set of attacks on a tape, and what others made of the same tape."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.audit import use_threads, write_page
from attacker.cli.audit_options import begun
from attacker.cli.progress import campaign_watch
from attacker.cli.reasons import NOTHING_ATTACKED, columns, wrapped
from attacker.cli.tables import attack_table, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from attacker.standard.result import AttackResult, Figures, StandardResult


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("standard")(standard)
    app.command("score")(score)


_Tape = Annotated[Path, typer.Argument(show_default=False, metavar="TAPE")]
_Key = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the key of a sealed tape's truth.", show_default=False),
]


def standard(
    tape: _Tape,
    out: Annotated[Path, typer.Option(help="Folder for standard.json, audit.json and the report.")] = Path("standard"),
    workers: Annotated[
        int, typer.Option(min=1, help="Number of worker processes; the result does not depend on it.")
    ] = 1,
    key: _Key = None,
) -> None:
    """Attack a tape by standard-1: a frozen set of attacks without options, for comparisons between papers and years.

    The budget is in iterations, so that no result depends on the machine's
    speed: MLPs and LeNets take 10 to 20 minutes, deep networks hours. Two runs
    on one machine write a standard.json of equal bytes, on any number of
    processes. The same command resumes a run that was interrupted or killed. Exit code 3: nothing could be attacked.

    Example: fl-precode standard runs/1/tape --out runs/1/standard --workers 2
    """
    with begun([tape], f"standard-1 on {tape}: reading what was recorded.") as ticker:
        use_threads(1)

        from attacker.standard.run import run_standard

        result, record = run_standard(
            tape,
            out=out,
            key=key,
            workers=workers,
            watch=campaign_watch(ticker),
            say=lambda sentence: ticker.say("\n".join(wrapped(sentence, columns()))),
        )
        ticker.do("writing the page")
        page = write_page(record, out)
    _show(result)
    typer.echo(f"result: {out.absolute() / 'standard.json'}")
    typer.echo(f"record: {out.absolute() / 'audit.json'}")
    typer.echo(f"report: {page}")
    if result.best is None:
        raise typer.Exit(NOTHING_ATTACKED)


def score(
    tape: _Tape,
    reconstructions: Annotated[
        Path,
        typer.Argument(help="Images by update, .npz or .safetensors; docs/reference/standard.md.", show_default=False),
    ],
    key: _Key = None,
    name: Annotated[str, typer.Option(help="Name of the method that made the reconstructions.")] = "reconstructions",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON file for the score.", show_default=False)
    ] = None,
) -> None:
    """Score reconstructions of a tape's updates, made by any code, as `standard` scores its own attacks.

    RECONSTRUCTIONS holds one array for each update, named as its file on the
    tape: (images, channels, height, width) in [0, 1].

    Example: fl-precode score sealed/03/tape mine.npz --key sealed.key --out mine.json
    """
    with begun([tape], f"Score of {reconstructions} on {tape}.") as ticker:
        use_threads(1)

        from attacker.standard.result import write_result
        from attacker.standard.scoring import score as scored

        ticker.do("comparing with the truth")
        result = scored(tape, reconstructions, key=key, name=name)
    table = _table()
    table.add_row(name, *_cells(result.figures))
    show_table(table)
    if out is not None:
        typer.echo(f"score: {write_result(result, out)}")


def _show(result: StandardResult) -> None:
    from attacker.wording import counted

    images = sum(update.images for update in result.attacked)
    typer.echo(f"{result.standard} ({result.definition[:12]}): {counted(images, 'image')} attacked")
    table = _table()
    for attack in result.attacks:
        if attack.figures.images:
            table.add_row(_name(attack), *_cells(attack.figures))
    show_table(table)
    for attack in result.attacks:
        if attack.reasons and (attack.status != "run" or attack.not_applicable or attack.figures.failed):
            typer.echo("\n".join(wrapped(f"{_name(attack)}: {'; '.join(attack.reasons)}", columns())))
    if result.reconstructed_by_any is None:
        typer.echo("Reconstructed by any attack: not known, because the true images are not.")
    else:
        typer.echo(f"Reconstructed by any attack: {result.reconstructed_by_any} of {images}")


def _table() -> Table:
    return attack_table("reconstructed", "identified", "SSIM", "PSNR", "best guess")


def _name(attack: AttackResult) -> str:
    from fl_precode.spec import spec_name

    return spec_name(attack.attack)


def _cells(figures: Figures) -> list[str]:
    from attacker.wording import figure

    counts = ("–" if count is None else f"{count} of {figures.images}"
              for count in (figures.reconstructed, figures.identified))  # fmt: skip
    psnr = "–" if figures.mean_psnr is None else f"{figures.mean_psnr:.1f}"
    return [*counts, figure(figures.mean_ssim), psnr, figure(figures.mean_guess_ssim)]
