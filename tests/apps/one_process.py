"""An app of ``tests/apps/own`` in one process: its ServerApp, its ClientApp, real messages between them, an audit."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from typer.testing import CliRunner

from attacker.cli.main import app as command
from tests.local_grid import LocalGrid

OWN = Path(__file__).resolve().parent / "own"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What an audit left.

    Attributes:
        code: Exit code.
        said: All that was printed, in one line.
        record: The content of ``audit.json``.
    """

    code: int
    said: str
    record: Mapping[str, Any]

    @property
    def best(self) -> dict[str, float]:
        """Each attack's best PSNR against the true images, in dB."""
        best: dict[str, float] = {}
        for one in self.record["results"]:
            if one["psnr"] is not None:
                name = one["attack"].partition(":")[0]
                best[name] = max(best.get(name, one["psnr"]), one["psnr"])
        return best


def run_in_process(app: str, package: str, nodes: int, tape: Path, **settings: str | int | float) -> None:
    """Run the app's federation.

    Args:
        app: Folder below ``own``.
        package: The app's Python package, which is importable from then on.
        nodes: Clients.
        tape: The new tape.
        settings: Run configuration that differs from the app's own, dashes as underscores.
    """
    folder = OWN / app
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    config = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    config |= {name.replace("_", "-"): value for name, value in settings.items()} | {"tape": str(tape)}
    server = importlib.import_module(f"{package}.server_app").app
    grid = LocalGrid(importlib.import_module(f"{package}.client_app").app, nodes, config)
    server(grid, Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config)))


def audited(tape: Path, out: Path, *options: str) -> Audited:
    """Run ``fl-precode audit`` on the tape, as it is typed."""
    arguments = ["audit", str(tape), "--out", str(out), "--device", "cpu", "--no-leakage", *options]
    done = CliRunner().invoke(command, arguments, env={"COLUMNS": "80"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    record = out / "audit.json"
    content = json.loads(record.read_text()) if record.exists() else {"results": [], "verdicts": [], "plan": []}
    return Audited(code=done.exit_code, said=" ".join((done.stdout + done.stderr).split()), record=content)
