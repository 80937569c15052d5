"""The README's first blocks, typed into a fresh environment: a clone and its editable installation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from deploy.simulation.processes import TOKEN_VARIABLE, end_processes
from tests.examples.readme_commands import ROOT, bash_blocks

NOT_TYPED = ("make test",)
"""Commands of the blocks that are left out: this is one of its tests."""


class Shell:
    """Types blocks of commands in a clone, and says how long each took.

    Args:
        clone: Folder of the clone.
    """

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.minutes: dict[str, float] = {}
        self.token = uuid.uuid4().hex
        ours = ("PYTHONPATH", "VIRTUAL_ENV", "COVERAGE_PROCESS_START")
        # A shell in which nothing is activated, whoever runs this test.
        path = [one for one in os.environ["PATH"].split(os.pathsep) if not (Path(one).parent / "pyvenv.cfg").exists()]
        self.environment = {name: value for name, value in os.environ.items() if name not in ours}
        self.environment |= {"PATH": os.pathsep.join(path), TOKEN_VARIABLE: self.token, "MPLBACKEND": "agg"}

    def type(self, block: str) -> str:
        """Type a block, each command as it is printed; returns what was said."""
        commands = [line for line in block.splitlines() if not line.startswith(NOT_TYPED)]
        began = time.monotonic()
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(commands)], cwd=self.clone, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.minutes[commands[0].partition("#")[0].strip()] = round((time.monotonic() - began) / 60, 1)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    def close(self) -> None:
        """End what is left, and give the disk its gigabytes back."""
        end_processes(self.token, self.clone)
        shutil.rmtree(self.clone)


@pytest.fixture
def shell(tmp_path):
    clone = tmp_path / "fl-precode"
    left_out = shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", ".*_cache", ".coverage*")
    shutil.copytree(ROOT, clone, ignore=left_out, symlinks=True)
    shell = Shell(clone)
    yield shell
    shell.close()


def installed_at(clone: Path) -> Path:
    """Where the package lies that the clone's environment imports."""
    program = "import fl_precode; print(fl_precode.__file__)"
    # Isolated: the PYTHONPATH of whoever runs this test is not the reader's.
    command = [clone / ".venv" / "bin" / "python", "-I", "-c", program]
    return Path(subprocess.run(command, cwd="/", capture_output=True, text=True, check=True).stdout.strip()).parent


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(5400)
def test_the_first_three_blocks_of_the_readme_work_as_printed(shell):
    first, make, own = bash_blocks(ROOT / "README.md")[:3]
    assert "pip install -e '.[audit,simulation]'" in first
    shell.type(first)
    assert installed_at(shell.clone) == shell.clone / "fl_precode"
    outputs = shell.clone / "outputs"
    assert (outputs / "demo" / "report" / "index.html").stat().st_size > 10_000
    assert json.loads((outputs / "audit" / "audit.json").read_text())["results"]

    said = shell.type(own)
    assert "report: " in said
    assert json.loads((outputs / "mine" / "audit" / "audit.json").read_text())["results"]

    assert make.splitlines()[0].startswith("make demo")
    said = shell.type(make)
    assert "report: " in said
    figures = ROOT / "outputs" / "readme_typed.json"
    figures.parent.mkdir(exist_ok=True)
    figures.write_text(json.dumps({"minutes": shell.minutes, "all": round(sum(shell.minutes.values()), 1)}, indent=2))
