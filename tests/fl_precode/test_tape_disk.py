"""Folders and disks that refuse: nothing reaches the federation, and what was lost is counted."""

from __future__ import annotations

import logging
import os
import resource
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fl_precode.tape import Tape, TapeError, TapeHeader, TapeWriter

SENT = {"w": np.arange(6, dtype=np.float32)}
HEADER = TapeHeader()


def test_a_tape_is_never_written_over(tmp_path):
    TapeWriter(tmp_path / "tape", HEADER)
    with pytest.raises(ValueError, match="holds a tape already; choose a new folder"):
        TapeWriter(tmp_path / "tape", HEADER)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    mode = stat.S_IMODE((tmp_path / "mine").stat().st_mode)
    with pytest.raises(ValueError, match="is not empty already"):
        TapeWriter(tmp_path / "mine", HEADER)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == mode


def test_a_header_with_another_kind_is_refused():
    with pytest.raises(ValueError, match="one of gradient, weights, got 'logits'"):
        TapeHeader(kind="logits")


def unwritable(tmp_path):
    (tmp_path / "file").write_text("")
    yield "below a file", tmp_path / "file" / "tape"
    yield "a file", tmp_path / "file"
    if Path("/proc/self").exists():
        yield "read-only file system", Path("/proc/fl-precode-tape")
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        yield "no permission", tmp_path / "closed" / "tape"


def test_a_tape_that_cannot_be_created_never_raises_logs_once_and_counts(tmp_path, caplog):
    cases = list(unwritable(tmp_path))
    assert len(cases) >= 2
    for case, path in cases:
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="fl_precode"):
            writer = TapeWriter(path, HEADER)
            stored = [writer.write_round(1, SENT), writer.write_failure(1, "9", "why")]
            stored += [writer.write_observation(1, str(n), SENT, batch_size=1, buffers=()) for n in range(3)]
            # Unstorable as well as unwritable: still one entry lost, not two.
            stored.append(writer.write_observation(1, "x", {"w": np.array([object()])}, batch_size=1, buffers=()))
        assert (case, any(stored), writer.lost) == (case, False, 6)
        assert (case, len(caplog.records)) == (case, 1)
        assert "an entry cannot be written" in caplog.text


def test_a_tape_that_is_removed_while_written_is_counted(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    shutil.rmtree(tmp_path / "tape")
    assert not writer.write_round(2, SENT)
    assert not writer.write_failure(2, "7", "why")
    assert writer.lost == 2
    assert not (tmp_path / "tape").exists()


def test_without_its_manifest_a_tape_is_not_begun_again_in_the_middle(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    (tmp_path / "tape" / "manifest.jsonl").unlink()
    assert not writer.write_round(2, SENT)
    assert writer.lost == 1
    assert not (tmp_path / "tape" / "manifest.jsonl").exists()
    assert list((tmp_path / "tape" / "parameters").iterdir()) == []


@contextmanager
def limit_on_file_size(size):
    """A real refusal by the kernel (EFBIG, as ENOSPC), without a mount: Python ignores the signal that goes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


ARRAYS = {"w": np.zeros(100, np.float32)}


def observe(writer, node, arrays=ARRAYS):
    return writer.write_observation(1, node, arrays, batch_size=1, buffers=())


def files_in(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_disk_that_fills_up_while_arrays_are_written(tmp_path, caplog):
    writer = TapeWriter(tmp_path / "tape", TapeHeader())
    assert writer.write_round(1, ARRAYS)
    assert observe(writer, "1")
    with limit_on_file_size(300):
        assert not observe(writer, "2")
        assert not observe(writer, "3")
    assert observe(writer, "4")
    assert (writer.lost, len(caplog.records)) == (2, 1)
    tape = Tape(tmp_path / "tape")
    assert ([o.node for o in tape.observations()], tape.problems) == (["1", "4"], [])
    # Neither temporary files nor unlisted ones are left to fill the disk further.
    assert files_in(tmp_path / "tape" / "observations") == [f"round-0001-node-{n}.safetensors" for n in (1, 4)]


def test_a_disk_that_fills_up_in_the_middle_of_a_line_spares_the_lines_around_it(tmp_path):
    writer = TapeWriter(tmp_path / "tape", TapeHeader())
    writer.write_round(1, ARRAYS)
    assert observe(writer, "1")
    manifest = tmp_path / "tape" / "manifest.jsonl"
    with limit_on_file_size(manifest.stat().st_size + 20):
        assert not observe(writer, "2", {"w": np.zeros(1, np.float32)})
    assert not manifest.read_bytes().endswith(b"\n")  # the limit really cut the line
    assert observe(writer, "3")
    tape = Tape(tmp_path / "tape")
    assert ([o.node for o in tape.observations()], writer.lost) == (["1", "3"], 1)
    (problem,) = tape.problems
    assert problem.startswith("manifest.jsonl: line 3 cannot be read")
    assert files_in(tmp_path / "tape" / "observations") == [f"round-0001-node-{n}.safetensors" for n in (1, 3)]


def test_a_disk_that_is_full_from_the_start(tmp_path, caplog):
    with limit_on_file_size(10):
        writer = TapeWriter(tmp_path / "tape", TapeHeader())
    stored = [writer.write_round(1, ARRAYS), observe(writer, "1")]
    assert (stored, writer.lost, len(caplog.records)) == ([False, False], 2, 1)
    with pytest.raises(TapeError, match=r"tape\.json is missing"):
        Tape(tmp_path / "tape")


def test_of_writers_that_start_at_once_one_gets_the_folder(tmp_path):
    def start(folder, number, barrier):
        barrier.wait()
        try:
            TapeWriter(folder, TapeHeader(model=str(number)))
        except ValueError:
            return None
        return number

    for attempt in range(20):
        folder, barrier = tmp_path / str(attempt), threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            found = [n for n in pool.map(lambda n, f=folder, b=barrier: start(f, n, b), range(4)) if n is not None]
        assert len(found) == 1
        assert Tape(folder).header.model == str(found[0])
