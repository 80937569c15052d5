"""Submits the run and ends with its true outcome: exit code 0 only when every round was finished.

``python -m deploy.submit NAME``. A name is used once: recorded and finished, there is nothing to do; recorded and not
finished, the run is refused, because a tape is never written over.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from deploy.connection import CONNECTION, connect, flwr
from deploy.run_settings import settings_from_environment
from deploy.simulation.submission import Submission, to_toml
from deploy.simulation.superlink import LaunchError
from fl_precode.flower.fingerprint import FINGERPRINTED, folder_fingerprint

APP = Path(__file__).resolve().parents[1]
# A SuperLink that was restarted in a run declares it failed after some missed heartbeats; measured: 100 s.
STATUS_SECONDS = 240.0


def finished_already(results: Path, name: str) -> bool:
    """Whether a run of this name has ended well.

    Raises:
        RuntimeError: If one has begun and not ended well.
    """
    record = results / name / "result.json"
    if not record.exists():
        return False
    if json.loads(record.read_bytes()).get("finished") is True:
        return True
    raise RuntimeError(
        f"a run called {name!r} was begun here and has not ended well; give this one another name (RUN=other), "
        "or remove what there is: make compose-down"
    )


def main(name: str, results: Path) -> int:
    """Submit and wait; returns the exit code."""
    try:
        if finished_already(results, name):
            print(f"the run {name!r} was finished before; nothing is submitted")  # noqa: T201
            return 0
        settings = replace(
            settings_from_environment(os.environ),
            tape=f"/tape/{name}",
            output_dir=f"/results/{name}",
            code_fingerprint=folder_fingerprint(APP / package for package in FINGERPRINTED),
        )
        connect()
        config = Path(os.environ["FLWR_HOME"]) / "run.toml"
        config.write_text(to_toml(settings.to_run_config()))
        submission = Submission(flwr, CONNECTION, status_seconds=STATUS_SECONDS)
        outcome = submission.run(APP, config, on_line=lambda line: print(line, flush=True))  # noqa: T201
    except (LaunchError, RuntimeError, ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    print(f"{outcome.status} after {outcome.seconds:.0f} s {outcome.reason}".rstrip(), flush=True)  # noqa: T201
    return 0 if outcome.completed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path("/results")))
