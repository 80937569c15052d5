"""A site with a guard in a real `flwr run`, beside one without: SuperLink, Ray, and a strategy that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deploy.simulation.submission import Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from fl_precode.recorded_truth import SUFFIX
from fl_precode.tape import Tape
from tests.server.recording_app import TASK, write_app

pytestmark = pytest.mark.federation

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, JUDGED = (1, 2, 3), (1, 3)

MODS = """
from fl_precode.flower import gradient_defence_mod, leakage_guard_mod


def guard(message, context, call_next):
    # One app for both sites here; a real site changes its own.
    if context.node_config["partition-id"] != 0:
        return call_next(message, context)
    guarded = leakage_guard_mod(context.run_config["guard"], model="ownapp.task:network", inputs="1x8x8", classes=4,
                                every=2)
    return guarded(message, context, call_next)


def noise(message, context, call_next):
    std = context.run_config["noise"]
    return gradient_defence_mod(f"noise:std={std}")(message, context, call_next) if std else call_next(message, context)


MODS = [guard, noise]
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run as it is, and one with strong noise behind the guard: (folder, log) of each."""
    folder = tmp_path_factory.mktemp("site")
    app = write_app(folder / "app", MODS)
    found = []
    with OwnedSuperLink(environment={"PYTHONPATH": str(ROOT)}) as superlink:
        for name, std in (("bare", 0.0), ("noisy", 10.0)):
            place = folder / name
            place.mkdir()
            config = place / "run.toml"
            settings = {"tape": str(place / "tape"), "guard": str(place / "guard"), "noise": std, "rounds": len(ROUNDS)}
            config.write_text(to_toml(settings))
            outcome = Submission(superlink.flwr, CONNECTION).run(app, config, federation="num-supernodes=2")
            assert outcome.completed, outcome.log
            found.append((place, outcome.log))
    return found


def images() -> list[bytes]:
    made: dict[str, object] = {}
    exec(TASK, made)
    return [made["images_of"](0, number)[0].numpy().tobytes() for number in ROUNDS]


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_the_strategy_gets_one_update_and_one_failure_and_goes_on(runs):
    (place, log), _ = runs
    assert log.count("Received 1 results and 1 failures") == len(JUDGED)
    assert log.count("Received 2 results and 0 failures") == 1, "every second message is judged, whatever process works"
    tape = Tape(place / "tape")
    assert sorted(entry.round for entry in tape.entries) == [1, 2, 2, 3]
    assert [(one.round, one.reason) for one in tape.failures] == [
        (number, "This site withheld its update of this round. Its own log says why.") for number in JUDGED
    ]
    others = {entry.node for entry in tape.entries if entry.round in JUDGED}
    assert len(others) == 1
    assert others.isdisjoint(one.node for one in tape.failures)
    sent = {one.round: one.parameters for one in tape.observations()}
    assert any(not torch.equal(value, sent[3][name]) for name, value in sent[1].items()), "the model is trained"


def test_each_judged_round_leaves_its_page_at_the_site(runs):
    (place, log), _ = runs
    assert sorted(path.name for path in (place / "guard").iterdir()) == [f"round-{number:04d}" for number in JUDGED]
    for number in JUDGED:
        folder = place / "guard" / f"round-{number:04d}"
        record = json.loads((folder / "audit.json").read_text())
        assert [one["verdict"] for one in record["verdicts"]] == ["leaks"]
        assert (folder / "report" / "index.html").exists()
        assert f"Leakage guard, round {number}: the update is withheld; 1 of 1 image was reconstructed, by" in log
    assert not list((place / "guard").rglob(f"*{SUFFIX}")), "neither true images nor updates are left"


def test_no_true_image_is_on_the_servers_tape(runs):
    (place, _), _ = runs
    held = bytes_below(place / "tape")
    assert len(held) > 1000
    assert not any(image in held for image in images())


def test_with_strong_noise_behind_the_guard_every_update_arrives(runs):
    _, (place, log) = runs
    assert log.count("Received 2 results and 0 failures") == len(ROUNDS)
    tape = Tape(place / "tape")
    assert len(tape.entries) == 2 * len(ROUNDS)
    assert not tape.failures
    for number in JUDGED:
        record = json.loads((place / "guard" / f"round-{number:04d}" / "audit.json").read_text())
        assert record["verdicts"][0]["verdict"] == "not shown to leak"
