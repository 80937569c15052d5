"""A tape in a real object store: an S3 server on this machine, asked by s3fs over HTTP."""

from __future__ import annotations

import json
import logging
from contextlib import suppress

import numpy as np
import pytest

from fl_precode.tape import Tape, TapeHeader
from fl_precode.tape.fetched import local_tape
from fl_precode.tape.spool import tape_writer

_WHY = "needs s3fs and a server of S3: pip install s3fs 'moto[s3,server]'"
s3fs = pytest.importorskip("s3fs", reason=_WHY)
servers = pytest.importorskip("moto.server", reason=_WHY)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SECRET = "a-secret-that-must-stand-nowhere"
SENT = {"w": np.arange(60_000, dtype=np.float32)}


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("NO_PROXY", "127.0.0.1"),
    ):
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    with suppress(FileExistsError):  # the servers of one process share what they hold
        s3fs.S3FileSystem().mkdir("bucket")
    yield running
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def write(writer, rounds):
    for number in range(1, rounds + 1):
        sent = writer.write_sent(number, {"": SENT})
        for node in ("7", "8"):
            writer.write_observation(number, node, {"w": SENT["w"] + int(node)}, batch_size=1, buffers=(), sent=sent)


def test_a_tape_goes_to_s3_and_is_read_from_there_and_no_credential_is_written_down(server, tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="fl_precode"):
        for number in (1, 2):
            writer = tape_writer("s3://bucket/runs/tape", TapeHeader(model="lenet"))
            write(writer, rounds=number)
            assert writer.flush(60)
    assert writer.place == "s3://bucket/runs/tape-2"
    for place, updates in (("s3://bucket/runs/tape", 2), ("s3://bucket/runs/tape-2", 4)):
        tape = Tape(local_tape(place))
        assert tape.verify() == []
        assert len(tape.observations()) == updates
    assert SECRET not in caplog.text
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


def test_a_server_that_goes_away_while_training_runs_stops_nothing(server, caplog):
    writer = tape_writer("s3://bucket/tape", TapeHeader())
    write(writer, rounds=1)
    assert writer.flush(60)
    server.stop()
    write(writer, rounds=2)
    assert not writer.flush(8)
    assert (writer.lost, writer.unsent) == (0, 6)
    assert SECRET not in caplog.text
    assert len([json.loads(line) for line in (writer.path / "manifest.jsonl").read_text().splitlines()]) == 9
    assert len(list(writer.path.glob("observations/*"))) == 4
