"""The pages on adding an attack and a defence, followed by doing it in a copy of the packages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacker.taped_federation import tape_federation

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path):
    for package in ("fl_precode", "attacker", "clients"):
        shutil.copytree(ROOT / package, tmp_path / "copy" / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def follow(page, copy):
    """Write the page's file, and put its import and its entry into the file that it names."""
    text = (ROOT / "docs" / page).read_text()
    program, imported, entry = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (new,) = re.findall(r"^`([\w/]+\.py)`:$", text, re.MULTILINE)
    (copy / new).write_text(program)
    (table,) = set(re.findall(r"\*\*2\. Import it\*\* in `([\w/]+\.py)`", text))
    (name,) = re.findall(r"\*\*3\. Enter it\*\* in `(\w+)`", text)
    source = (copy / table).read_text()
    source = source.replace(
        "from __future__ import annotations\n", f"from __future__ import annotations\n\n{imported}", 1
    )
    opening = re.search(rf"^{name}: .* = MappingProxyType\(\n    \{{\n", source, re.MULTILINE)
    (copy / table).write_text(source[: opening.end()] + entry + source[opening.end() :])


def python(copy, *arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def cli(copy, *arguments):
    return python(copy, "-c", "from attacker.cli import main; main()", *arguments)


def test_an_attack_is_added_as_the_page_says(copy, tmp_path):
    follow("adding-an-attack.md", copy)
    assert "loudest-row" in cli(copy, "attacks")
    taped = tape_federation(tmp_path / "run", rounds=1)
    cli(copy, "audit", taped.tape, "--out", tmp_path / "audit", "--attacks", "loudest-row", "--victims", "2")
    results = json.loads((tmp_path / "audit" / "audit.json").read_text())["results"]
    assert [one["ssim"] > 0.99 for one in results] == [True, True]


def test_a_defence_is_added_as_the_page_says_and_does_what_it_says(copy):
    follow("adding-a-defence.md", copy)
    assert "hide-biases" in cli(copy, "defences")
    program = (
        "import torch\nfrom fl_precode.defences import gradient_defence\n"
        "given = {'weight': torch.ones(2, 3), 'bias': torch.ones(2)}\n"
        "sent = gradient_defence('hide-biases+clip:max_norm=100')(given, generator=torch.Generator())\n"
        "print(sent['weight'].sum().item(), sent['bias'].sum().item(), given['bias'].sum().item())\n"
    )
    assert python(copy, "-c", program).split() == ["6.0", "0.0", "2.0"]
