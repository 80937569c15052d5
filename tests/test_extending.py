"""The pages on adding an attack and a defence, followed word for word: a package of somebody else, installed by pip."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attacker.attacks.registration import GROUP, AttackEntry, entry_of_class
from fl_precode.defences import registry as defences
from fl_precode.plugins import Registry

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
import json, sys
from pathlib import Path
from typer.testing import CliRunner
from attacker.cli.main import app
import fl_precode as flp
from tests.attacker.taped_federation import tape_federation

folder, found = Path(sys.argv[1]), {}
def command(*arguments):
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output

found["attacks"], found["defences"] = command("attacks"), command("defences")
tapes = [tape_federation(folder / one, rounds=1, defence=one, perturbed=True).tape for one in ("none", "hide-biases")]
found["plan"] = command("plan", tapes[0], "--budget", "20s")
record = flp.audit(tapes, attacks=["loudest-row"], victims=2, workers=2, control=False, out=folder / "audit")
found["outcomes"] = [one.outcome for one in record.results]
found["ssim"] = [one.ssim for one in record.results if one.ssim is not None]
found["page"] = record.save_report().read_text()
found["record"] = [(one.spec, one.description) for one in record.attacks]
found["defence"] = [one.defence for one in record.federations]
(folder / "found.json").write_text(json.dumps(found))
"""


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / "how-to" / page).read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where pip put the package of the two pages."""
    pytest.importorskip("setuptools", reason="the page's package is built by setuptools, a development dependency")
    folder = tmp_path_factory.mktemp("package")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    for page in ("adding-an-attack.md", "adding-a-defence.md"):
        (file,) = re.findall(r"^`([\w/]+\.py)`:$", (ROOT / "docs" / "how-to" / page).read_text(), re.MULTILINE)
        (program,) = blocks(page, "python")
        (folder / file).write_text(program)
    (attack,), (defence,) = blocks("adding-an-attack.md", "toml"), blocks("adding-a-defence.md", "toml")
    (folder / "pyproject.toml").write_text(f"{attack}\n{defence}")
    target = folder / "target"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target)
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, folder], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return target


def test_a_package_with_an_attack_and_a_defence_is_listed_planned_run_and_reported(installed, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(installed)])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert "division in the loudest row of the first layer's gradient" in found["attacks"]
    assert "hide-biases" in found["defences"]
    assert "loudest-row" in found["plan"]
    assert found["record"] == [["loudest-row", "division in the loudest row of the first layer's gradient: one image"]]
    assert found["defence"] == ["none", "hide-biases"]
    assert found["outcomes"] == ["converged"] * 2 + ["not_applicable"] * 2
    assert all(value > 0.99 for value in found["ssim"])
    assert len(found["ssim"]) == 2
    assert "the loudest row" in found["page"]
    assert "hidden biases" in found["page"]


BROKEN = {
    "fails": "raise RuntimeError('no such device')\n",
    "leaves": "raise SystemExit(3)\n",
    "no_attack": "class Thing:\n    pass\n",
    "half": "from fl_precode.attacks import Attack\nclass Half(Attack):\n    refuses = None\n",
    "twin": "from tests.attacker.own_attacks import Grey\nclass Twin(Grey):\n    pass\n",
    "fine": "from tests.attacker.own_attacks import Grey\nclass Fine(Grey):\n    '''Grey as well.'''\n",
}


@pytest.fixture
def several(tmp_path, monkeypatch):
    """A registry that finds plug-ins of all kinds beside one of our names."""
    for name, source in BROKEN.items():
        (tmp_path / f"bad_{name}.py").write_text(source)
    points = {
        "fails": "bad_fails:A",
        "leaves": "bad_leaves:A",
        "missing": "bad_nowhere:A",
        "no-attack": "bad_no_attack:Thing",
        "half": "bad_half:Half",
        "dlg": "bad_twin:Twin",
        "fine": "bad_fine:Fine",
    }
    folder = tmp_path / "bad_plugins-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-plugins\nVersion: 1\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (folder / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}\n[{defences.GROUP}]\nfails = bad_fails:A\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    registry = Registry("attack", GROUP, entry_of_class)
    registry.add("dlg", AttackEntry(description="ours", source="-", build=lambda spec: None), "attacker.attacks:Dlg")
    return registry


def test_bad_plug_ins_are_left_out_say_why_and_the_others_go_on(several, caplog):
    assert list(several) == ["dlg", "fine"]
    assert several["fine"].description == "Grey as well"
    assert several["fine"].source == "bad-plugins"
    assert several["dlg"].description == "ours"
    expected = {
        "fails": "could not be loaded: RuntimeError: no such device",
        "leaves": "could not be loaded: SystemExit: 3",
        "missing": "No module named 'bad_nowhere'",
        "no-attack": "expected a subclass of fl_precode.attacks.Attack with refuses.. and run.., got Thing",
        "half": "the attack Half lacks run",
        "dlg": "has a name that is taken by attacker.attacks:Dlg; its entry point needs a name of its own",
    }
    assert several.refused.keys() == expected.keys()
    for name, words in expected.items():
        assert re.search(words, several.refused[name]), several.refused[name]
        assert "of bad-plugins" in several.refused[name]
        assert f"the attack plug-in {name!r} was left out" in caplog.text
    assert "is a plug-in that cannot be used: 'bad_fails:A'" in several.why_unknown("fails")
    assert several.why_unknown("magic") == "there is no attack 'magic'; expected one of dlg, fine"


def test_a_broken_defence_leaves_the_others_to_train_with(several):
    del several
    registry = Registry("defence", defences.GROUP, lambda name, kind, package: kind)
    registry.add("noise", object, "fl_precode.defences.on_gradients:GaussianNoise")
    assert list(registry) == ["noise"]
    assert "RuntimeError: no such device" in registry.why_unknown("fails")


def test_a_class_that_registered_itself_may_have_another_name_in_its_module(tmp_path, monkeypatch):
    from tests.attacker import own_attacks

    monkeypatch.setattr(own_attacks, "Alias", own_attacks.Grey, raising=False)
    folder = tmp_path / "alias-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: alias\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(
        f"[{GROUP}]\ngrey = {own_attacks.__name__}:Alias\nblack = {own_attacks.__name__}:Alias\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("attack", GROUP, entry_of_class)
    ours = AttackEntry(description="ours", source="-", build=lambda spec: None)
    for name, place in (("grey", "Grey"), ("black", "Black")):
        registry.add(name, ours, f"{own_attacks.__name__}:{place}")
    assert list(registry) == ["grey", "black"]
    assert registry.refused.keys() == {"black"}, "that name is another class's"


def test_a_name_is_registered_once():
    from attacker.attacks import register_attack
    from tests.attacker.own_attacks import Grey

    known = {"description": "a second one", "source": "-"}
    with pytest.raises(ValueError, match="the name 'dlg' is taken by attacker.*GradientMatching: .* such as 'my-dlg'"):
        register_attack("dlg", **known)(Grey)
    with pytest.raises(ValueError, match="letters, digits and hyphens alone.*got 'my attack'"):
        register_attack("my attack", **known)(Grey)
    with pytest.raises(TypeError, match="expected a subclass of GradientDefence or ModelDefence .* got Grey"):
        defences.register_defence("grey", description="-")(Grey)
