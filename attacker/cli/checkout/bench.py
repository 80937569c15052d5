"""The command ``bench``: how fast the attacks are on this machine. It needs neither Flower nor Ray, nor images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from attacker.cli.audit import use_threads
from attacker.cli.device import AUTO, Device, find_device
from attacker.cli.options import split_attacks
from attacker.cli.progress import progress_bar

MODELS = "lenet,mlp,resnet20:width=4"
_WIDTH = 100


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("bench")(bench)


def bench(
    device: Device = AUTO,
    models: Annotated[str, typer.Option(help="Model specs, separated by commas.")] = MODELS,
    candidates: Annotated[
        str, typer.Option(help="Numbers of images attacked together, separated by commas.")
    ] = "1,8,32",
    iterations: Annotated[
        int,
        typer.Option(
            min=0,
            help="Iterations of the short attack; the long one makes twice as many. 0: half a second of the loop.",
        ),
    ] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Number of pairs of attacks; medians are shown.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Number of processor threads.")] = 1,
    limit: Annotated[
        float,
        typer.Option(
            min=0, help="Time limit of a pair in seconds; a pair that is expected to take longer is left out."
        ),
    ] = 60.0,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", show_default=False)] = None,
) -> None:
    """Measure the attack engine on this machine, beside a plain double-backward loop.

    Gradients of random images at untrained models are attacked, as restarts of
    one victim and as different victims. All times are for one iteration of one
    candidate: "ms" in the steady state, "whole ms" with the attack's set-up.

    Example: fl-precode bench --models lenet --candidates 1,8,32,128 --out bench.json
    """
    counts = _counts(candidates)
    specs = _specs(models)
    use_threads(threads)

    import json

    from rich.console import Console

    from attacker.bench.contenders import contenders
    from attacker.bench.measure import SpeedRow, enough_iterations, measure
    from attacker.bench.problem import make_problem
    from attacker.bench.record import record, table
    from attacker.leakage.smooth_images import smooth_images
    from fl_precode.models.input_spec import InputSpec

    where = find_device(device)
    inputs = InputSpec(channels=3, height=32, width=32, classes=10, mean=(0.5,) * 3, std=(0.25,) * 3)
    images, labels = smooth_images(max(counts), inputs, seed=0)
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    rows_by_model: dict[str, list[SpeedRow]] = {}
    for spec in specs:
        rivals = contenders(make_problem(spec, images, labels, inputs, device=where), counts)
        count = iterations or enough_iterations(rivals[0])
        with _progress(spec, len(rivals) * repeats) as report:
            rows_by_model[spec] = measure(rivals, iterations=count, repeats=repeats, limit=limit, progress=report)
        console.print(table(spec, rows_by_model[spec]))
    if out is not None:
        settings = {"device": str(where), "candidates": counts, "repeats": repeats, "threads": threads, "limit": limit}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record(rows_by_model, settings), indent=2) + "\n", encoding="utf-8")
        typer.echo(f"record: {out.absolute()}")


def _specs(text: str) -> list[str]:
    """Model specs; a wrong one is bad usage."""
    from fl_precode.models import check_model

    specs = split_attacks(text)
    try:
        for spec in specs:
            check_model(spec)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--models") from None
    return specs


def _counts(text: str) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise typer.BadParameter(
            f"expected whole numbers of 1 or more, set apart by commas, such as 1,8,32, got {text!r}",
            param_hint="--candidates",
        )
    return counts


@contextmanager
def _progress(model: str, steps: int) -> Iterator[Callable[[str], None]]:
    """A bar over the measurements of one model; it is told what begins."""
    with progress_bar(model, total=steps) as tell:
        begun = itertools.count()
        yield lambda name: tell(next(begun), f"{model}: {name}")
