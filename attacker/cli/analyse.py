"""The command ``analyse``: what a model's gradients give away, before any attack and without a federation."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attacker.cli.audit import use_threads
from attacker.cli.options import parse_inputs
from attacker.cli.progress import progress_bar

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor, nn

    from attacker.leakage.record import Leakage
    from fl_precode.models.input_spec import InputSpec

_WIDTH = 100


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("analyse")(analyse)


_Model = Annotated[str, typer.Argument(help="A model spec, or package.module:factory.", show_default=False)]
_Images = Annotated[
    str | None, typer.Option("--input", metavar="CxHxW", help="Image shape, such as 3x32x32.", show_default=False)
]
_Classes = Annotated[int | None, typer.Option(min=2, help="Number of classes, with --input.", show_default=False)]
_Mean = Annotated[str | None, typer.Option(help="Mean of each channel, with --input. Default: 0.", show_default=False)]
_Std = Annotated[
    str | None, typer.Option(help="Standard deviation of each channel, with --input. Default: 1.", show_default=False)
]
_Data = Annotated[
    str | None,
    typer.Option(help="Image set, in place of --input; `fl-precode datasets` lists them.", show_default=False),
]
_Root = Annotated[str, typer.Option(help="Folder of downloaded image sets.", show_default=False)]
_Count = Annotated[int, typer.Option("--images", min=1, help="Number of images to analyse.")]
_Weights = Annotated[
    Path | None, typer.Option(help="safetensors file of the weights. Default: untrained.", show_default=False)
]
_Noise = Annotated[float, typer.Option(min=0, help="Standard deviation of noise for which errors are stated.")]
_Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact/--estimate", help="Compute all eigenvalues, or estimates. Default: by size.", show_default=False
    ),
]
_Out = Annotated[Path | None, typer.Option(help="File to write, .html or .json.", show_default=False)]


def analyse(
    model: _Model,
    images: _Images = None,
    classes: _Classes = None,
    mean: _Mean = None,
    std: _Std = None,
    data: _Data = None,
    data_root: _Root = "",
    count: _Count = 1,
    weights: _Weights = None,
    defence: Annotated[str, typer.Option(help="Defence spec; `fl-precode defences` lists them.")] = "none",
    noise: _Noise = 1e-3,
    exact: _Exact = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for weights, images and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Number of processor threads.")] = 1,
    out: _Out = None,
) -> None:
    """Compute how much of an image a gradient of MODEL determines: rank, lost pixels, errors under noise.

    Nothing is attacked: the figures show what the best attack could know. Without
    --data, images are random and smooth.

    Example: fl-precode analyse lenet --input 3x32x32 --classes 10 --out analysis.html
    """
    inputs = parse_inputs(images, classes, mean, std)
    _check(inputs, data, out)
    use_threads(threads)
    sys.path.append(str(Path.cwd()))  # people's own models are where the command is called

    from rich.console import Console

    from attacker.leakage import analyse as run
    from attacker.victim import Victim
    from fl_precode.defences.registry import apply_defence, check_gradient_defence, gradient_defence
    from fl_precode.models import build_model

    source, inputs, pixels, labels = _pictures(inputs, data, data_root, count, seed)
    built = apply_defence(defence, build_model(model, inputs, seed=seed), inputs, seed=seed)
    check_gradient_defence(defence, built)
    origin = f"untrained, seed {seed}" if weights is None else _load(built, weights)
    done = itertools.count(1)
    with progress_bar("images", total=count) as tell:
        leakage = run(
            Victim(model=built, inputs=inputs, name=model),
            pixels,
            labels,
            std=noise,
            defence=gradient_defence(defence),
            names=(defence, origin, source),
            seed=seed,
            exact=exact,
            progress=lambda: tell(next(done)),
        )
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    _show(leakage, console)
    if out is not None:
        typer.echo(f"written: {_write(leakage, out)}")


def _check(inputs: InputSpec | None, data: str | None, out: Path | None) -> None:
    if (inputs is None) == (data is None):
        raise typer.BadParameter("give --input and --classes, or --data: one of them", param_hint="--input")
    if out is not None and out.suffix not in (".html", ".json"):
        raise typer.BadParameter(f"expected a file ending in .html or .json, got {out}", param_hint="--out")


def _pictures(
    inputs: InputSpec | None, data: str | None, root: str, count: int, seed: int
) -> tuple[str, InputSpec, Tensor, Tensor]:
    """Where images come from, their domain, the images in [0, 1], labels."""
    if inputs is not None:
        from attacker.leakage.smooth_images import smooth_images

        return ("random smooth images", inputs, *smooth_images(count, inputs, seed=seed))
    from fl_precode.data import load_data

    assert data is not None
    loaded = load_data(data, root)
    if len(loaded.train) < count:
        raise ValueError(f"{data!r} has {len(loaded.train)} training images, fewer than the {count} of --images")
    return (f"first training images of {data}", loaded.inputs, *loaded.train.batch(range(count)))


def _load(model: nn.Module, path: Path) -> str:
    """Put the file's weights into the model; where they come from, for people."""
    from safetensors.torch import load_file

    weights = load_file(path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the weights of {path} do not fit the model with its defence: {error}") from None
    return path.name


def _show(leakage: Leakage, console: Console) -> None:
    from rich.table import Table

    from attacker.report.leakage_words import advice, headline, warning

    console.print(f"[bold]{headline(leakage)}[/bold]")
    images = Table("image", "class", "gradient norm", "rank", f"RMSE, noise {leakage.std:g}", "RMSE, defence")
    for image in leakage.images:
        rank = "-" if image.rank is None else f"{image.rank} of {image.unknowns}"
        unit = None if image.unit_rmse is None else image.unit_rmse * leakage.std
        moved = image.influence
        cells = [rank, *("-" if value is None else f"{value:.2g}" for value in (unit, moved))]
        images.add_row(str(image.index), str(image.label), f"{image.gradient_norm:.3g}", *cells)
    console.print(images)
    layers = Table("layer", "unknowns", "from weights", "from gradients", "dependent", "untouched", "rank", "missing")
    for layer in leakage.layers:
        counted = f"{layer.predicted} (counted)" if layer.rank is None else str(layer.rank)
        numbers = (layer.unknowns, layer.weight_rows, layer.gradient_rows, layer.dependent_rows, layer.untouched)
        layers.add_row(layer.name, *map(str, numbers), counted, str(layer.missing))
    console.print(layers)
    for paragraph in (*advice(leakage), warning(leakage)):
        console.print(paragraph, markup=False)


def _write(leakage: Leakage, path: Path) -> Path:
    from attacker.report.leakage_page import write_leakage
    from fl_precode.private_file import write_private

    if path.suffix == ".html":
        return write_leakage(leakage, path)
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, (json.dumps(leakage.as_dict(), indent=2) + "\n").encode())
    return path
