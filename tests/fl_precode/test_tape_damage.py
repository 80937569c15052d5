"""Tapes that are torn, altered, foreign or hostile: what is wrong is named, the rest is read."""

from __future__ import annotations

import hashlib
import json
import os
import pickle

import numpy as np
import pytest
from safetensors.numpy import save

from fl_precode.tape import Tape, TapeError, TapeHeader, TapeWriter

SENT = {"w": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.float32), "seen": np.array(3)}


@pytest.fixture
def folder(tmp_path):
    """A tape with three replies of one round."""
    writer = TapeWriter(tmp_path / "tape", TapeHeader())
    writer.write_round(1, SENT)
    for node in ("1", "2", "3"):
        add = np.float32(node)
        writer.write_observation(
            1, node, {"w": SENT["w"] + add, "b": SENT["b"] + add, "seen": SENT["seen"]}, batch_size=1, buffers=["seen"]
        )
    return tmp_path / "tape"


def file_of(node):
    return f"observations/round-0001-node-{node}.safetensors"


def only_problem(tape):
    (problem,) = tape.problems
    return problem


def nodes(tape):
    return [observation.node for observation in tape.observations()]


def replace_reply(folder, content):
    """Put other bytes in place of node 2's reply, and list them truthfully: a client can send anything."""
    (folder / file_of(2)).write_bytes(content)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[2] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def edit_line(folder, **changes):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[2] |= changes
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_whole_tape_has_no_problems(folder):
    tape = Tape(folder)
    assert tape.verify() == []
    assert nodes(tape) == ["1", "2", "3"]


def test_a_torn_last_line_is_named_and_the_rest_is_read(folder):
    manifest = folder / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-30])
    tape = Tape(folder)
    assert nodes(tape) == ["1", "2"]
    assert only_problem(tape).startswith("manifest.jsonl: the last line is torn")


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b"\xff\xfe\x00",
        b"[1]",
        b"null",
        b"{}",
        b'{"type": "round"}',
        b'{"type": "dance", "round": 1}',
        b"[" * 99999,
    ],
    ids=lambda line: line[:20].decode(errors="replace"),
)
def test_a_line_of_garbage_is_named_and_the_rest_is_read(folder, line):
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "manifest.jsonl").write_bytes(b"".join([*lines[:2], line + b"\n", *lines[2:]]))
    tape = Tape(folder)
    assert nodes(tape) == ["1", "2", "3"]
    assert only_problem(tape).startswith("manifest.jsonl: line 3 cannot be read")


@pytest.mark.parametrize(
    "changes",
    [
        {"round": "1"},
        {"round": -1},
        {"round": True},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"buffers": "seen"},
        {"buffers": [1]},
        {"sha256": "abc"},
        {"bytes": -1},
        {"kind": "logits"},
        {"file": None},
    ],
    ids=str,
)
def test_a_line_with_values_that_cannot_be_is_named(folder, changes):
    edit_line(folder, **changes)
    tape = Tape(folder)
    assert nodes(tape) == ["1", "3"]
    assert only_problem(tape).startswith("manifest.jsonl: line 3 cannot be read")


def test_a_missing_file_is_named(folder):
    (folder / file_of(2)).unlink()
    tape = Tape(folder)
    assert only_problem(tape).startswith(f"{file_of(2)}: cannot be read (No such file")
    assert nodes(tape) == ["1", "3"]
    assert len(tape.problems) == 1


def test_an_altered_file_of_the_same_length_is_named_when_loaded(folder):
    content = bytearray((folder / file_of(2)).read_bytes())
    content[-1] ^= 1
    (folder / file_of(2)).write_bytes(content)
    tape = Tape(folder)
    assert tape.problems == []
    assert nodes(tape) == ["1", "3"]
    assert only_problem(tape).startswith(f"{file_of(2)}: was altered")
    with pytest.raises(TapeError, match="was altered"):
        tape.load(tape.entries[1])
    assert Tape(folder).verify() == tape.problems


@pytest.mark.parametrize(
    "change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b""], ids=["shorter", "longer", "empty"]
)
def test_a_file_of_another_length_is_named_without_loading(folder, change):
    (folder / file_of(2)).write_bytes(change((folder / file_of(2)).read_bytes()))
    tape = Tape(folder)
    assert only_problem(tape).startswith(f"{file_of(2)}: has ")
    assert nodes(tape) == ["1", "3"]
    assert len(tape.problems) == 1


