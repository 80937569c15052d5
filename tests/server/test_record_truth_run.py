"""The truth of an own app in a real `flwr run`: SuperLink, Ray's actors, and files written by many processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attacker.audit.inputs.tape_source import TapeSource
from attacker.audit.truth.recorded import RecordedTruth
from deploy.simulation.submission import Submission, to_toml
from deploy.simulation.superlink import CONNECTION, OwnedSuperLink
from fl_precode.recorded_truth import read_head
from fl_precode.tape import Tape
from tests.attacker.audits import audit_tapes
from tests.server.recording_app import write_app

pytestmark = pytest.mark.federation

ROOT = Path(__file__).resolve().parents[2]


def test_the_clients_of_a_simulation_record_and_an_audit_finds_it(tmp_path, monkeypatch):
    app, tape = write_app(tmp_path / "app"), tmp_path / "runs" / "tape"
    config = tmp_path / "run.toml"
    config.write_text(to_toml({"tape": str(tape)}))
    with OwnedSuperLink(environment={"PYTHONPATH": str(ROOT)}) as superlink:
        outcome = Submission(superlink.flwr, CONNECTION).run(app, config, federation="num-supernodes=2")
    assert outcome.completed, outcome.log

    entries = Tape(tape).entries
    heads = [read_head(path).answered for path in (tmp_path / "runs" / "tape.truth").iterdir()]
    assert len(entries) == len(heads) == 4
    assert {(head.node, int(head.round)) for head in heads} == {(entry.node, entry.round) for entry in entries}
    assert len({head.message for head in heads}) == 4, "a message has an id in the simulation, too"
    source = RecordedTruth(tmp_path / "runs" / "tape.truth", {})
    for entry in entries:
        assert source.truth(entry).images.shape == (1, 1, 8, 8)

    monkeypatch.syspath_prepend(str(app))
    record = audit_tapes([TapeSource(tape=tape)], out=tmp_path / "out", attacks=["first-layer"], victims=4)
    assert record.federations[0].truth_note == ""
    assert all(row.ssim > 0.99 for row in record.results)
    assert len({round(float(torch.tensor(row.psnr)), 3) for row in record.results}) > 1
