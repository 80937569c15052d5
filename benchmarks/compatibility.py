"""Which flwr and which Python the plug-in runs with: an environment for each, a wheel, a federation and its audit.

``python -m benchmarks.compatibility --wheel WHEEL --flwr 1.38.0 --environments FOLDER
--out docs/results/compatibility.json``

flwr is installed first, as in an app's own environment, then the wheel beside it; the flwr must stay. A row of the same
flwr and Python replaces that of an earlier run; the page's table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FEDERATION = Path(__file__).with_name("tiny_federation.py")
CHECKOUT = Path(__file__).resolve().parents[1]
HEADER = (
    "| flwr | Python | torch | updates recorded | audit | image back, PSNR | with `record_truth` | reference app |\n"
    "| --- | --- | --- | ---: | --- | ---: | ---: | --- |"
)


@dataclass(frozen=True)
class Environment:
    """A virtual environment in which flwr, and then fl-precode, are installed.

    Attributes:
        folder: Folder of the environment; one that exists is used again.
        python: Program that makes it.
        flwr: Version.
        site: Folder of installed packages that are not installed again (torch); None: pip fetches all.
    """

    folder: Path
    python: str
    flwr: str
    site: Path | None

    def run(self, *command: object, at: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, its output kept."""
        environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        environment |= {"PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        program = [str(self.folder / "bin" / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(
            program, cwd=at, env=environment | {"PYTHONPATH": str(at)}, capture_output=True, text=True, timeout=1800
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(program)}: {(done.stdout + done.stderr)[-2000:]}")
        return done

    def prepare(self, wheel: Path, extras: str) -> None:
        """Install flwr, then the wheel beside it."""
        if not self.folder.exists():
            subprocess.run([self.python, "-m", "venv", self.folder], check=True)
        self.run("python", "-m", "pip", "install", "-q", f"flwr=={self.flwr}", at=self.folder)
        if self.site is not None:
            (packages,) = (self.folder / "lib").glob("python3*/site-packages")
            (packages / "zz_shared.pth").write_text(f"{self.site}\n")
        self.run("python", "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel, at=self.folder)
        self.run("python", "-m", "pip", "install", "-q", f"{wheel}{extras}", at=self.folder)


def tried(environment: Environment, at: Path, *, reference: bool) -> dict[str, Any]:
    """One row: what the federation recorded and what the audit reconstructed.

    Args:
        environment: With fl-precode in it.
        at: New folder for tapes and audit.
        reference: Whether the reference app is run, too.
    """
    at.mkdir(parents=True)
    (at / FEDERATION.name).write_bytes(FEDERATION.read_bytes())
    said = environment.run("python", FEDERATION.name, at / "out", at=at)
    row: dict[str, Any] = json.loads(said.stdout.strip().splitlines()[-1])
    if row["flwr"] != environment.flwr:
        raise RuntimeError(f"flwr {environment.flwr} became {row['flwr']} when fl-precode was installed")
    audit = environment.run(
        "fl-precode",
        "audit",
        at / "out" / "tape",
        "--out",
        at / "audit",
        "--attacks",
        "first-layer",
        at=at,
        check=False,
    )
    row["audit_exit_code"] = audit.returncode
    row["psnr"] = round(worst_image(at), 1) if audit.returncode == 0 else None
    row["compared"] = sum(one["ssim"] is not None for one in results_of(at)) if audit.returncode == 0 else 0
    row["reference_app"] = None
    if reference:
        settings = ("num-server-rounds=1", "num-clients=2", "model=mlp", "dataset=faces")
        small = [part for one in settings for part in ("--set", one)]
        # Of this checkout: no wheel has the reference app.
        command = ("python", "-c", "from fl_precode.cli import main; main()", "run", "--out", at / "reference", *small)
        run = environment.run(*command, at=CHECKOUT, check=False)
        row["reference_app"] = "runs" if run.returncode == 0 else " ".join(run.stderr.split())[-300:]
    return row


def results_of(at: Path) -> list[dict[str, Any]]:
    """What the audit's record says of each image."""
    found: list[dict[str, Any]] = json.loads((at / "audit" / "audit.json").read_text())["results"]
    return found


def worst_image(at: Path) -> float:
    """PSNR in dB between each client's image and the nearest that was reconstructed; the least of them."""
    true = np.load(at / "out" / "truth.npy")[:, 0]
    files = [at / "audit" / one["reconstruction"] for one in results_of(at) if one["reconstruction"]]
    found = [np.asarray(Image.open(file).convert("L"), dtype=np.float32) / 255 for file in files]
    return min(max(-10 * float(np.log10(((one - image) ** 2).mean() + 1e-12)) for one in found) for image in true)


def table(rows: list[dict[str, Any]]) -> str:
    """The page's table."""
    lines = []
    for row in rows:
        recorded = f"{row['updates_by_interceptor']} and {row['updates_by_grid_with_mod']}"
        audit = "done" if row["audit_exit_code"] == 0 else "failed"
        found = ("–" if row["psnr"] is None else row["psnr"], row.get("compared", "not tried"))
        cells = (row["flwr"], row["python"], row["torch"], recorded, audit, *found, row["reference_app"] or "not tried")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([HEADER, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--flwr", nargs="+", required=True, help="versions")
    parser.add_argument("--python", default=sys.executable, help="program that makes the environments")
    parser.add_argument("--site", type=Path, help="packages of this Python that need not be installed again")
    parser.add_argument("--extras", default="[audit]", help="such as [audit,simulation]")
    parser.add_argument("--reference", action="store_true", help="run the reference app as well")
    parser.add_argument("--environments", type=Path, required=True, help="folder that keeps them")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()

    rows = json.loads(options.out.read_text()) if options.out.exists() else []
    for flwr in options.flwr:
        name = f"{Path(options.python).name}-flwr-{flwr}"
        environment = Environment(options.environments / name, options.python, flwr, options.site)
        environment.prepare(options.wheel.resolve(), options.extras)
        number = sum(1 for one in options.environments.glob(f"{name}-run-*"))
        row = tried(environment, options.environments / f"{name}-run-{number}", reference=options.reference)
        earlier = [one for one in rows if (one["flwr"], one["python"]) == (row["flwr"], row["python"])]
        if not options.reference and earlier:
            row["reference_app"] = earlier[0]["reference_app"]
        rows = [one for one in rows if (one["flwr"], one["python"]) != (row["flwr"], row["python"])] + [row]
        rows.sort(key=lambda one: ([int(part) for part in one["flwr"].split(".")], one["python"]))
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
