"""Two of the five apps by Flower's own runtime: SuperLink, Ray's workers, one process for each part."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.simulation.submission import Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from fl_precode.tape import Tape
from tests.apps.one_process import OWN, audited

ROOT = Path(__file__).resolve().parents[2]
APPS = [
    ("message_api", "message_digits", "then-refine"),
    ("legacy_numpy", "legacy_digits", "inverting-gradients:iterations=1500,restarts=1"),
]


@pytest.mark.slow
@pytest.mark.federation
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("app", "package", "attack"), APPS)
def test_flwr_run_and_audit(app, package, attack, tmp_path, monkeypatch):
    copy = tmp_path / app.replace("_", "-")
    shutil.copytree(OWN / app, copy, ignore=shutil.ignore_patterns("__pycache__"))
    tape = tmp_path / "tape"
    environment = {"PYTHONPATH": str(ROOT), "TAPE": str(tape), "FL_PRECODE_TRUTH": f"{tape}.truth"}
    with OwnedSuperLink(environment=environment) as superlink:
        config = superlink.folder / "run.toml"
        config.write_text(to_toml({"tape": str(tape)}))
        federation = "num-supernodes=2 client-resources-num-cpus=1"
        outcome = Submission(superlink.flwr, CONNECTION).run(copy, config, federation=federation)
    assert outcome.completed, outcome.log
    assert len(Tape(tape).entries) == 4
    monkeypatch.syspath_prepend(copy)
    options = ("--attacks", attack, "--model", f"{package}.task:Net", "--input", "1x8x8", "--classes", "10")
    found = audited(tape, tmp_path / "audit", "--victims", "1", *options)
    assert found.code == 0, found.said
    assert max(found.best.values()) > 30, "the true image was reconstructed"
