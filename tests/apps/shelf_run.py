"""One app of the shelf from start to end: a copy with the lines, a real ``flwr run``, the audit as a user types it.

``python -m tests.apps.shelf_run FLOWER_EXAMPLES DATA OUT [APP...]`` runs them all and writes ``OUT/apps.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from deploy.simulation.submission import RunOutcome, Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from tests.apps import served_files
from tests.apps.added_lines import add_lines, move_names
from tests.apps.shelf import SHELF, TAPE, App

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "from fl_precode.cli import main; main()"

_HUB = {
    "cifar10": ("uoft-cs/cifar10", "img", 10, served_files.cifar10),
    "fashion": ("zalando-datasets/fashion_mnist", "image", 10, served_files.mnist),
    "mnist": ("ylecun/mnist", "image", 10, served_files.mnist),
    "photographs": ("nelorth/oxford-flowers", "image", 102, served_files.photographs),
}
"""Name on the hub, column of the images, classes, and what is served in its place."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one app.

    Attributes:
        app: Its name.
        lines: Lines added.
        moved: Imports changed because flwr itself moved a name.
        run_seconds: Duration in seconds of ``flwr run``.
        audit_seconds: Duration in seconds of ``fl-precode audit``.
        exit_code: Exit code of the audit; -1 if the run failed.
        images: Images attacked.
        attacks: Attacks that gave a result.
        verdict: The verdict's words, empty without one.
        truth: Whether the images were compared with the true ones.
        came_back: Images that the best attack reconstructed; None without truth.
        ssim: Largest SSIM of any image with its true one; None without truth.
        assumptions: What was assumed, by its codes.
        said: The audit's last words, or why the run failed.
    """

    app: str
    lines: int
    moved: int
    run_seconds: float
    audit_seconds: float
    exit_code: int
    images: int
    attacks: tuple[str, ...]
    verdict: str
    truth: bool
    came_back: int | None
    ssim: float | None
    assumptions: tuple[str, ...]
    said: str


def run_app(app: App, checkout: Path, shared: Path, out: Path) -> RunOutcome:
    """Run a copy of the app with the lines in it.

    Args:
        app: Which one.
        checkout: Flower's ``examples``.
        shared: Folder of the images that are served.
        out: Gets the copy, the tape and the truth.
    """
    copy = copy_of(app, out)
    shutil.copytree(checkout / app.folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    move_names(copy, app.moved)
    tape = out / "tape"
    add_lines(copy, [replace(one, line=one.line.replace(TAPE, str(tape))) for one in app.lines])
    with OwnedSuperLink(environment=_environment(out) | {"FL_PRECODE_TRUTH": f"{tape}.truth"}) as superlink:
        serve(app, shared, superlink.folder / "cwd", out.parent / "cache")
        config = superlink.folder / "run.toml"
        config.write_text(to_toml(app.run_config))
        federation = f"num-supernodes={app.nodes} client-resources-num-cpus=1"
        return Submission(superlink.flwr, CONNECTION).run(copy, config, federation=federation)


def copy_of(app: App, out: Path) -> Path:
    """Where the copy of the app is."""
    return out / "app" / Path(app.folder).name


def serve(app: App, shared: Path, folder: Path, cache: Path) -> None:
    """Put the app's data, and its starting weights, where it looks for them."""
    if app.data == "mednist":
        served_files.write_mednist(folder, shared, images=app.images)
        return
    name, key, classes, read = _HUB[app.data]
    served_files.write_parquet(folder / name, read(shared), images=app.images, key=key, classes=classes)
    if app.data == "photographs":
        served_files.write_vit_weights(cache)


def add_notes(app: App, path: Path) -> None:
    """Put the lines that the audit asks for into the notes beside the tape, once."""
    text = path.read_text()
    if app.notes and app.notes[0] not in text:
        path.write_text("\n".join([*app.notes, text.rstrip(), *app.training]) + "\n")


def audit_app(app: App, out: Path, *, victims: int = 1) -> tuple[int, str]:
    """Run ``fl-precode audit`` on the tape; its exit code and all that it said."""
    add_notes(app, out / "tape.toml")
    command = [sys.executable, "-c", PROGRAM, "audit", str(out / "tape"), "--out", str(out / "audit")]
    command += ["--victims", str(victims), "--budget", app.budget, "--device", "cpu", "--no-leakage", *app.audit]
    environment = _environment(out)
    environment["PYTHONPATH"] = f"{copy_of(app, out)}{os.pathsep}{environment['PYTHONPATH']}"
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=2400)
    said = done.stdout + done.stderr
    (out / "audit.log").write_text(said)
    return done.returncode, said


def row_of(app: App, checkout: Path, shared: Path, out: Path) -> Row:
    """Run and audit one app; a run that is there already is audited anew."""
    ran = out / "run.json"
    if not ran.exists():
        out.mkdir(parents=True)
        outcome = run_app(app, checkout, shared, out)
        ran.write_text(json.dumps({"seconds": outcome.seconds, "reason": outcome.reason, "log": outcome.log}))
    run = json.loads(ran.read_text())
    started = time.monotonic()
    code, said = (-1, run["reason"]) if run["reason"] else audit_app(app, out)
    record = out / "audit" / "audit.json"
    content = json.loads(record.read_text()) if record.exists() else {}
    found = content.get("results", [])
    federation = content.get("federations", [{}])[0]
    scored = [one["ssim"] for one in found if one["ssim"] is not None]
    returned = [one["successes"] for one in content.get("summaries", []) if one["successes"] is not None]
    return Row(
        app=app.name,
        lines=len(app.lines),
        moved=len(app.moved),
        run_seconds=round(run["seconds"]),
        audit_seconds=round(time.monotonic() - started),
        exit_code=code,
        images=len(content.get("victims", [])),
        attacks=tuple(sorted({one["attack"].partition(":")[0] for one in found})),
        verdict=next((one["verdict"] for one in content.get("verdicts", [])), ""),
        truth=bool(scored),
        came_back=max(returned) if scored and returned else None,
        ssim=round(max(scored), 2) if scored else None,
        assumptions=tuple(one["code"] for one in federation.get("assumptions", [])),
        said=" ".join(said.split())[:600],
    )


def _environment(out: Path) -> dict[str, str]:
    return {**served_files.environment(out.parent / "cache"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def main() -> None:
    """Run the apps that are named, or all."""
    parser = argparse.ArgumentParser(description="Run Flower's example apps with the README's lines, and audit them.")
    parser.add_argument("checkout", type=Path, help="Flower's examples folder.")
    parser.add_argument("shared", type=Path, help="Folder of real images.")
    parser.add_argument("out", type=Path, help="Folder for tapes, audits and apps.json.")
    parser.add_argument("apps", nargs="*", help="Names of apps; all without one.")
    given = parser.parse_args()
    for app in SHELF:
        if given.apps and app.name not in given.apps:
            continue
        row = asdict(row_of(app, given.checkout, given.shared, given.out.resolve() / app.name))
        (given.out / app.name / "row.json").write_text(json.dumps(row) + "\n")
        print(json.dumps(row, indent=1), flush=True)
    rows = [json.loads(path.read_text()) for app in SHELF if (path := given.out / app.name / "row.json").exists()]
    (given.out / "apps.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