def test_damaged_parameters_spoil_their_round_only_and_are_named(folder, tmp_path):
    writer = TapeWriter(tmp_path / "two", TapeHeader())
    for number in (1, 2, 3):
        writer.write_round(number, {"w": np.ones(2, np.float32)})
        if number < 3:
            writer.write_observation(number, "1", {"w": np.ones(2, np.float32)}, batch_size=1, buffers=())
    for number in (1, 3):
        path = tmp_path / "two" / f"parameters/round-000{number}.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    tape = Tape(tmp_path / "two")
    assert [o.round for o in tape.observations()] == [2]
    assert [problem.split(":")[0] for problem in tape.problems] == ["parameters/round-0001.safetensors"]
    assert [p.split(":")[0][-16:] for p in tape.verify()] == ["0001.safetensors", "0003.safetensors"]


def test_a_reply_without_what_was_sent_is_named(tmp_path):
    writer = TapeWriter(tmp_path / "tape", TapeHeader())
    writer.write_observation(1, "7", SENT, batch_size=1, buffers=["seen"])
    tape = Tape(tmp_path / "tape")
    assert nodes(tape) == []
    assert "what the server sent in round 1 is not on the tape" in only_problem(tape)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({**SENT, "extra": SENT["b"]}, r"absent: \[\], not sent: \['extra'\]"),
        ({**SENT, "w": SENT["w"].reshape(2, 3)}, r"expected 'w' of shape \(6,\), as it was sent, got \(2, 3\)"),
        ({**SENT, "w": SENT["w"].astype(np.int64)}, "expected floating-point 'w'"),
        ({}, r"absent: \['b', 'w'\]"),
    ],
    ids=["extra", "shape", "integers", "nothing"],
)
def test_a_reply_that_does_not_fit_is_named(folder, arrays, message):
    replace_reply(folder, save(arrays))
    tape = Tape(folder)
    with pytest.raises(TapeError, match=message):
        tape.load(tape.entries[1])
    assert nodes(tape) == ["1", "3"]
    assert only_problem(tape).startswith(file_of(2))


def test_what_a_reply_lacks_is_a_constant(folder):
    """Clients of FedPer and the like send the shared part only."""
    replace_reply(folder, save({"w": SENT["w"]}))
    tape = Tape(folder)
    seen = tape.load(tape.entries[1])
    assert set(seen.update) == {"w"}
    assert seen.frozen == {"b"}
    assert "b" in seen.buffers


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_foreign_content_is_named_and_nothing_is_unpickled(folder, tmp_path):
    mark = tmp_path / "exploded"
    for content in (pickle.dumps(Bomb(str(mark))), b"PK\x03\x04", b"\x00" * 64, b"\xff" * 64):
        replace_reply(folder, content)
        tape = Tape(folder)
        assert nodes(tape) == ["1", "3"]
        assert only_problem(tape).startswith(f"{file_of(2)}: is no safetensors file")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(str(mark)))).close()
    assert mark.exists()  # the bomb is live: unpickling would have been seen


@pytest.mark.parametrize(
    "path",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "observations/../../outside.safetensors",
        "observations/a/b.safetensors",
        "tape.json",
    ],
)
def test_a_manifest_cannot_point_outside_of_the_tape(folder, tmp_path, path):
    (tmp_path / "outside.safetensors").write_bytes((folder / file_of(2)).read_bytes())
    edit_line(folder, file=path)
    tape = Tape(folder)
    assert nodes(tape) == ["1", "3"]
    assert "expected a file inside the tape" in only_problem(tape)


def test_links_inside_a_tape_are_refused(folder, tmp_path):
    outside = tmp_path / "outside.safetensors"
    (folder / file_of(2)).rename(outside)
    (folder / file_of(2)).symlink_to(outside)
    tape = Tape(folder)
    assert nodes(tape) == ["1", "3"]
    assert any("not a regular file" in problem for problem in tape.problems)
    with pytest.raises(TapeError, match="cannot be read"):
        tape.load(tape.entries[1])


def test_a_linked_folder_manifest_or_header_is_refused(folder, tmp_path):
    for name in ("observations", "manifest.jsonl", "tape.json"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        if name == "tape.json":
            with pytest.raises(TapeError, match=r"tape\.json cannot be read"):
                Tape(folder)
        else:
            tape = Tape(folder)
            assert nodes(tape) == []
            assert tape.problems
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)


def test_a_link_to_the_whole_tape_is_fine(folder, tmp_path):
    (tmp_path / "latest").symlink_to(folder)
    assert nodes(Tape(tmp_path / "latest")) == ["1", "2", "3"]


@pytest.mark.timeout(20)
def test_a_named_pipe_is_refused_and_not_waited_for(folder):
    (folder / file_of(2)).unlink()
    os.mkfifo(folder / file_of(2))
    assert nodes(Tape(folder)) == ["1", "3"]


def test_a_missing_manifest_is_named(folder):
    (folder / "manifest.jsonl").unlink()
    tape = Tape(folder)
    assert tape.entries == []
    assert only_problem(tape).startswith("manifest.jsonl: cannot be read")
