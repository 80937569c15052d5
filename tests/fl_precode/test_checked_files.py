"""Updates that were read and checked are not read again, and nobody can alter what others get."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fl_precode.tape import Tape, TapeError, TapeHeader, TapeWriter, checked_files, reader
from fl_precode.tape.checked_files import CheckedFiles


@pytest.fixture
def folder(tmp_path):
    writer = TapeWriter(tmp_path / "tape", TapeHeader(kind="gradient"))
    writer.write_round(1, {"weight": np.ones((2, 2), dtype=np.float32)})
    writer.write_observation(1, "1", {"weight": np.ones((2, 2), dtype=np.float32)}, batch_size=1, buffers=())
    return tmp_path / "tape"


def test_who_alters_an_update_alters_nobody_elses(folder):
    tape = Tape(folder, checked=CheckedFiles())
    first = tape.load(tape.entries[0])
    first.update["weight"].data.zero_()
    first.update["weight"].numpy()[:] = 7.0
    first.parameters["weight"].numpy()[:] = 7.0
    again = Tape(folder, checked=tape._checked).load(tape.entries[0])
    assert torch.equal(again.update["weight"], torch.ones(2, 2))
    assert torch.equal(again.parameters["weight"], torch.ones(2, 2))


def test_another_reader_of_the_same_tape_needs_no_file(folder):
    checked = CheckedFiles()
    tape = Tape(folder, checked=checked)
    tape.load(tape.entries[0])
    other = Tape(folder, checked=checked)
    (folder / tape.entries[0].file).unlink()
    assert torch.equal(other.load(other.entries[0]).update["weight"], torch.ones(2, 2))
    with pytest.raises(TapeError, match="cannot be read"):
        Tape(folder).load(tape.entries[0])


def test_what_does_not_fit_is_read_again_and_verifying_keeps_nothing(folder):
    full = CheckedFiles(most_bytes=1)
    tape = Tape(folder, checked=full)
    assert torch.equal(tape.load(tape.entries[0]).update["weight"], torch.ones(2, 2))
    assert full.size == 0
    roomy = CheckedFiles()
    assert Tape(folder, checked=roomy).verify() == []
    assert roomy.size == 0


def test_a_length_that_the_manifest_gives_wrong_is_named_although_the_file_is_kept(folder):
    checked = CheckedFiles()
    tape = Tape(folder, checked=checked)
    tape.load(tape.entries[0])
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("file") == tape.entries[0].file:
            line["bytes"] -= 1
    (folder / "manifest.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    other = Tape(folder, checked=checked)
    with pytest.raises(TapeError, match="bytes where the manifest lists"):
        other.load(other.entries[0])


def test_a_file_without_room_is_checked_again_only_when_it_was_written(folder, monkeypatch):
    checked, hashed = CheckedFiles(most_bytes=1), []
    tape = Tape(folder, checked=checked)
    file = folder / tape.entries[0].file
    digest = reader.hashlib.sha256
    monkeypatch.setattr(reader.hashlib, "sha256", lambda content: hashed.append(len(content)) or digest(content))
    tape.load(tape.entries[0])
    tape.load(tape.entries[0])
    assert hashed.count(file.stat().st_size) >= 2, "written a moment ago"
    monkeypatch.setattr(checked_files, "_SETTLED_NS", -1)
    tape.load(tape.entries[0])
    hashed.clear()
    assert torch.equal(tape.load(tape.entries[0]).update["weight"], torch.ones(2, 2))
    assert hashed == []
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TapeError, match="was altered"):
        tape.load(tape.entries[0])
