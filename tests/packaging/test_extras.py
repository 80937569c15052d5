"""What an extra installs is not needed without it: the rest is imported, and works, where its packages are absent."""

from __future__ import annotations

import subprocess
import sys

import pytest

ABSENT = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
EVERY_MODULE = """
for package in {packages!r}:
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.startswith({left_out!r}):
            importlib.import_module(found.name)
"""
# A client and a server that install the base only: the model extended, the strategy wrapped, updates on the tape.
PLUG_IN = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

import fl_precode
from fl_precode.flower import Interceptor
from fl_precode.tape import Tape
from tests.local_grid import LocalGrid

model = fl_precode.extend(
    torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)), example_input=torch.rand(2, 3, 2, 2)
)
app = ClientApp()

@app.train()
def train(message, context):
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": 2})}
    return Message(RecordDict(content), reply_to=message)

tape = sys.argv[1]
strategy = Interceptor(FedAvg(fraction_evaluate=0.0), tape)
strategy.start(LocalGrid(app, 2, {}), ArrayRecord(model.state_dict()), num_rounds=1)
assert len(Tape(tape).observations()) == 2
"""
FACES = tuple(f"fl_precode.{one}" for one in ("attacks", "auditing", "cli", "labels", "leakage", "metrics", "report"))
"""What users import of the extra's packages."""
BY_AUDITS = tuple(f"fl_precode.privacy.{one}" for one in ("one_run", "robustness"))
"""Statistics of what audits measure, which need scipy as audits do."""
AUDIT = {"scipy", "skimage", "PIL", "pydantic", "typer", "rich", "psutil", "jinja2"}
BY_FLWR = {"typer", "rich", "pydantic"}
"""Those that flwr brings in any case, and imports."""
OTHERS = {"ray", "sklearn", "torchvision", "medmnist", "opacus", "dp_accounting", "matplotlib", "weasyprint", "mlflow"}
OTHERS |= {"optuna"}


def run(program, *arguments, **names):
    command = [sys.executable, "-c", program.format(**names) if names else program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_the_base_extends_a_model_and_listens_to_a_strategy(tmp_path):
    done = run(ABSENT.format(absent=AUDIT - BY_FLWR | OTHERS) + PLUG_IN, tmp_path / "tape")
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_module_of_the_plug_in_is_imported_without_the_extra_audit():
    done = run(
        ABSENT + EVERY_MODULE, absent=AUDIT | OTHERS | {"flwr"}, packages=("fl_precode",),
        left_out=("fl_precode.flower", *FACES, *BY_AUDITS),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("absent", "command", "missing"),
    [({"typer"}, "--help", "typer"), ({"scipy"}, "audit", "scipy"), ({"pydantic"}, "report", "pydantic")],
)
def test_a_command_says_which_extra_it_needs(tmp_path, absent, command, missing):
    (tmp_path / "audit.json").write_text("{}")
    program = ABSENT.format(absent=absent) + f"sys.argv[1:] = {[command, str(tmp_path)]!r}\n"
    done = run(program + "from fl_precode.cli import main; main()\n")
    assert done.returncode == 1, done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"Error: this needs {missing}")
    assert last.endswith("which is not installed: pip install 'fl-precode[audit]'")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("absent", "left_out"),
    [(OTHERS, ("attacker.experiments", "attacker.cli.checkout.demo")), (OTHERS - {"matplotlib"}, ("nothing",))],
    ids=["the extra audit", "the extra experiments"],
)
def test_modules_are_imported_without_the_packages_of_other_extras(absent, left_out):
    done = run(ABSENT + EVERY_MODULE, absent=absent, packages=("fl_precode", "attacker"), left_out=left_out)
    assert done.returncode == 0, done.stderr[-2000:]
