"""The Flower App File as Flower's hub takes it: what is in it, and nothing that is not for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def build(folder: Path, home: Path) -> set[str]:
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
    flwr = Path(sys.executable).parent / "flwr"
    done = subprocess.run([flwr, "build"], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = folder.glob("*.fab")
    assert made.stat().st_size < 2e6, "Flower's limit is 10 MB"
    with zipfile.ZipFile(made) as archive:
        return set(archive.namelist())


@pytest.fixture
def app(tmp_path):
    """A copy, because the file is written into the app's own folder."""
    target = tmp_path / "fl-precode"
    target.mkdir()
    for name in ("fl_precode", "server", "clients", "examples", "tests/server"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    return target


def test_the_app_file_has_the_app_its_licence_and_its_readme_and_nothing_else(app, tmp_path):
    assert (APP["fab-format-version"], APP["publisher"]) == (1, "fl-precode")
    names = build(app, tmp_path / "home")
    assert {name.split("/")[0] for name in names} - {".info"} == {
        "pyproject.toml", "README.md", "LICENSE", "fl_precode", "server", "clients",
    }  # fmt: skip
    for component in APP["components"].values():
        assert component.partition(":")[0].replace(".", "/") + ".py" in names
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fl_precode").rglob("*.py")}
    assert written <= names, "Flower drops files named as tests"


@pytest.mark.parametrize(
    "readme", ["README.md", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("examples/*/README.md"))]
)
def test_readmes_begin_with_the_hubs_front_matter(readme):
    lines = (ROOT / readme).read_text().splitlines()
    assert lines[0] == "---"
    assert [line.split(":")[0] for line in lines[1:4]] == ["tags", "dataset", "framework"]
    assert lines[4] == "---"
