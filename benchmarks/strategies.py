"""What wrapping each of flwr's strategies costs: CPU and wall seconds a round with and without, interleaved.

Five clients in this process, a model of 270,000 weights (1.1 MB), so that the strategy's own work shows; the boosted
trees of FedXgb* have some 100 bytes. From the repository: python -m benchmarks.strategies --out outputs/strategies.json
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

from flwr.serverapp.strategy import Strategy

from fl_precode.flower.interceptor import Interceptor
from tests.server.shipped_strategies import CASES, run


def measure(name: str, *, rounds: int, width: int, repeats: int, folder: Path) -> dict[str, object]:
    times: dict[bool, dict[str, list[float]]] = {state: {"cpu": [], "wall": []} for state in (False, True)}
    seen = []
    for repeat in range(repeats):
        for wrapped in (False, True):

            def wrap(strategy: Strategy, wrapped: bool = wrapped, repeat: int = repeat) -> Strategy:
                return Interceptor(strategy, folder / f"{name}-{repeat}") if wrapped else strategy

            wall, cpu = time.perf_counter(), time.process_time()
            arrays, _ = run(name, wrap, rounds=rounds, width=width)
            times[wrapped]["cpu"].append((time.process_time() - cpu) / rounds)
            times[wrapped]["wall"].append((time.perf_counter() - wall) / rounds)
            seen.append(arrays)
    medians = {
        f"{clock}_{word}": statistics.median(times[state][clock])
        for clock in ("cpu", "wall")
        for state, word in ((False, "plain"), (True, "wrapped"))
    }
    return {"bit_identical": all(one == seen[0] for one in seen), **medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES), help="strategies")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            rows[name] = measure(
                name, rounds=options.rounds, width=options.width, repeats=options.repeats, folder=Path(folder)
            )
            row = rows[name]
            print(
                f"| `{name}` | {'yes' if row['bit_identical'] else 'NO'} | {1000 * row['cpu_plain']:.1f} | "
                f"{1000 * (row['cpu_wrapped'] - row['cpu_plain']):+.1f} | {1000 * row['wall_plain']:.0f} | "
                f"{1000 * (row['wall_wrapped'] - row['wall_plain']):+.0f} |",
                flush=True,
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"strategies": rows}, indent=2))


if __name__ == "__main__":
    main()
