"""A thousand simulated clients with the interceptor: time of a round, memory of the server, updates seen and kept.

``python -m benchmarks.thousand_clients --out docs/results/scale.json --page docs/results/scale.md``

Each run is a real Flower federation (SuperLink, Ray, the reference app), in which every client answers in every round.
Runs that are in the file are not run again; ``--most 1`` makes one and stops. ``--page`` writes the tables, which also
say what up to 100,000 clients would cost; with ``--table`` nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.page_tables import write_between
from benchmarks.scale_tables import tables
from deploy.simulation.launch import SimulationRuntime
from fl_precode.federation.config import Settings
from fl_precode.tape import Tape
from fl_precode.tape.sampling import Candidate, Sampler, Sampling

Row = dict[str, Any]
DATASET = "photos"
RESERVOIR = "reservoir:n=120"
CHOSEN_AMONG = 100_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        model: Model of the reference app.
        clients: All of them answer in every round.
        listening: ``off`` without the interceptor, ``all``, or a sampling of the updates.
        repeat: Number of the repetition.
    """

    model: str
    clients: int
    listening: str
    repeat: int = 0


CASES = (
    *(Case(model="lenet", clients=100, listening=one) for one in ("off", "all")),
    *(Case(model="lenet", clients=1_000, listening=one) for one in ("off", "all", RESERVOIR)),
    *(Case(model="lenet", clients=300, listening=one) for one in ("off", "all")),
    *(Case(model="resnet20", clients=100, listening=one) for one in ("off", "all")),
)


class Memory(threading.Thread):
    """Follows the server's process: Linux's own peak in each round, and its memory as the round ends.

    Args:
        result: The run's ``result.json``, which the server writes after every round.
    """

    def __init__(self, result: Path) -> None:
        super().__init__(daemon=True)
        self._result = result
        self._ended = threading.Event()
        self.after: list[int] = []
        """Bytes when the untrained model was evaluated, and after each round."""
        self.peaks: list[int] = []
        """Bytes at the most, until then."""

    def run(self) -> None:
        server: psutil.Process | None = None
        while not self._ended.wait(0.1):
            if server is None:
                server = _server_process()
                continue
            with suppress(OSError, ValueError, psutil.Error):
                if self._result.exists() and len(json.loads(self._result.read_text())["rounds"]) > len(self.after):
                    self.after.append(_status(server.pid, "VmRSS"))
                    print(f"{time.strftime('%X')} round {len(self.after) - 1} ended", file=sys.stderr)
                    self.peaks.append(_status(server.pid, "VmHWM"))
                    Path(f"/proc/{server.pid}/clear_refs").write_text("5")  # from here the peak is counted anew

    def end(self) -> None:
        self._ended.set()
        self.join()


def _server_process() -> psutil.Process | None:
    """The process in which Flower runs the ServerApp and passes messages, among those that this one started."""
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if any("flwr-simulation" in part for part in process.info["cmdline"] or []) and _is_ours(process):
                return process
    return None


def _is_ours(process: psutil.Process) -> bool:
    return process.environ().get("FL_PRECODE_BENCHMARK") == str(os.getpid())


def _status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"expected {field} in /proc/{pid}/status; this measurement needs Linux")


def measured(case: Case, rounds: int, load: float) -> Row:
    """Run one federation."""
    with (
        tempfile.TemporaryDirectory() as folder,
        SimulationRuntime(environment={"FL_PRECODE_BENCHMARK": str(os.getpid())}) as runtime,
    ):
        out = Path(folder) / "run"
        tape = "" if case.listening == "off" else str(out / "tape")
        settings = Settings(
            model=case.model, dataset=DATASET, num_clients=case.clients, num_server_rounds=rounds, output_dir=str(out),
            tape=tape, tape_sampling=case.listening if case.listening not in ("off", "all") else "",
        )  # fmt: skip
        memory = Memory(out / "result.json")
        memory.start()
        try:
            outcome = runtime.run(settings)
        finally:
            memory.end()
        if not outcome.completed:
            sys.exit(f"{case}: the federation failed: {outcome.reason}")
        result = json.loads((out / "result.json").read_text())
        return {
            **asdict(case),
            "rounds": [one["seconds"] for one in result["rounds"][1:]],
            "usable": [one["usable"] for one in result["rounds"][1:]],
            "models": [one["model_sha256"] for one in result["rounds"]],
            "payload_bytes": result["payload_bytes"],
            "peak_rss_bytes": memory.peaks,
            "rss_bytes_after_round": memory.after,
            "load_before": load,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            **(_on_tape(Path(tape)) if tape else {}),
        }


def _on_tape(folder: Path) -> Row:
    tape = Tape(folder)
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        "seen": tape.updates_seen,
        "kept": len(tape.entries),
        "lost": result_lost(folder),
        "tape_bytes": sum(file.stat().st_size for file in files),
        "manifest_bytes": (folder / "manifest.jsonl").stat().st_size,
        "seconds_of_an_update": _seconds_of_an_update(folder),
    }


def result_lost(folder: Path) -> int:
    """Entries that could not be written, by the run's result."""
    return int(json.loads((folder.parent / "result.json").read_text())["tape_lost"])


def _seconds_of_an_update(folder: Path) -> float:
    """Seconds from one update's line to the next, in the rounds' bursts of lines; the tape is written in one thread."""
    times: dict[int, list[datetime]] = {}
    for line in (folder / "manifest.jsonl").read_text().splitlines():
        content = json.loads(line)
        if content["type"] == "observation":
            times.setdefault(content["round"], []).append(datetime.fromisoformat(content["time"]))
    spans = [(max(one) - min(one)).total_seconds() for one in times.values()]
    return sum(spans) / sum(len(one) - 1 for one in times.values())


def seconds_to_choose() -> float:
    """Of a reservoir among the updates of a round of a hundred thousand clients."""
    sampler = Sampler(Sampling.parse(RESERVOIR))
    candidates = [Candidate(node=str(7_000_000_000_000_000_000 + node), bytes=1) for node in range(CHOSEN_AMONG)]
    start = time.perf_counter()
    sampler.choose(1, candidates, written=0)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file, which later calls add to")
    parser.add_argument("--page", type=Path, help="page with the marks of the tables")
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, help="runs to make at most")
    parser.add_argument("--smallest", action="store_true", help="two runs with four clients, to see that it works")
    options = parser.parse_args()

    report: Row = json.loads(options.out.read_text()) if options.out.exists() else {"rows": []}
    cases = tuple(Case(model="lenet", clients=4, listening=one) for one in ("off", "reservoir:n=2"))
    known = {tuple(row[name] for name in asdict(CASES[0])) for row in report["rows"]}
    left = [one for one in (cases if options.smallest else CASES) if tuple(asdict(one).values()) not in known]
    for case in [] if options.table else left[: options.most]:
        report["rows"].append(measured(case, options.rounds, os.getloadavg()[0]))
        report["machine"] = {"cores": os.cpu_count(), "python": platform.python_version()}
        report["choosing"] = {"among": CHOSEN_AMONG, "by": RESERVOIR, "seconds": seconds_to_choose()}
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps({**report["rows"][-1], "models": "..."}), file=sys.stderr)
    if options.page:
        for name, text in tables(report).items():
            write_between(options.page, name, text)


if __name__ == "__main__":
    main()
