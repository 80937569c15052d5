"""One round of up to 10,000 replies in a server alone: what the interceptor adds to its memory and its time.

``python -m benchmarks.large_rounds --out docs/results/scale.json`` adds to that of `benchmarks/thousand_clients.py`.

Each row is a process of its own: real messages of Flower with random arrays of the model's shapes, FedAvg, and the
interceptor around it or not. No client computes anything, so that the server's part can be told from the simulation's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

CASES = (
    *(("lenet", 1_000, listening) for listening in ("off", "all", "reservoir:n=120")),
    *(("resnet20", 300, listening) for listening in ("off", "all", "reservoir:n=120")),
    *(("lenet", 10_000, listening) for listening in ("off", "reservoir:n=120")),
)


def resident(field: str) -> int:
    """Bytes of this process by Linux: VmRSS now, VmHWM at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"expected {field} in /proc/self/status; this measurement needs Linux")


def measured(model: str, clients: int, listening: str) -> dict[str, Any]:
    """In a fresh process: one round."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore.task_identity import TaskIdentity

    from fl_precode.federation.config import Settings
    from fl_precode.federation.federation import prepare
    from fl_precode.flower.interceptor import Interceptor
    from fl_precode.tape import Tape

    # Flower builds a Message only inside a task.
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    state = prepare(Settings(model=model, dataset="photos")).model().state_dict()
    sent = ArrayRecord(state)
    draw = np.random.default_rng(0)

    class Nodes:
        """As much of a grid as FedAvg asks for."""

        def get_node_ids(self) -> list[int]:
            return list(range(1, clients + 1))

    def reply_to(number: int, message: Message) -> Message:
        message.metadata.__dict__["_message_id"] = f"message-{number}"
        arrays = {
            name: Array((value.numpy() + draw.standard_normal(tuple(value.shape))).astype(value.numpy().dtype))
            for name, value in state.items()
        }
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder) / "tape"
        strategy = FedAvg(fraction_evaluate=0.0)
        if listening != "off":
            strategy = Interceptor(strategy, tape, sampling=None if listening == "all" else listening)
        messages = list(strategy.configure_train(1, sent, ConfigRecord({}), Nodes()))
        replies = [reply_to(number, message) for number, message in enumerate(messages)]
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        strategy.aggregate_train(1, replies)
        seconds = time.perf_counter() - start
        return {
            "model": model,
            "clients": clients,
            "listening": listening,
            "payload_bytes": sum(array.numpy().nbytes for array in sent.values()),
            "rss_bytes_with_all_replies": before,
            "added_bytes": resident("VmHWM") - before,
            "seconds": seconds,
            "kept": len(Tape(tape).entries) if listening != "off" else None,
            "tape_bytes": sum(file.stat().st_size for file in tape.rglob("*") if file.is_file()),
            "load_before": os.getloadavg()[0],
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file, which later calls add to")
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "CLIENTS", "LISTENING"), help="one row, printed")
    options = parser.parse_args()
    if options.one:
        model, clients, listening = options.one
        print(json.dumps(measured(model, int(clients), listening)))
        return
    report = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    rows = report.setdefault("server_alone", [])
    known = {(row["model"], row["clients"], row["listening"]) for row in rows}
    for case in CASES:
        if case not in known:
            command = [sys.executable, "-m", "benchmarks.large_rounds", "--one", *map(str, case)]
            rows.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))
            options.out.write_text(json.dumps(report, indent=1) + "\n")
            print(rows[-1], file=sys.stderr)


if __name__ == "__main__":
    main()
