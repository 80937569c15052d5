"""Campaigns in processes that can be killed, and records without what differs between equal runs: times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacker.audit.settings import AuditSettings

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = ("first-layer", "hybrid", "noise-restoring:iterations=20", "ignore:iterations=20", "dlg:iterations=20")


def settings(**changes: Any) -> AuditSettings:
    return AuditSettings(**{"attacks": ATTACKS, "victims": 20, "control": True, **changes})


def without_times(folder: Path) -> str:
    """The record as text, without when and how long."""
    content = json.loads((folder / "audit.json").read_text())
    content.pop("created")
    for row in [*content["results"], *content["summaries"]]:
        row.pop("seconds")
    for row in content["plan"]:
        row.pop("expected_seconds")
    return json.dumps(content)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def start(tape: Path, out: Path, workers: int = 1, victims: int = 20, ray_address: str = "") -> subprocess.Popen[bytes]:
    """The campaign of `settings` in a process that can be killed; what it says is in a file beside its folder."""
    code = (
        "import sys; from pathlib import Path\n"
        "from attacker.audit.audit import audit\n"
        "from attacker.audit.inputs.tape_source import TapeSource\n"
        "from tests.attacker.campaigns import settings\n"
        "if __name__ == '__main__':\n"
        "    tape, out, workers, victims, address = sys.argv[1:]\n"
        "    chosen = settings(victims=int(victims))\n"
        "    more = {'workers': int(workers), 'ray_address': address}\n"
        "    audit([TapeSource(tape=Path(tape))], chosen, out=Path(out), **more)\n"
    )
    script = out.parent / "campaign.py"
    script.write_text(code)
    with log_of(out).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(script), str(tape), str(out), str(workers), str(victims), ray_address],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def log_of(out: Path) -> Path:
    return out.with_suffix(".log")


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """Finished chunks, each with what changes when it is written again."""
    folder = out / "campaign" / "chunks"
    found = {}
    for path in folder.glob("*.json"):
        about = path.stat()
        found[path.name] = (about.st_mtime_ns, about.st_ino)
    return found


def kill_when(process: subprocess.Popen[bytes], moment: Callable[[], bool]) -> bool:
    """Kill -9 at a moment; False when it had ended by itself before."""
    while not moment():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True
