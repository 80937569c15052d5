"""The commands that start federations: ``run`` and ``demo``. They need Flower's simulation runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from attacker.cli.checkout.federation import federation_progress, keep_and_check


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("run")(run)
    app.command("demo")(demo)


def run(
    out: Annotated[Path, typer.Option(help="New folder for tape, result.json and evaluation.json.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Run-config key and value, as in pyproject.toml. Repeatable."),
    ] = None,
    tape: Annotated[bool, typer.Option(help="Record every update that the server receives.")] = True,
    client_cpus: Annotated[int, typer.Option(min=1, help="CPUs that Ray reserves for each client.")] = 1,
    client_gpus: Annotated[float, typer.Option(help="GPUs, or a share of one, for each client.")] = 0.0,
    port: Annotated[int, typer.Option(help="Port of the SuperLink on this machine; 0 picks a free port.")] = 0,
) -> None:
    """Run a federation on Flower's simulation runtime and write its tape.

    Example: fl-precode run --out outputs/mine --set model=mlp --set defence=precode --set num-server-rounds=5
    """
    from deploy.simulation.launch import launch
    from fl_precode.federation.config import Settings, SettingsError

    folder = out.resolve()
    config = parse_settings(set_ or [])
    config |= {"output-dir": str(folder)} | ({"tape": str(folder / "tape")} if tape else {})
    try:
        settings = Settings.from_run_config(config)
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None
    if (folder / "tape").exists():
        raise ValueError(f"{folder} already holds a tape; name a new folder with --out")
    with federation_progress(f"{settings.model}, {settings.defence}", settings.num_server_rounds) as on_line:
        outcome = launch(
            settings,
            client_resources_num_cpus=client_cpus,
            client_resources_num_gpus=client_gpus,
            port=port,
            on_line=on_line,
        )
    keep_and_check(outcome, folder)
    console = Console()
    console.print(f"{settings.num_server_rounds} rounds in {outcome.seconds:.0f} s: {folder}")
    if tape:
        console.print(f"audit it with: fl-precode audit {folder / 'tape'} --out {folder / 'audit'}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for tapes, audit.json and the report.")] = Path("outputs/demo"),
    dataset: Annotated[
        str, typer.Option(help="Image set of the first four federations; `fl-precode datasets` lists the names.")
    ] = "faces",
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds of each of the first four federations.")] = 2,
    clients: Annotated[int, typer.Option(min=1, help="Number of clients of each of the first four federations.")] = 4,
    victims: Annotated[int, typer.Option(min=1, help="Number of updates to attack in each federation.")] = 8,
    iterations: Annotated[int, typer.Option(min=1, help="Number of steps of the optimising attack.")] = 1200,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
) -> None:
    """Run and audit five small federations on real images: with and without PRECODE, and photographs at 224x224."""
    from attacker.cli.checkout.demo import run_demo

    run_demo(
        out.resolve(),
        dataset=dataset,
        rounds=rounds,
        clients=clients,
        victims=victims,
        iterations=iterations,
        seed=seed,
    )


def parse_settings(pairs: list[str]) -> dict[str, str | int | float | bool]:
    """``KEY=VALUE`` texts to run-config values: true and false, whole numbers, numbers, else text.

    Paths below the present folder are made absolute, since Flower's processes run in other folders.

    Raises:
        typer.BadParameter: If a pair has no ``=``.
    """
    values: dict[str, str | int | float | bool] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"expected KEY=VALUE, got {pair!r}", param_hint="--set")
        values[key.strip()] = _value(text.strip())
    for key in {"dataset", "data-root"} & values.keys():
        kind, colon, path = str(values[key]).rpartition(":")
        if key == "data-root" or kind in ("npz", "folder"):
            values[key] = f"{kind}{colon}{Path(path).expanduser().resolve()}"
    return values


def _value(text: str) -> str | int | float | bool:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
