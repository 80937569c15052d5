"""Speed against research code: the same model, images, settings, iterations and threads, interleaved.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/speed.py --out speed.json --plot speed.png \
        --invertinggradients CHECKOUT --breaching CHECKOUT

Every contender attacks with n and with 2n iterations. The difference is the steady state, the rest set-up; both are
written, as medians, least and most, by elapsed and by CPU time, with the quality that was reached. The engine runs
candidates together, as restarts of one victim or as different victims; the others run them one after another, so that
their time for one is their time for each. They run in processes of their own, because the engine's searches set how
their process keeps memory. With ``--processes`` victims are also divided among so many processes of one thread each,
as ``fl-precode audit --workers`` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from attacker.bench.contenders import PLAIN, Contender, contenders, plain_loop
from attacker.bench.measure import SpeedRow, enough_iterations, measure
from attacker.bench.problem import BenchProblem, make_problem
from attacker.bench.record import record, table
from images import first_images
from peers import Breaching, FromCheckout, InvertingGradients
from processes import apart, divided


def others(options: argparse.Namespace) -> list[Callable[[BenchProblem], Contender]]:
    """What the engine is compared with."""
    checkouts = {InvertingGradients: options.invertinggradients, Breaching: options.breaching}
    return [plain_loop, *(FromCheckout(peer, path) for peer, path in checkouts.items() if path is not None)]


def measure_model(model: str, options: argparse.Namespace) -> tuple[str, list[SpeedRow]]:
    """Name of the data, and one row for each contender."""
    most = max(options.candidates)
    name, images, labels, inputs = first_images(most)
    problem = make_problem(model, images, labels, inputs, device=torch.device(options.device))
    with ExitStack() as pools:
        rivals = [
            pools.enter_context(apart(model, most, build, threads=options.threads, device=options.device))
            for build in others(options)
        ]
        plain, runners = rivals[0], [*rivals, *contenders(problem, options.candidates)[1:]]
        if options.processes:
            fit = [count for count in options.candidates if count >= options.processes]
            runners += [pools.enter_context(divided(model, count, options.processes)) for count in fit]
        rows = measure(
            runners,
            iterations=options.iterations or enough_iterations(plain),
            repeats=options.repeats,
            limit=options.limit,
            progress=lambda who: print(f"{model}: {who}", file=sys.stderr),
        )
    return name, rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet", "mlp", "resnet20:width=4"])
    parser.add_argument("--candidates", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--iterations", type=int, default=0, help="n; 0: as many as the plain loop does in 0.5 s")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=300, help="seconds that one pair of attacks may take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=0, help="also with the victims in so many processes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--invertinggradients", type=Path, help="a checkout of that repository")
    parser.add_argument("--breaching", type=Path, help="a checkout of that repository")
    parser.add_argument("--plot", type=Path, help="PNG file")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    base = InvertingGradients.name if options.invertinggradients else PLAIN
    models: dict[str, list[SpeedRow]] = {}
    settings: dict[str, Any] = {
        key: getattr(options, key) for key in ("candidates", "repeats", "limit", "threads", "processes", "device")
    }
    console = Console()
    console.width = max(console.width, 110)
    for model in options.models:
        settings["data"], models[model] = measure_model(model, options)
        console.print(table(model, models[model], base=base))
        # After each model, so that a long run that is stopped leaves what it has.
        content = record(models, settings, base=base)
        options.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if options.plot is not None:
        from plots import plot_speed  # needs matplotlib

        plot_speed(content, options.plot)


if __name__ == "__main__":
    main()
