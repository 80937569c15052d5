"""The example: its README followed word for word, and the three lines that it takes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from fl_precode.tape import Tape
from tests.examples.readme_commands import ROOT, bash_blocks, follow

EXAMPLE = ROOT / "examples" / "quickstart-audit"


@pytest.fixture
def copy(tmp_path):
    target = tmp_path / "quickstart-audit"
    shutil.copytree(EXAMPLE, target, ignore=shutil.ignore_patterns("__pycache__", "out", "*.egg-info"))
    return target


def changed_lines(diff):
    return [line for line in diff.splitlines() if line[:1] in "+-" and not line.startswith(("+++", "---"))]


def test_three_lines_are_added_and_none_is_changed(copy):
    changed = changed_lines((EXAMPLE / "audit.diff").read_text())
    assert len(changed) == 3
    assert all(line.startswith("+") and len(line) <= 121 for line in changed)
    shown = (EXAMPLE / "README.md").read_text().split("```diff\n")[1].split("```")[0]
    assert changed_lines(shown) == changed
    subprocess.run(["git", "apply", "audit.diff"], cwd=copy, check=True)
    program = (copy / "digits" / "server_app.py").read_text()
    assert program.count("Interceptor") == 2
    compile(program, "server_app.py", "exec")


def test_the_app_itself_knows_nothing_of_the_audit():
    for file in (EXAMPLE / "digits").glob("*.py"):
        assert "precode" not in file.read_text().lower()
        assert "precode" not in (EXAMPLE / "pyproject.toml").read_text().split("[tool.flwr.app]")[0]


def true_images(copy):
    program = (
        "import numpy, digits.task as t; numpy.save('true.npy', numpy.stack([t.load_data(c, 4)[0] for c in range(4)]))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=copy, check=True)
    return np.load(copy / "true.npy")[:, :, 0]


def best_psnr(found, clients):
    """Of four images against the client that they fit best, in the order that fits best."""
    errors = [
        np.mean([(found[i] - images[order[i]]) ** 2 for i in range(4)])
        for images in clients
        for order in permutations(range(4))
    ]
    return -10 * np.log10(min(errors))


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(1800)
def test_the_readme_word_for_word(copy, tmp_path):
    assert len(bash_blocks(copy / "README.md")) == 5
    said = follow(copy / "README.md", tmp_path / "home", but=["pip install"])
    tape = Tape(copy / "out" / "tape")
    assert len(tape.entries) == 3 * 4
    assert not tape.problems
    assert {one.batch_size for one in tape.observations()} == {4}
    assert (tape.header.model, tape.header.protocol.local_epochs) == ("digits.task:Net", 1)
    assert "report: " in said
    assert (copy / "out" / "audit" / "report" / "index.html").stat().st_size > 10_000
    record = json.loads((copy / "out" / "audit" / "audit.json").read_text())
    pictures = {}
    for one in record["results"]:
        if one["attack"].startswith("inverting-gradients"):
            path = copy / "out" / "audit" / one["reconstruction"]
            pictures.setdefault(one["victim_id"].rpartition("-")[0], []).append(
                np.asarray(Image.open(path).convert("L"))
            )
    assert len(pictures) == 2
    clients = true_images(copy)
    for found in pictures.values():
        assert best_psnr(np.stack(found) / 255, clients) > 13, "the digits of one client were reconstructed"
