"""What listening costs: seconds per round with the interceptor on and off, interleaved, and whether a bit changes.

The MLP for 32x32 colour images (4.2 M parameters), 4 clients, 3 rounds of FedSGD, each run a real Flower federation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from deploy.simulation.launch import SimulationRuntime
from fl_precode.federation.config import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs with and without")
    parser.add_argument("--dataset", default="photos")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()

    seconds: dict[str, list[float]] = {"on": [], "off": []}
    hashes: set[str] = set()
    with tempfile.TemporaryDirectory() as folder, SimulationRuntime() as runtime:
        for repeat in range(options.repeats):
            for state in ("off", "on"):
                out = Path(folder) / f"{state}-{repeat}"
                tape = str(out / "tape") if state == "on" else ""
                settings = Settings(model="mlp", dataset=options.dataset, output_dir=str(out), tape=tape)
                outcome = runtime.run(settings)
                if not outcome.completed:
                    sys.exit(f"the federation failed: {outcome.reason}")
                result = json.loads((out / "result.json").read_text())
                # The first round also starts the clients' processes.
                seconds[state] += [one["seconds"] for one in result["rounds"][2:]]
                hashes.add(",".join(one["model_sha256"] for one in result["rounds"]))
                print(f"{state}: {seconds[state][-2:]}", file=sys.stderr)
    medians = {state: statistics.median(values) for state, values in seconds.items()}
    report = {
        "parameters": result["parameters"],
        "seconds_per_round": seconds,
        "median_seconds_per_round": medians,
        "cost_seconds_per_round": medians["on"] - medians["off"],
        "bit_identical": len(hashes) == 1,
    }
    options.out.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
