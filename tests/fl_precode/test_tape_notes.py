"""What people add beside a tape goes before what stands on it, and mistakes are named."""

from __future__ import annotations

import stat
import tomllib

import pytest

from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Protocol
from fl_precode.tape import TapeHeader
from fl_precode.tape.notes import input_spec, notes_path, protocol_of, with_notes, write_notes

FULL = TapeHeader(
    model="my_app.task:Net",
    defence="none",
    inputs=InputSpec(channels=3, height=4, width=5, classes=6, mean=(0.5, 0.25, 0.1), std=(1.0, 2.0, 3.0)),
    protocol=Protocol(local_epochs=1, batch_size=8, learning_rate=0.1, batch_norm="batch"),
)


@pytest.mark.parametrize("header", [FULL, TapeHeader()])
def test_what_is_written_reads_back_and_changes_nothing(tmp_path, header):
    assert write_notes(tmp_path / "tape", header)
    assert stat.S_IMODE(notes_path(tmp_path / "tape").stat().st_mode) == 0o600
    assert with_notes(header, tmp_path / "tape") == header


def test_the_full_notes_fill_an_empty_header(tmp_path):
    write_notes(tmp_path / "tape", FULL)
    assert with_notes(TapeHeader(), tmp_path / "tape") == FULL


def test_a_line_whose_comment_sign_is_taken_away_counts(tmp_path):
    write_notes(tmp_path / "tape", TapeHeader())
    path = notes_path(tmp_path / "tape")
    assert set(tomllib.loads(path.read_text())) == {"protocol"}
    path.write_text(path.read_text().replace("# model", "model").replace("# input", "input").replace("# cl", "cl"))
    header = with_notes(TapeHeader(), tmp_path / "tape")
    assert header.model == "package.module:factory"
    assert header.inputs == input_spec("3x32x32", 10)


def test_notes_go_before_the_header(tmp_path):
    notes_path(tmp_path / "tape").write_text('defence = "precode"\n[protocol]\nlearning-rate = 0.5\n')
    header = with_notes(FULL, tmp_path / "tape")
    assert header.defence == "precode"
    assert header.protocol == Protocol(local_epochs=1, batch_size=8, learning_rate=0.5, batch_norm="batch")
    assert header.inputs == FULL.inputs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modle = 'x'", "unknown key 'modle'; expected some of: .*model"),
        ("[protocol]\nsteps = 1", "unknown key 'steps'; .*local-steps"),
        ("input = '3x32x32'", "needs 'classes'"),
        ("classes = 3", "'input', which is missing"),
        ("input = '3x32'\nclasses = 2", "channels x height x width"),
        ("input = '3x32x32'\nclasses = 2\nmean = [0.5]", "one mean"),
        ("input = ", "Invalid value"),
        ("protocol = 3", "tape.toml"),
    ],
)
def test_mistakes_are_named_with_the_file(tmp_path, text, says):
    notes_path(tmp_path / "tape").write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)tape\.toml: .*{says}|{says}"):
        with_notes(TapeHeader(), tmp_path / "tape")


def test_notes_that_are_there_are_left_alone(tmp_path):
    notes_path(tmp_path / "tape").write_text("model = 'mine'")
    assert not write_notes(tmp_path / "tape", FULL)
    assert with_notes(TapeHeader(), tmp_path / "tape").model == "mine"


def test_zeros_in_a_run_configuration_say_nothing():
    assert protocol_of({"local-steps": 0, "local-epochs": 2, "lr": 0.1}) == Protocol(local_epochs=2, learning_rate=0.1)
