"""What is published: the wheel installs into an empty environment and audits a tape there."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.attacker.taped_federation import tape_federation
from tests.compose.base_image import torch_wheels

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"report", "simulation", "datasets", "dp", "dev"}


def test_the_extras_are_what_the_documentation_says():
    assert set(PROJECT["optional-dependencies"]) == EXTRAS
    base = " ".join(PROJECT["dependencies"])
    assert not any(name in base for name in ("ray", "simulation", "jinja2", "matplotlib", "torchvision", "opacus"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("build", reason="the package build is a development dependency")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_holds_the_plug_in_and_its_types_and_nothing_generic(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"fl_precode", "attacker"}
    assert {"fl_precode/py.typed", "attacker/py.typed"} <= set(names)
    assert any(name.startswith("attacker/report/templates/") for name in names)
    assert metadata["Version"] == PROJECT["version"]
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "server/app.py", "clients/app.py", "docker-compose.yml"} <= inside
    assert wheel.stat().st_size < 2e6
    assert sdist.stat().st_size < 5e6


def size_of(folder, but=()):
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink() and not file.relative_to(folder).parts[0].startswith(tuple(but))
    )


TORCH = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "fsspec", "nvidia", "triton", "cuda")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_an_empty_environment_audits_a_tape(built, tmp_path):
    """With PyTorch for CPUs where this machine has its wheel, otherwise with the one from PyPI."""
    wheel, _ = built
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    # jinja2 comes with torch; without it, the page is missing and that is said.
    pinned = ["torch==2.13.0+cpu"] if torch_wheels() and sys.version_info[:2] == (3, 11) else ["torch"]

    def run(*command, cwd=tmp_path):
        done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    started = time.monotonic()
    run(binaries / "python", "-m", "pip", "install", "-q", *pinned)
    with_torch = time.monotonic()
    run(binaries / "python", "-m", "pip", "install", "-q", wheel)
    run(binaries / "python", "-m", "pip", "uninstall", "-q", "-y", "jinja2")
    installed = time.monotonic()
    taped = tape_federation(tmp_path / "run", rounds=1)
    command = [binaries / "fl-precode", "audit", taped.tape, "--out", "audit", "--attacks", "first-layer", "--no-truth"]
    said = run(*command)
    audited = time.monotonic()
    assert "pip install 'fl-precode[report]'" in said
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record["summaries"][0]["images"] > 0
    assert list((tmp_path / "audit" / "images").glob("*.png"))

    run(binaries / "python", "-m", "pip", "install", "-q", f"{wheel}[report]")
    assert "report: " in run(binaries / "fl-precode", "report", "audit")
    assert (tmp_path / "audit" / "report" / "index.html").exists()
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    figures = {
        "base without torch, MB": round(size_of(site, but=(*TORCH, "pip", "matplotlib", "fontTools", "jinja2")) / 1e6),
        "torch, s": round(with_torch - started, 1),
        "the rest, s": round(installed - with_torch, 1),
        "first audit, s": round(audited - installed, 1),
        "wheel, kB": round(wheel.stat().st_size / 1e3),
    }
    (ROOT / "outputs").mkdir(exist_ok=True)
    (ROOT / "outputs" / "packaging.json").write_text(json.dumps(figures, indent=2))


def test_the_version_is_stated_once_and_semantic():
    import fl_precode

    assert fl_precode.__version__ == PROJECT["version"]
    assert len([int(part) for part in PROJECT["version"].split(".")]) == 3
