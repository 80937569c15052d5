"""The Flower App File as Flower's hub takes it: what is in it, and nothing that is not for it."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from click import ClickException
from flwr.cli.config_utils import load_and_validate

publishing = importlib.import_module("flwr.cli.app_cmd.publish")  # the package has a function of this name
ROOT = Path(__file__).resolve().parents[2]
# flwr asks its library of patterns by a name that this announces to be dropped.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def build(folder: Path, home: Path) -> Path:
    """The file that Flower makes of an app."""
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
    return made


def checked_as_by_publishing(folder: Path) -> list[Path]:
    """What `flwr app publish` does before it uploads, by its own functions; returns the files that it would send.

    Its log-in comes first and the hub's own checks last, and neither can be had without an account.
    """
    config, warnings = load_and_validate(folder / "pyproject.toml", check_module=False)
    assert not warnings
    publishing._validate_app_name(folder.name, "folder")
    publishing._validate_description(config["project"].get("description", ""))
    files = publishing._collect_file_paths(folder)
    publishing._validate_files(files)
    return files


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
    with zipfile.ZipFile(build(app, tmp_path / "home")) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} - {".info"} == {
        "pyproject.toml", "README.md", "LICENSE", "fl_precode", "server", "clients",
    }  # fmt: skip
    for component in APP["components"].values():
        assert component.partition(":")[0].replace(".", "/") + ".py" in names
    written = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fl_precode").rglob("*.py")}
    assert written <= names, "Flower drops files named as tests"


def test_the_hub_takes_the_folder_of_what_flower_builds(app, tmp_path):
    folder = tmp_path / "hub" / "fl-precode"
    with zipfile.ZipFile(build(app, tmp_path / "home")) as archive:
        archive.extractall(folder)
        built = {name for name in archive.namelist() if not name.startswith(".info/")}
    assert {path.relative_to(folder).as_posix() for path in checked_as_by_publishing(folder)} == built
    assert len(load_and_validate(folder / "pyproject.toml", check_module=False)[0]["project"]["description"]) <= 200, (
        "the command asks whether a longer one is meant"
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda folder: folder.name)
def test_the_hub_takes_an_example(example, tmp_path):
    folder = tmp_path / example.name
    shutil.copytree(example, folder, ignore=shutil.ignore_patterns("__pycache__", "outputs"))
    sent = {path.relative_to(folder).as_posix() for path in checked_as_by_publishing(folder)}
    assert {"pyproject.toml", "README.md"} < sent


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "LICENSE").unlink(), "does not exist"),
        (lambda folder: (folder / "server" / "broken.py").write_bytes(b"# \xff"), "not UTF-8"),
        (lambda folder: (folder / "large.md").write_text("a" * 2**20 + "b"), "exceeding the per-file limit"),
        (lambda folder: folder.rename(folder.with_name("fl_precode")), "is invalid"),
    ],
    ids=["licence", "encoding", "size", "name"],
)
def test_what_the_hub_refuses_is_found_here(app, spoil, said):
    renamed = spoil(app)
    with pytest.raises(ClickException, match=said):
        checked_as_by_publishing(renamed if isinstance(renamed, Path) else app)


@pytest.mark.parametrize(
    "readme", ["README.md", *(p.relative_to(ROOT).as_posix() for p in ROOT.glob("examples/*/README.md"))]
)
def test_readmes_begin_with_the_hubs_front_matter(readme):
    lines = (ROOT / readme).read_text().splitlines()
    assert lines[0] == "---"
    assert [line.split(":")[0] for line in lines[1:4]] == ["tags", "dataset", "framework"]
    assert lines[4] == "---"
