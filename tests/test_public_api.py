"""One import: what `import fl_precode` gives, what it does not load, and who imports the private package."""

from __future__ import annotations

import gc
import json
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fl_precode as flp
from attacker.attacks import ATTACKS
from fl_precode.tape import Tape
from tests.attacker.own_attacks import Grey
from tests.attacker.taped_federation import tape_federation

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("flwr", "ray", "scipy", "skimage", "pydantic", "typer", "rich", "jinja2", "psutil", "PIL", "attacker")


def loaded_by(code):
    """Which of the heavy packages a program has loaded at its end."""
    told = f"{code}\nimport sys, json\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_a_client_that_extends_its_model_loads_nothing_of_an_audit():
    code = (
        "import torch, fl_precode as flp\n"
        "model = flp.extend(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), torch.zeros(1, 1, 2, 2))\n"
        "with flp.track_kl() as kl:\n    logits = model(torch.zeros(1, 1, 2, 2))\n"
        "kl.penalty(logits)\n"
        "from fl_precode.defences import gradient_defence\n"
        "gradient_defence('noise:std=0.1')({'a': torch.ones(2)})\n"
    )
    assert loaded_by(code) == set()


def test_the_command_line_answers_without_torch():
    """Before it knows what it is asked for; and the function stays the function, whoever loads its module first."""
    assert loaded_by("import fl_precode.cli, sys; assert 'torch' not in sys.modules") == set()
    assert loaded_by("import fl_precode.defences.extend, fl_precode as flp; flp.extend.__code__") == set()


def test_the_server_loads_flower_and_nothing_of_an_audit():
    assert loaded_by("import fl_precode as flp; flp.Interceptor").isdisjoint({"scipy", "skimage", "attacker"})


def test_help_reads_as_a_table_of_contents():
    contents = flp.__doc__.partition(">>>")[0]
    for name in flp.__all__:
        assert re.search(rf"\b{name}\b", contents), f"{name} is not in the table of contents"
        assert getattr(flp, name) is not None
        assert name in dir(flp)
    page = pydoc.plain(pydoc.render_doc(flp))
    assert page.index("In the clients' training code:") < page.index("PACKAGE CONTENTS")
    with pytest.raises(AttributeError, match="has no attribute 'attack'; it has .*attacks"):
        _ = flp.attack


@pytest.mark.parametrize(
    "shelf", ["attacks", "labels", "leakage", "metrics", "report", "defences", "flower", "tape", "privacy"]
)
def test_every_name_on_a_shelf_is_there_and_has_a_docstring(shelf):
    module = getattr(flp, shelf)
    assert module.__doc__
    for name in module.__all__:
        found = getattr(module, name)
        assert not callable(found) or found.__doc__, name


def test_every_attack_is_on_the_shelf():
    kinds = {ATTACKS.place_of(name).rpartition(":")[2] for name in ATTACKS if ATTACKS.is_everywhere(name)}
    assert kinds <= set(flp.attacks.__all__)


def test_an_audit_gives_a_record_with_verdicts_and_a_page(tmp_path):
    tape = tape_federation(tmp_path / "run", rounds=1).tape
    attacks = [flp.attacks.FirstLayerInversion(), Grey()]
    record = flp.audit(tape, attacks=attacks, victims=2, out=tmp_path / "audit")
    assert [one.spec for one in record.attacks] == ["first-layer", "tests.attacker.own_attacks:Grey"]
    assert [one.verdict for one in record.verdicts] == ["leaks"]
    page = record.save_report()
    assert page == tmp_path / "audit" / "report" / "index.html"
    assert "Grey" in page.read_text()
    assert flp.report.read_record(tmp_path / "audit").results == record.results


def test_an_audit_without_a_folder_keeps_nothing_but_its_record(tmp_path):
    tape = Tape(tape_federation(tmp_path / "run", rounds=1).tape)
    record = flp.audit([tape], attacks=["first-layer"], victims=1)
    folder = record.folder
    assert record.save_report(tmp_path / "report").exists()
    with pytest.raises(ValueError, match=r"save_report\('outputs/report'\)"):
        record.save_report()
    del record
    gc.collect()  # the refusal above holds it in a circle
    assert not folder.exists()


def test_nobody_outside_imports_the_private_package():
    """Its names may change; what is promised stands in docs/reference/api.md."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*"), *(ROOT / "examples").rglob("*")]
    files += [path for folder in ("server", "clients", "deploy") for path in (ROOT / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in files
        if path.suffix in (".md", ".py", ".ipynb", ".toml", ".yml", ".yaml", ".sh")
        for line in path.read_text().splitlines()
        if re.search(r"\b(from|import) attacker\b", line)
    ]
    assert not found, "\n".join(found)
