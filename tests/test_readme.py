"""What the README promises: its Python runs, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn
from typer.main import get_command

from attacker.cli.main import app
from fl_precode.flower.interceptor import Interceptor
from tests.attacker.taped_federation import tape_federation

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_python_in_the_readme_runs(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.body(x.flatten(1)).relu())

    names = {"Net": Net, "FedAvg": FedAvg, "criterion": nn.CrossEntropyLoss(), "example_input": torch.zeros(1, 1, 2, 3)}
    names |= {"images": torch.rand(4, 1, 2, 3), "labels": torch.arange(4) % 3}
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (audit,) = [block for block in blocks if "flp.audit" in block]
    blocks.remove(audit)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("/absolute/path/of/a/new/tape", str(tmp_path / "tape")), names)
    assert names["loss"].requires_grad
    assert names["loss"] > names["criterion"](names["logits"], names["labels"])
    assert isinstance(names["strategy"], Interceptor)


def test_the_audit_in_the_readme_runs(tmp_path, capsys, monkeypatch):
    tape_federation(tmp_path / "outputs" / "mine", rounds=1)
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "flp.audit" in block]
    assert len(block.splitlines()) <= 10
    exec(block.replace("iterations=600", "iterations=20"), {})
    sentence, page = capsys.readouterr().out.splitlines()[-2:]
    assert "reconstructed by first-layer inversion" in sentence
    assert Path(page).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert ((ROOT / document).parent / target).exists(), target


def test_named_files_exist():
    text = "\n".join((ROOT / document).read_text() for document in DOCUMENTS)
    packages = "fl_precode|server|clients|attacker|tests|benchmarks|docs"
    # What the pages on extending tell the reader to write is not there yet.
    to_write = set(re.findall(r"^`([\w/]+\.py)`:$", text, re.MULTILINE))
    for name in sorted(set(re.findall(rf"`((?:{packages})/[\w/]+\.(?:py|md))`", text)) - to_write):
        # The trials name test files by their place below tests/.
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name


def options_of(name):
    command = get_command(app)
    for part in name.split():
        command = command.commands[part]
    return {option for one in command.params for option in (*one.opts, *one.secondary_opts)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_exist(document):
    text = (ROOT / document).read_text().replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = "\n".join([*blocks, *re.findall(r"`(fl-precode [^`]*)`", text)])
    for name, rest in re.findall(r"fl-precode ((?:reproduce )?[a-z]\w+)([^\n]*)", lines):
        assert set(re.findall(r"(?<=\s)--[a-z0-9-]+", rest)) <= options_of(name), (name, rest)
