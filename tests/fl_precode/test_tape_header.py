"""Headers that are none, folders that are no tape, and tapes that are still being written."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

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


def edit_line(folder, **changes):
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    lines[2] |= changes
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", "not the header of a tape"),
        (b'{"format": "zip"}', "not the header of a tape"),
        (b'{"format": "fl-precode-tape"}', "expected a format version"),
        (b'{"format": "fl-precode-tape", "version": "1"}', "expected a format version"),
        (b'{"format": "fl-precode-tape", "version": 0}', "expected a format version"),
        (b'{"format": "fl-precode-tape", "version": 3}', "tape format 3 is newer than this fl-precode, which reads 2"),
        (b'{"format": "fl-precode-tape", "version": 1}', "damaged header .KeyError"),
        (b"[" * 99999, "is not JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_header_that_is_none_is_refused_by_name(folder, content, message):
    (folder / "tape.json").write_bytes(content)
    with pytest.raises(TapeError, match=f"tape.json.*{message}"):
        Tape(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "logits"},
        {"kind": []},
        {"model": 3},
        {"protocol": None},
        {"settings": 3},
        {"inputs": {"channels": 1}},
        {"inputs": {"channels": "1", "height": 1, "width": 1, "classes": 2, "mean": [0], "std": [1]}},
        {"inputs": {"channels": 1, "height": 1, "width": 1, "classes": 2, "mean": [0], "std": [0]}},
    ],
    ids=str,
)
def test_a_header_with_values_that_cannot_be_is_refused(folder, changes):
    header = json.loads((folder / "tape.json").read_text())
    (folder / "tape.json").write_text(json.dumps(header | changes))
    with pytest.raises(TapeError, match="damaged header"):
        Tape(folder)


def test_fields_of_a_later_writer_are_passed_over(folder):
    header = json.loads((folder / "tape.json").read_text())
    header |= {"mood": "curious", "protocol": header["protocol"] | {"weather": "fine"}}
    (folder / "tape.json").write_text(json.dumps(header))
    edit_line(folder, mood="curious")
    tape = Tape(folder)
    assert (tape.header, tape.verify()) == (TapeHeader(), [])


def test_a_header_without_the_optimisers_facts_is_read_as_not_announced(folder):
    header = json.loads((folder / "tape.json").read_text())
    for later in ("batch_size", "momentum", "weight_decay"):
        assert header["protocol"].pop(later) is None
    (folder / "tape.json").write_text(json.dumps(header))
    assert Tape(folder).header == TapeHeader()


def test_what_is_no_tape_is_said(tmp_path):
    with pytest.raises(TapeError, match="is not a folder"):
        Tape(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(TapeError, match="is not a folder"):
        Tape(tmp_path / "file")
    with pytest.raises(TapeError, match=r"tape\.json is missing; this folder is no tape"):
        Tape(tmp_path)


def test_a_tape_is_followed_while_it_is_written(tmp_path):
    writer = TapeWriter(tmp_path / "tape", TapeHeader())
    reader = Tape(tmp_path / "tape")
    seen = [len(reader.observations())]
    for number in (1, 2):
        writer.write_round(number, SENT)
        writer.write_observation(number, "7", SENT, batch_size=1, buffers=["seen"])
        reader.refresh()
        seen.append(len(reader.observations()))
    assert (seen, reader.problems) == ([0, 1, 2], [])


def test_a_reader_beside_a_busy_writer_never_sees_damage(tmp_path):
    writer = TapeWriter(tmp_path / "tape", TapeHeader())

    def write():
        writer.write_round(1, SENT)
        for node in range(60):
            writer.write_observation(1, str(node), SENT, batch_size=1, buffers=["seen"])

    thread = threading.Thread(target=write)
    thread.start()
    counts, problems = [], []
    while thread.is_alive():
        tape = Tape(tmp_path / "tape")
        counts.append(len(tape.observations()))
        problems += tape.problems
    thread.join()
    assert problems == []
    assert counts == sorted(counts)
    assert len(Tape(tmp_path / "tape").observations()) == 60
    assert writer.lost == 0
