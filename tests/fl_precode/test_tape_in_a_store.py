"""A tape in an object store: the same files as in a folder, private here, and a store that is away stops nothing."""

from __future__ import annotations

import logging
import stat
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from fl_precode.places.cache_folder import VARIABLE
from fl_precode.places.object_store import ObjectStore, check_url, path_of, url_of, without_secrets
from fl_precode.tape import Tape, TapeError, TapeHeader, TapeWriter, spool
from fl_precode.tape.fetched import local_tape
from fl_precode.tape.spool import SpooledTapeWriter, tape_writer

SENT = {"w": np.arange(6, dtype=np.float32)}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder of this test's own, with the cache folder in it, and short pauses."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(spool, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.1)
    return tmp_path / "home"


@pytest.fixture
def url(request):
    found = f"memory://bucket-{request.node.name}/tape"
    yield found
    fsspec.filesystem("memory").store.clear()


def write(writer, rounds=2, nodes=("7", "8")):
    for number in range(1, rounds + 1):
        sent = writer.write_sent(number, {"": SENT})
        for node in nodes:
            writer.write_observation(number, node, {"w": SENT["w"] + int(node)}, batch_size=1, buffers=(), sent=sent)


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def test_the_copy_of_a_tape_in_a_store_is_the_tape(url, home):
    writer = tape_writer(url, TapeHeader(model="lenet"))
    assert isinstance(writer, SpooledTapeWriter)
    write(writer)
    assert writer.flush(20)
    assert writer.unsent == 0
    assert writer.place == url
    tape = Tape(local_tape(url))
    assert tape.verify() == []
    assert [(entry.round, entry.node) for entry in tape.entries] == [(1, "7"), (1, "8"), (2, "7"), (2, "8")]
    assert tape.header.model == "lenet"
    assert tape.load(tape.entries[3]).node == "8"
    assert tape.path.is_relative_to(home / ".cache" / "fl-precode" / "tapes")


def test_only_the_owner_can_read_what_stays_here(url, home):
    writer = tape_writer(url, TapeHeader())
    write(writer)
    writer.flush(20)
    local_tape(url)
    private = list((home / ".cache" / "fl-precode").rglob("*"))
    assert len(private) > 10
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_tensors_leave_this_machine_when_the_store_has_them(url):
    writer = tape_writer(url, TapeHeader())
    write(writer)
    assert writer.flush(20)
    left = set(files_of(writer.path))
    assert left == {"tape.json", "manifest.jsonl"}
    writer._uploads.end()
    assert not writer.path.parent.exists()


def test_a_tape_that_was_copied_into_a_store_by_hand_is_read_alike(url, tmp_path):
    write(TapeWriter(tmp_path / "tape", TapeHeader()))
    fsspec.filesystem("memory").put(str(tmp_path / "tape"), url, recursive=True)
    copy = local_tape(url)
    assert files_of(copy) == files_of(tmp_path / "tape")


def test_a_tape_can_be_followed_and_only_new_files_are_fetched(url):
    writer = tape_writer(url, TapeHeader())
    write(writer, rounds=1)
    writer.flush(20)
    first = {path: path.stat().st_mtime_ns for path in local_tape(url).glob("*/*")}
    write(writer, rounds=3)
    writer.flush(20)
    copy = local_tape(url)
    assert len(Tape(copy).entries) == 8
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_a_tape_is_never_written_over(url, caplog):
    for number in (1, 2, 3):
        writer = tape_writer(url, TapeHeader(model=f"model-{number}"))
        write(writer, rounds=number)
        assert writer.flush(20)
    assert writer.place == f"{url}-3"
    assert [Tape(local_tape(f"{url}{end}")).header.model for end in ("", "-2", "-3")] == [
        "model-1", "model-2", "model-3",
    ]  # fmt: skip
    assert [len(Tape(local_tape(f"{url}{end}")).entries) for end in ("", "-2", "-3")] == [2, 4, 6]
    assert f"this run's tape is {url}-3" in caplog.text


class Away(Exception):
    """What no client of a store is known to raise."""


def test_a_store_that_is_away_costs_nothing_is_said_once_and_gets_all_when_it_is_back(url, monkeypatch, caplog):
    away = threading.Event()
    away.set()
    real = ObjectStore.put

    def put(self, file, name):
        if away.is_set():
            raise Away("https://store/bucket?X-Amz-Signature=abc123 does not answer")
        real(self, file, name)

    monkeypatch.setattr(ObjectStore, "put", put)
    writer = tape_writer(url, TapeHeader())
    with caplog.at_level(logging.WARNING):
        start = time.perf_counter()
        write(writer)
        assert time.perf_counter() - start < 2
        assert not writer.flush(0.5)
    assert writer.lost == 0
    assert writer.unsent == 6
    said = [one.getMessage() for one in caplog.records]
    assert len(said) == 2, said
    assert f"the tape cannot be sent to {url} (Away: https://store/bucket?... does not answer)" in said[0]
    assert "abc123" not in caplog.text
    assert f"6 entries of the tape are not in {url}; what is missing is in {writer.path}" in said[1]
    # What it never took is a whole tape here.
    assert Tape(writer.path).verify() == []
    writer._uploads.end()
    assert writer.path.exists()
    away.clear()
    assert writer.flush(20)
    assert len(Tape(local_tape(url)).observations()) == 4


