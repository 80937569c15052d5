"""What is published: the wheel installs into an empty environment and audits a tape there."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from attacker.cli.main import OF_A_CHECKOUT
from deploy.simulation.reference_app import APP_FILES, app_parts
from tests.attacker.taped_federation import tape_federation
from tests.compose.base_image import torch_wheels
from tests.test_layering import FILES, imports, within

ROOT = Path(__file__).resolve().parents[2]
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = DECLARED["project"]
EXTRAS = {
    "audit",
    "simulation",
    "experiments",
    "identification",
    "datasets",
    "dp",
    "object-storage",
    "pdf",
    "mlflow",
    "dev",
    "docs",
    "release",
}


def test_the_extras_are_what_the_documentation_says():
    assert set(PROJECT["optional-dependencies"]) == EXTRAS
    assert [re.split("[<>=]", one)[0] for one in PROJECT["dependencies"]] == ["flwr", "torch", "numpy", "safetensors"]


def left_out(file):
    """Whether the wheel is told to leave a file of the packages out."""
    excluded = DECLARED["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    return any(f"/{file}" == one or f"/{file}".startswith(f"{one}/") for one in excluded)


def test_what_the_wheel_leaves_out_is_there_and_nothing_in_it_needs_that():
    excluded = DECLARED["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]
    assert [one for one in excluded if not (ROOT / one[1:]).exists()] == []
    shipped = [file for file in FILES if file.startswith(("fl_precode/", "attacker/"))]
    absent = {file[:-3].replace("/", ".") for file in shipped if left_out(file)}
    assert {f"attacker.cli.checkout.{name}" for name in OF_A_CHECKOUT.values()} < absent
    needing = {
        f"{file}: {one}"
        for file in shipped
        if not left_out(file)
        for name in imports(file)
        for one in absent
        if within(name, one)
    }
    assert not needing


def test_a_checkout_has_every_part_of_the_reference_app():
    assert app_parts() == {name: ROOT / name for name in APP_FILES}


def test_an_app_keeps_its_flwr():
    """Base: every release with which the plug-in was tried. The reference app may ask for a newer one."""
    (base,) = (one for one in PROJECT["dependencies"] if one.startswith("flwr"))
    tried = json.loads((ROOT / "docs" / "results" / "compatibility.json").read_text())
    minors = {tuple(int(part) for part in row["flwr"].split(".")[:2]) for row in tried}
    (major, first), (_, last) = min(minors), max(minors)
    assert len(minors) == last - first + 1, "one run each"
    assert base == f"flwr>={major}.{first},<{major}.{last + 1}"
    assert all(row["audit_exit_code"] == 0 and row["psnr"] > 40 for row in tried)


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
    packaged = {file for file in FILES if file.startswith(("fl_precode/", "attacker/"))}
    assert {name for name in names if name.endswith(".py")} == {file for file in packaged if not left_out(file)}
    assert not any(name.startswith("attacker/experiments") for name in names), "nor its templates"
    assert metadata["Version"] == PROJECT["version"]
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "server/app.py", "clients/app.py", "docker-compose.yml"} <= inside
    assert wheel.stat().st_size < 2e6
    assert sdist.stat().st_size < 5e6


ALONE = """
import importlib, pkgutil, sys; sys.path[:0] = [sys.argv[1]]
import fl_precode, attacker
for package in (fl_precode, attacker):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        assert importlib.import_module(found.name).__file__.startswith(sys.argv[1])
from attacker.cli.main import OF_A_CHECKOUT, app
for name in OF_A_CHECKOUT:
    try:
        app([name])
    except SystemExit as end:
        assert end.code == 2, name
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_installed_package_is_whole_and_says_which_commands_need_a_checkout(built, tmp_path):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site-packages")
    done = subprocess.run(
        [sys.executable, "-P", "-c", ALONE, tmp_path / "site-packages"], cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.replace("│", " ").split())
    assert all(f"`fl-precode {command}` needs the reference app" in said for command in OF_A_CHECKOUT)


def size_of(folder, but=()):
    return sum(
        file.stat().st_size
        for file in folder.rglob("*")
        if file.is_file() and not file.is_symlink() and not file.relative_to(folder).parts[0].startswith(tuple(but))
    )


TORCH = ("torch", "torchgen", "functorch", "sympy", "mpmath", "networkx", "fsspec", "nvidia", "triton", "cuda")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_an_empty_environment_has_the_plug_in_and_with_the_extra_audits_a_tape(built, tmp_path):
    """With PyTorch for CPUs where this machine has its wheel, otherwise with the one from PyPI."""
    wheel, _ = built
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    pinned = ["torch==2.13.0+cpu"] if torch_wheels() and sys.version_info[:2] == (3, 11) else ["torch"]

    def run(*command, code=0):
        done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout if code == 0 else done.stderr

    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    started = time.monotonic()
    run(binaries / "python", "-m", "pip", "install", "-q", *pinned)
    with_torch = time.monotonic()
    run(binaries / "python", "-m", "pip", "install", "-q", wheel)
    based = time.monotonic()
    figures = {"base without torch, MB": round(size_of(site, but=(*TORCH, "pip", "jinja2")) / 1e6)}
    assert not list(site.glob("scipy")) + list(site.glob("skimage"))
    run(binaries / "python", "-c", "import fl_precode; from fl_precode.flower import Interceptor; fl_precode.extend")
    taped = tape_federation(tmp_path / "run", rounds=1)
    command = [binaries / "fl-precode", "audit", taped.tape, "--out", "audit", "--attacks", "first-layer", "--no-truth"]
    assert "pip install 'fl-precode[audit]'" in run(*command, code=1)

    run(binaries / "python", "-m", "pip", "install", "-q", f"{wheel}[audit]")
    installed = time.monotonic()
    assert "report: " in run(*command)
    audited = time.monotonic()
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record["summaries"][0]["images"] > 0
    assert list((tmp_path / "audit" / "images").glob("*.png"))
    assert (tmp_path / "audit" / "report" / "index.html").exists()
    figures |= {
        "with the extra audit, without torch, MB": round(size_of(site, but=(*TORCH, "pip", "jinja2")) / 1e6),
        "torch, s": round(with_torch - started, 1),
        "base, s": round(based - with_torch, 1),
        "audit, s": round(installed - based, 1),
        "first audit, s": round(audited - installed, 1),
        "wheel, kB": round(wheel.stat().st_size / 1e3),
    }
    (ROOT / "outputs").mkdir(exist_ok=True)
    (ROOT / "outputs" / "packaging.json").write_text(json.dumps(figures, indent=2))


def test_the_version_is_stated_once_and_semantic():
    import fl_precode

    assert fl_precode.__version__ == PROJECT["version"]
    assert len([int(part) for part in PROJECT["version"].split(".")]) == 3
