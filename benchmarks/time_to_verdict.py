"""How long a reader waits: seconds to the first line, the plan and the verdict of the real commands, and the silences.

``python -m benchmarks.time_to_verdict --tapes FOLDER
--out docs/results/time-to-verdict.json --page docs/results/evidence.md``

The tapes are made once and kept in FOLDER; each command runs in a process of its own, and every line that it prints is
timed as it arrives at a pipe. Runs that are in the file are not run again. ``--page`` also writes the table into the
page; with ``--table`` nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.page_tables import write_between
from benchmarks.simulated_images import SHARED
from benchmarks.simulated_tapes import simulate
from fl_precode.federation.config import Settings

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-c", "from fl_precode.cli import main; main()")
PLANNED = re.compile(r"\bexpected: ", re.IGNORECASE)
JUDGED = re.compile(r"^So far\b|\b(leaks|not shown|not known|held)\b")
"""The first line that says what is known: of the verdict so far, or of the verdict."""
LATEST = 3.0
"""Times the budget, and a minute more, after which a command is ended and counted as one that does not end."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What a tape is made of.

    Attributes:
        words: Name in the table.
        settings: By field.
        clients: How many of the settings' clients work.
        needs: File of ../shared/data that it is made from; empty where installed packages hold the images.
    """

    words: str
    settings: Mapping[str, str | int | float]
    clients: int | None = None
    needs: str = ""


_XRAYS = "medmnist/pneumoniamnist.npz"
_SCANS = "medical_mnist/medical_mnist_6x1000.npz"
_RESIDUAL = "benchmarks.simulated_models:residual"
FEDERATIONS: Mapping[str, Federation] = {
    "mlp": Federation(
        words="MLP, photographs, one image", settings={"model": "mlp", "dataset": "photos", "num_clients": 4}
    ),
    "precode": Federation(
        words="LeNet with PRECODE, photographs, one image",
        settings={"model": "lenet", "defence": "precode", "dataset": "photos", "num_clients": 4},
    ),
    "epoch": Federation(
        words="ResNet18, one epoch of 1,177 chest X-rays in 74 steps, 28x28",
        settings={"model": _RESIDUAL, "protocol": "fedavg", "local_epochs": 1, "batch_size": 16, "num_clients": 4},
        clients=1,
        needs=_XRAYS,
    ),
    "head": Federation(
        words="ResNet18, the last layer trains, 4 steps of 8 chest X-rays",
        settings={
            "model": f"{_RESIDUAL}(head_only=True)",
            "protocol": "fedavg",
            "local_steps": 4,
            "batch_size": 8,
            "num_clients": 4,
        },  # fmt: skip
        needs=_XRAYS,
    ),
    "transformer": Federation(
        words="ViT-B/32, photographs at 224x224, one image",
        settings={"model": "benchmarks.architecture_models:vit_b_32", "dataset": "photos224", "num_clients": 2},
    ),
    "dense": Federation(
        words="DenseNet121, photographs at 224x224, one image",
        settings={"model": "benchmarks.architecture_models:dense_121", "dataset": "photos224", "num_clients": 2},
    ),
    "noise": Federation(
        words="LeNet, noise of 0.01, 64x64 scans, one image",
        settings={"model": "lenet", "defence": "noise:std=0.01", "num_clients": 4},
        needs=_SCANS,
    ),
}
"""The tapes, by short name."""


def tape_of(name: str, tapes: Path) -> Path | str:
    """Folder of a tape, which is made where it is not there; or why it cannot be made."""
    own = FEDERATIONS[name]
    folder = tapes.absolute() / name
    source = (SHARED / own.needs).resolve()
    if own.needs and not source.is_file():
        return f"it needs {own.needs} in ../shared/data, which is not there"
    if not (folder / "evaluation.json").exists():  # written last
        shutil.rmtree(folder, ignore_errors=True)
        data = {"dataset": f"npz:{source}"} if own.needs else {}
        settings = Settings(num_server_rounds=1, device="cpu", **{**own.settings, **data})  # type: ignore[arg-type]
        simulate(folder, settings, clients=own.clients)
    return folder / "tape"


def timed(arguments: Sequence[object], *, limit: float) -> Row:
    """Run the command line and time what it prints.

    Args:
        arguments: Arguments of the command.
        limit: Seconds after which it is ended.

    Returns:
        ``first``, ``plan``, ``verdict`` and ``end`` in seconds from the start (None where no line says what is
        expected, or what is shown), ``silence``, the longest time between two lines, and ``exit`` (None where it was
        ended).
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    lines: list[tuple[float, str]] = []
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        ender = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        ender.start()
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.decode(errors="replace").strip():
                lines.append((time.monotonic() - began, text))
        code = process.wait()
        ender.cancel()
    end = time.monotonic() - began
    times = [0.0, *(when for when, _ in lines), end]
    return {
        "first": _rounded(lines[0][0] if lines else None),
        "plan": _rounded(next((when for when, text in lines if PLANNED.search(text)), None)),
        "verdict": _rounded(next((when for when, text in lines if JUDGED.search(text)), None)),
        "end": _rounded(end),
        "silence": _rounded(max(later - earlier for earlier, later in zip(times, times[1:], strict=False))),
        "lines": len(lines),
        "exit": None if code == -signal.SIGKILL else code,
        "last": [text for _, text in lines[-6:]],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def seconds_of(budget: str) -> float:
    """
    >>> seconds_of("60s"), seconds_of("5m")
    (60.0, 300.0)
    """
    return float(budget[:-1]) * {"s": 1, "m": 60, "h": 3600}[budget[-1]]


def measured(name: str, tape: Path, budget: str, workers: int) -> list[Row]:
    """The two commands on one tape, with an audit by some processes; costs that were kept stay where they are."""
    limit = LATEST * seconds_of(budget) + 60
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for command in (("plan", tape), ("audit", tape, "--out", Path(place) / "audit", "--workers", workers)):
            found = timed([*command, "--budget", budget], limit=limit)
            share = round(found["end"] / seconds_of(budget), 3)
            rows.append(
                {"tape": name, "command": command[0], "budget": budget, "workers": workers, **found, "share": share}
            )
    return rows


def table(content: Mapping[str, Any]) -> str:
    """The page's table: the slower of the runs."""
    lines = [
        "| tape | budget | processes | first line | plan | plan in the audit | first verdict | end | of the budget | "
        "longest silence |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, own in FEDERATIONS.items():
        if reason := content["skipped"].get(name):
            lines.append(f"| {own.words} | – | – | not run: {reason} | | | | | | |")
        kinds = dict.fromkeys((row["budget"], row["workers"]) for row in content["rows"] if row["tape"] == name)
        for budget, workers in kinds:
            alike = rows_of(content, name, budget, workers)
            plans, audits = ([row for row in alike if row["command"] == which] for which in ("plan", "audit"))
            cells = [
                own.words,
                budget,
                str(workers),
                _span(alike, "first", " s"),
                _span(plans, "end", " s"),
                _span(audits, "plan", " s"),
                _span(audits, "verdict", " s"),
                _span(audits, "end", " s"),
                f"{max(row['share'] for row in audits):.0%}" if audits else "–",
                _span(alike, "silence", " s"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rows_of(content: Mapping[str, Any], name: str, budget: str, workers: int) -> list[Row]:
    """Of one tape, one budget and one number of processes."""
    wanted = (name, budget, workers)
    return [row for row in content["rows"] if (row["tape"], row["budget"], row["workers"]) == wanted]


def _span(rows: Sequence[Row], name: str, unit: str) -> str:
    """Least to most of the runs; a run that had to be ended says so."""
    if any(row["exit"] is None for row in rows) and name == "end":
        return f"does not end within {max(row['end'] for row in rows):.0f}{unit}"
    values = [row[name] for row in rows if row[name] is not None]
    if not values:
        return "–"
    low, high = min(values), max(values)
    return f"{low:.1f}{unit}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}{unit}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tapes", type=Path, required=True, help="folder that keeps the tapes")
    parser.add_argument("--only", nargs="+", choices=list(FEDERATIONS), default=list(FEDERATIONS), help="these tapes")
    parser.add_argument("--budgets", nargs="+", default=["60s", "5m"], help="of the audits, such as 60s or 5m")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="processes of the audits")
    parser.add_argument("--runs", type=int, default=2, help="of each tape and budget")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and run nothing")
    parser.add_argument("--page", type=Path, help="page that gets the table")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    content = json.loads(options.out.read_text()) if options.out.exists() else {"rows": [], "skipped": {}}
    for name in [] if options.table else options.only:
        tape = tape_of(name, options.tapes)
        content["skipped"].pop(name, None)
        if isinstance(tape, str):
            content["skipped"][name] = tape
            continue
        for budget, workers in product(options.budgets, options.workers):
            there = rows_of(content, name, budget, workers)
            for _ in range(len(there) // 2, options.runs):
                content["rows"] += measured(name, tape, budget, workers)
                for row in content["rows"][-2:]:
                    print({key: value for key, value in row.items() if key != "last"}, flush=True)
                options.out.write_text(json.dumps(content, indent=1) + "\n")
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))
    if options.page is not None:
        write_between(options.page, "time to verdict", table(content))


if __name__ == "__main__":
    main()