def test_a_store_that_hangs_does_not_hold_up_the_writer(url, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(ObjectStore, "exists", lambda self, name: answer.wait(30) and False)
    start = time.perf_counter()
    writer = tape_writer(url, TapeHeader())
    write(writer)
    assert not writer.flush(0.1)
    assert time.perf_counter() - start < 5
    answer.set()
    assert writer.flush(20)


def test_a_full_manifest_never_names_what_the_store_does_not_have(url, monkeypatch):
    """Whenever the store's manifest is written, every file that it names is there."""
    monkeypatch.setattr(spool, "MANIFEST_SECONDS", 0.0)
    real, seen = ObjectStore.write, []

    def write_and_look(self, name, content, **more):
        if name == "manifest.jsonl":
            real(self, name, content, **more)
            seen.append(Tape(local_tape(url)).verify())
        else:
            real(self, name, content, **more)

    monkeypatch.setattr(ObjectStore, "write", write_and_look)
    writer = tape_writer(url, TapeHeader())
    write(writer, rounds=4)
    assert writer.flush(20)
    assert len(seen) > 1
    assert not any(seen)


def test_what_is_missing_or_altered_in_the_store_is_named(url):
    writer = tape_writer(url, TapeHeader())
    write(writer)
    writer.flush(20)
    store = fsspec.filesystem("memory")
    first, second = sorted(store.ls(f"{url}/observations", detail=False))[:2]
    store.rm(first)
    content = bytearray(store.cat_file(second))
    content[-1] ^= 1
    store.pipe_file(second, bytes(content))
    tape = Tape(local_tape(url))
    problems = tape.verify()
    assert any("round-0001-node-7.safetensors: cannot be read" in problem for problem in problems)
    assert any("round-0001-node-8.safetensors: was altered" in problem for problem in problems)
    assert len(tape.observations()) == 2


def test_another_tape_in_the_same_place_leaves_nothing_of_the_first_in_the_copy(url):
    for model, rounds in (("first", 3), ("second", 1)):
        writer = tape_writer(url, TapeHeader(model=model))
        write(writer, rounds=rounds)
        assert writer.flush(20)
        tape = Tape(local_tape(url))
        assert (tape.header.model, tape.verify()) == (model, [])
        assert len(list(tape.path.glob("observations/*"))) == 2 * rounds
        fsspec.filesystem("memory").rm(url, recursive=True)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://key:secret@bucket/tape", "has a password, a key or a query in it"),
        ("s3://bucket/tape?versionId=1", "has a password, a key or a query in it"),
        ("simplecache::s3://bucket/tape", None),
        ("memory://a::memory://b", "got a chain of several"),
        ("nostore://bucket/tape", "cannot be reached: Protocol not known: nostore"),
    ],
)
def test_urls_that_cannot_be_a_tapes_are_refused_and_no_secret_is_said_again(place, words):
    if words is None:  # no URL at all: a path of that name
        assert url_of(place) is None
        return
    with pytest.raises(ValueError, match="^") as caught:
        tape_writer(place, TapeHeader())
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_store_whose_package_is_missing_says_which_extra_has_it(monkeypatch):
    def missing(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ValueError, match=r"Install s3fs to access S3; pip install 'fl-precode\[object-storage\]'"):
        tape_writer("s3://bucket/tape", TapeHeader())


def test_file_urls_are_folders_of_this_machine(tmp_path):
    writer = tape_writer(f"file://{tmp_path}/tape", TapeHeader())
    assert type(writer) is TapeWriter
    write(writer)
    assert local_tape(f"file://{tmp_path}/tape") == tmp_path / "tape"
    assert path_of("local:///runs/1") == Path("/runs/1")
    assert stat.S_IMODE((tmp_path / "tape" / "manifest.jsonl").stat().st_mode) == 0o600
    assert len(Tape(tmp_path / "tape").entries) == 4


def test_a_reader_of_folders_says_how_to_read_a_url(url):
    with pytest.raises(TapeError, match="is in an object store; read its copy, fl_precode.tape.fetched.local_tape"):
        Tape(url)


def test_a_place_without_a_tape_and_a_store_that_is_away_are_told_apart(url, monkeypatch):
    with pytest.raises(TapeError, match="tape.json is missing; this is no tape"):
        local_tape(url)
    monkeypatch.setattr(ObjectStore, "read", lambda self, name, most=None: 1 / 0)
    with pytest.raises(TapeError, match="cannot be read: ZeroDivisionError"):
        local_tape(url)


def test_errors_are_said_without_secrets():
    error = OSError("PUT http://me:pw@host/x?sig=1%2F2&b=3 failed")
    assert without_secrets(error) == "OSError: PUT http://...@host/x?... failed"
    check_url("s3://bucket/runs/1")
