"""The guard at a site, with real audits of real updates: what is withheld, what passes, and what is left behind."""

from __future__ import annotations

import json
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from attacker.cli.main import app as command_line
from fl_precode.flower import gradient_defence_mod, record_truth
from fl_precode.flower.guard import WITHHELD
from fl_precode.models.input_spec import InputSpec
from tests.server.own_app import part
from tests.server.site import ask, guard, site, weights

ROOT = Path(__file__).resolve().parents[2]
LOUD = "noise:std=10"


def withheld(reply) -> bool:
    return reply.has_error() and reply.error.code == WITHHELD


def record_of(folder: Path, name: str = "round-0001"):
    return json.loads((folder / name / "audit.json").read_text())


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Modes of the files, and of the folders, below a folder and of itself."""
    paths = [folder, *folder.rglob("*")]
    files, folders = (
        [stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir() is kind] for kind in (False, True)
    )
    return set(files), set(folders)


def test_an_undefended_mlp_is_withheld_and_its_page_stays(tmp_path, said):
    assert withheld(ask(site(guard(tmp_path / "guard")), 3))
    place = tmp_path / "guard" / "round-0003"
    page = place / "report" / "index.html"
    # On a busy machine its twenty seconds may have no room for the dearest of the three.
    assert re.fullmatch(
        "Leakage guard, round 3: the update is withheld; 1 of 1 image was reconstructed, by first-layer inversion"
        rf"(, layer-wise inversion)? and activation span\. Page: {re.escape(str(page))}",
        said.last,
    )
    assert record_of(tmp_path / "guard", "round-0003")["verdicts"][0]["verdict"] == "leaks"
    assert "leaks" in page.read_text()
    assert modes(tmp_path / "guard") == ({0o600}, {0o700})
    left = {path.name for path in place.iterdir()}
    assert {"audit.json", "report"} <= left
    assert not left & {"tape", "tape.truth", "tape.toml", "campaign"}
    checked = CliRunner().invoke(command_line, ["check", str(place), "--max-asr", "0"])
    assert checked.exit_code == 1
    assert "1 of 1 image was reconstructed" in checked.stdout


def test_strong_noise_inside_passes_and_outside_does_not_help(tmp_path, said):
    noise = gradient_defence_mod(LOUD)
    assert not ask(site(guard(tmp_path / "guard"), noise), 1).has_error()
    assert "round 1: the update is sent; 0 of 1 image was reconstructed (not shown to leak)." in said.last
    assert (tmp_path / "guard" / "round-0001" / "report" / "index.html").exists()
    assert withheld(ask(site(noise, guard(tmp_path / "guard")), 1)), "the guard does not see what is done after it"
    assert (tmp_path / "guard" / "round-0001-2" / "audit.json").exists(), "an earlier round is left as it is"


def test_a_warning_sends_what_leaks(tmp_path, said):
    warned, bare = (ask(site(*mods), 1) for mods in ([guard(tmp_path / "guard", action="warn")], []))
    assert weights(warned) == weights(bare)
    assert "the update is sent all the same (action='warn'); 1 of 1 image was reconstructed, by" in said.last


def test_a_share_may_be_allowed(tmp_path):
    assert not ask(site(guard(tmp_path / "guard", max_asr=1.0)), 1).has_error()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"model": "tests.server.own_app:nothing"}, "has no 'nothing'"),
        ({"model": "tests.server.own_app:guarded"}, "because the update belongs to another model: parameters"),
        ({"inputs": "1x9x9"}, ""),
        ({"loss": "tests.server.own_app:nothing"}, "has no 'nothing'"),
        ({"budget": "0.5s"}, "a budget of 0.5 s has no room for any attack"),
    ],
    ids=["no model", "another model", "another shape", "no loss", "no time"],
)
def test_what_cannot_be_audited_is_withheld(tmp_path, said, settings, why):
    assert withheld(ask(site(guard(tmp_path / "guard", **settings)), 1))
    assert "it could not be judged: " in said.last
    assert why in said.last
    assert not (tmp_path / "guard" / "round-0001" / "tape.truth").exists()


def test_true_images_of_something_else_are_no_truth(tmp_path, said):
    def others(images, labels):
        record_truth(part(5, 5, 3)[0], part(5, 5, 3)[1])

    assert withheld(ask(site(guard(tmp_path / "guard"), line=others), 1))
    assert "it could not be judged: " in said.last
    assert "3 images" in said.last, "the reason why the truth is none"


def test_an_update_of_more_images_than_an_audit_compares_is_withheld(tmp_path, said):
    assert withheld(ask(site(guard(tmp_path / "guard", budget="10s"), each=65), 1))
    assert "it could not be judged: " in said.last
    assert "it has 65 images, and no more than 64 are compared" in said.last


def test_settings_reach_the_audit(tmp_path):
    noise, focal = gradient_defence_mod(LOUD), "tests.fl_precode.some_losses:focal"
    inputs = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.0,), std=(1.0,))
    ask(site(guard(tmp_path / "plain", budget="8s"), noise), 1)
    changed = {"inputs": inputs, "classes": None, "defence": LOUD, "loss": focal}
    ask(site(guard(tmp_path / "told", budget="9s", **changed), noise), 1)
    plain, told = (record_of(tmp_path / name) for name in ("plain", "told"))
    assert [one["settings"]["budget"] for one in (plain, told)] == [8.0, 9.0]
    for name, values in {"defence": ["unknown", LOUD], "loss": [None, focal]}.items():
        assert [one["federations"][0][name] for one in (plain, told)] == values
    matched = [
        [one["status"] for one in record["plan"] if one["attack"].partition(":")[0] == "defence-matched"]
        for record in (plain, told)
    ]
    assert matched[0] == ["not_applicable"]
    assert matched[1] != ["not_applicable"], "what answers the announced defence is planned, as far as time allows"


def test_training_draws_the_same_numbers_as_without_a_guard(tmp_path):
    def drawn(*mods):
        torch.manual_seed(1)
        np.random.seed(1)
        random.seed(1)
        ask(site(*mods), 1)
        return torch.rand(1).item(), np.random.rand(), random.random(), torch.get_num_threads()

    assert drawn(guard(tmp_path / "guard", action="warn")) == drawn()


def test_without_the_extra_nothing_passes_and_the_log_names_it(tmp_path):
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pydantic":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
from tests.server.site import ask, guard, site
print(ask(site(guard({str(tmp_path / "guard")!r})), 1).error.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [str(WITHHELD)]
    assert "the audit needs pydantic, which is not installed: pip install 'fl-precode[audit]'" in done.stderr


def test_a_client_with_a_guard_loads_nothing_of_an_audit_before_it_judges():
    code = (
        "import sys\nfrom fl_precode.flower import leakage_guard_mod\n"
        "leakage_guard_mod('g', model='a:B', inputs='1x8x8', classes=10, defence='noise:std=1')\n"
        "print(sorted({'attacker', 'pydantic', 'scipy', 'skimage', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
