"""The tape: round trips, privacy of the files, hostile names, and disks that refuse."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_precode.models import InputSpec
from fl_precode.observation import Protocol
from fl_precode.tape import Tape, TapeHeader, TapeWriter

INPUTS = InputSpec(channels=1, height=8, width=8, classes=3, mean=(0.5,), std=(0.25,))
HEADER = TapeHeader(
    model="lenet:activation=relu",
    defence="precode:latent=8",
    kind="weights",
    protocol=Protocol(name="fedavg", local_steps=2, learning_rate=0.1, defence="precode:latent=8"),
    inputs=INPUTS,
    settings={"batch-size": 4, "learning-rate": 0.1, "partition": "iid", "flag": True},
)
SENT = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(2.0, dtype=np.float32),
    "norm.running_mean": np.ones(3, dtype=np.float32),
    "norm.num_batches_tracked": np.array(7, dtype=np.int64),
}
BUFFERS = ("norm.running_mean", "norm.num_batches_tracked")


def reply(add):
    return {name: (value if name in BUFFERS else value + np.float32(add)) for name, value in SENT.items()}


def written(path, kind="weights"):
    writer = TapeWriter(path, replace(HEADER, kind=kind))
    assert writer.write_round(1, SENT)
    assert writer.write_observation(1, "7", reply(1), batch_size=4, buffers=BUFFERS)
    assert writer.write_observation(1, "8", reply(2), batch_size=None, buffers=BUFFERS)
    return writer


def test_header_and_observations_are_read_as_they_were_written(tmp_path):
    writer = written(tmp_path / "tape")
    assert writer.write_failure(1, "9", "ran out of memory")
    tape = Tape(tmp_path / "tape")
    assert (tape.header, writer.lost, tape.problems) == (HEADER, 0, [])
    first, second = tape.observations()
    assert (first.round, first.node, first.batch_size, first.kind) == (1, "7", 4, "weights")
    assert (second.node, second.batch_size, second.protocol) == ("8", None, HEADER.protocol)
    assert first.parameters.keys() == {"w", "scale"}
    assert first.buffers.keys() == set(BUFFERS)
    assert first.buffers["norm.num_batches_tracked"].dtype == torch.int64
    for name in ("w", "scale"):
        assert torch.equal(first.parameters[name], torch.tensor(SENT[name]))
        assert torch.equal(first.update[name], torch.ones_like(first.parameters[name]))
        assert torch.equal(second.update[name], 2 * torch.ones_like(first.parameters[name]))
    (failure,) = tape.failures
    assert (failure.round, failure.node, failure.reason) == (1, "9", "ran out of memory")


def test_a_gradient_is_kept_as_it_came(tmp_path):
    writer = TapeWriter(tmp_path / "tape", replace(HEADER, kind="gradient"))
    writer.write_round(1, SENT)
    gradient = {"w": np.full((2, 3), 5, np.float32), "scale": np.float32(-1).reshape(())}
    writer.write_observation(1, "7", gradient, batch_size=1, buffers=BUFFERS)
    (found,) = Tape(tmp_path / "tape").observations()
    assert found.kind == "gradient"
    assert {name: value.tolist() for name, value in found.update.items()} == {"w": [[5.0] * 3] * 2, "scale": -1.0}


def test_every_round_has_its_own_parameters(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    for number in (1, 2, 12345):
        writer.write_round(number, {"w": np.full(2, number, np.float32)})
        for node in ("a", "b"):
            writer.write_observation(number, node, {"w": np.full(2, number + 1, np.float32)}, batch_size=1, buffers=())
    tape = Tape(tmp_path / "tape")
    assert [o.parameters["w"][0].item() for o in tape.observations()] == [1, 1, 2, 2, 12345, 12345]
    assert all(o.update["w"].tolist() == [1, 1] for o in tape.observations())
    assert [(o.round, o.node) for o in tape.observations(rounds=[2, 12345], nodes={"b"})] == [(2, "b"), (12345, "b")]
    assert [(e.round, e.node) for e in tape.entries][:2] == [(1, "a"), (1, "b")]
    # What the server sent is stored once a round, and read once.
    assert len(list((tmp_path / "tape" / "parameters").iterdir())) == 3
    one, two = tape.observations(rounds=[1])
    assert one.parameters["w"].data_ptr() == two.parameters["w"].data_ptr()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_only_the_owner_can_read_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        written(tmp_path / "tape")
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "tape").rglob("*")}
    folders = {"tape/parameters", "tape/observations"}
    assert {modes[name] for name in folders} == {0o700} == {stat.S_IMODE((tmp_path / "tape").stat().st_mode)}
    assert {mode for name, mode in modes.items() if name not in folders} == {0o600}
    assert len(modes) == 7  # header, manifest, two folders, one parameter file, two observations: no temporary left


def test_an_empty_folder_open_to_others_is_closed(tmp_path):
    (tmp_path / "tape").mkdir(mode=0o755)
    written(tmp_path / "tape")
    assert stat.S_IMODE((tmp_path / "tape").stat().st_mode) == 0o700


def test_the_manifest_is_what_it_says(tmp_path):
    written(tmp_path / "tape")
    lines = [json.loads(line) for line in (tmp_path / "tape" / "manifest.jsonl").read_text().splitlines()]
    assert [(line["type"], line["round"], line["file"]) for line in lines] == [
        ("round", 1, "parameters/round-0001.safetensors"),
        ("observation", 1, "observations/round-0001-node-7.safetensors"),
        ("observation", 1, "observations/round-0001-node-8.safetensors"),
    ]
    assert set(lines[1]) == {
        "type",
        "round",
        "node",
        "file",
        "sha256",
        "bytes",
        "kind",
        "batch_size",
        "buffers",
        "time",
    }
    header = json.loads((tmp_path / "tape" / "tape.json").read_text())
    assert (header["format"], header["version"]) == ("fl-precode-tape", 2)


HOSTILE = [
    "../../x",
    "..",
    ".",
    "",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a\0b",
    "x" * 5000,
    "\udcff",
    "A",
    "a",
    "ü",
    " ",
    "-n",
    "a\nb",
]


def test_no_node_name_escapes_or_collides(tmp_path):
    writer = TapeWriter(tmp_path / "deep" / "tape", HEADER)
    writer.write_round(1, SENT)
    for index, node in enumerate(HOSTILE):
        assert writer.write_observation(1, node, reply(index), batch_size=1, buffers=BUFFERS), node
    tape = Tape(tmp_path / "deep" / "tape")
    assert [(o.node, o.update["scale"].item()) for o in tape.observations()] == [(n, i) for i, n in enumerate(HOSTILE)]
    assert tape.problems == []
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len({str(p).lower() for p in files}) == len(files) == len(HOSTILE) + 3
    assert all(p.is_relative_to(tmp_path / "deep" / "tape") for p in files)


def test_a_node_named_like_the_safe_form_of_another_does_not_collide(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    writer.write_round(1, SENT)
    writer.write_observation(1, "../x", reply(0), batch_size=1, buffers=BUFFERS)
    imitation = (
        Tape(tmp_path / "tape")
        .entries[0]
        .file.removeprefix("observations/round-0001-node-")
        .removesuffix(".safetensors")
    )
    writer.write_observation(1, imitation, reply(1), batch_size=1, buffers=BUFFERS)
    assert [o.update["scale"].item() for o in Tape(tmp_path / "tape").observations()] == [0, 1]


def test_a_node_that_replies_twice_is_kept_twice(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    writer.write_round(1, SENT)
    for add in (1, 2, 3):
        assert writer.write_observation(1, "7", reply(add), batch_size=1, buffers=BUFFERS)
    assert [o.update["scale"].item() for o in Tape(tmp_path / "tape").observations()] == [1, 2, 3]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.float32)[::-2],
        np.float64(3.5).reshape(()),
        np.arange(4, dtype=np.float16),
        np.arange(4, dtype=">f4"),
        np.zeros((0, 3), np.float32),
        np.array([np.nan, np.inf, -0.0], np.float32),
    ],
    ids=["transposed", "strided", "0-d", "half", "big-endian", "empty", "not-finite"],
)
def test_arrays_of_every_kind_keep_shape_and_bits(tmp_path, array):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    assert writer.write_round(1, {"w": array})
    assert writer.write_observation(1, "7", {"w": array}, batch_size=1, buffers=())
    (found,) = Tape(tmp_path / "tape").observations()
    expected = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
    assert tuple(found.parameters["w"].shape) == array.shape
    assert found.parameters["w"].numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "bool"])
def test_buffers_of_whole_numbers_and_booleans(tmp_path, dtype):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    arrays = {"w": np.ones(1, np.float32), "count": np.array([0, 1], dtype=dtype)}
    assert writer.write_round(1, arrays)
    assert writer.write_observation(1, "7", arrays, batch_size=1, buffers=["count"])
    (found,) = Tape(tmp_path / "tape").observations()
    assert found.buffers["count"].numpy().dtype == np.dtype(dtype)
    assert found.buffers["count"].tolist() == arrays["count"].tolist()


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.array([object()])},
        {"w": np.array(["text"])},
        {"w": np.array(["2020-01-01"], dtype="datetime64[D]")},
        {"w": [1.0]},
        {"__metadata__": np.ones(1, np.float32)},
    ],
    ids=["object", "text", "time", "list", "reserved-name"],
)
def test_arrays_that_cannot_be_stored_are_counted_and_the_reason_is_on_the_tape(tmp_path, arrays):
    writer = written(tmp_path / "tape")
    assert not writer.write_observation(1, "9", arrays, batch_size=1, buffers=())
    assert writer.lost == 1
    tape = Tape(tmp_path / "tape")
    assert [(f.node, f.reason.startswith("not recorded: ")) for f in tape.failures] == [("9", True)]
    assert len(tape.observations()) == 2


def test_an_array_that_cannot_be_stored_costs_itself_only(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    assert writer.write_round(1, {"w": np.zeros(2, np.float32)})
    arrays = {"w": np.ones(2, np.float32), "words": np.array(["text"])}
    assert writer.write_observation(1, "7", arrays, batch_size=1, buffers=())
    tape = Tape(tmp_path / "tape")
    assert tape.entries[0].skipped == {"words": "expected an array of numbers or booleans for 'words', got <U4"}
    assert tape.load(tape.entries[0]).update["w"].tolist() == [1, 1]


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)])
def test_complex_arrays_are_read_as_they_were(tmp_path, shape):
    generator = np.random.default_rng(0)
    sent = (generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)
    writer = TapeWriter(tmp_path / "tape", HEADER)
    assert writer.write_round(1, {"w": sent})
    assert writer.write_observation(1, "7", {"w": 2 * sent}, batch_size=1, buffers=())
    (found,) = Tape(tmp_path / "tape").observations()
    assert found.parameters["w"].dtype == torch.complex64
    assert np.array_equal(found.parameters["w"].numpy(), sent)
    assert np.allclose(found.update["w"].numpy(), sent)


def test_a_tape_of_version_1_is_read(tmp_path):
    writer = written(tmp_path / "tape")
    header = json.loads((writer.path / "tape.json").read_text())
    for new in ("reply", "examples"):
        header.pop(new)
    (writer.path / "tape.json").write_text(json.dumps({**header, "version": 1}))
    tape = Tape(tmp_path / "tape")
    assert [(one.node, one.batch_size) for one in tape.observations()] == [("7", 4), ("8", None)]


def test_each_reply_is_taken_against_what_its_client_was_sent(tmp_path):
    writer = TapeWriter(tmp_path / "tape", HEADER)
    own = {"a": 1.0, "b": 5.0}
    files = {node: writer.write_sent(1, {"arrays": {"w": np.full(2, v, np.float32)}}) for node, v in own.items()}
    for node, value in own.items():
        arrays = {"w": np.full(2, value + 1, np.float32)}
        assert writer.write_reply(1, node, {"arrays": arrays}, sent=files[node])
    found = Tape(tmp_path / "tape").observations()
    assert [one.parameters["w"].tolist() for one in found] == [[1, 1], [5, 5]]
    assert all(one.update["w"].tolist() == [1, 1] for one in found)


def test_the_writer_copies_nothing_back_and_changes_nothing(tmp_path):
    arrays = {name: value.copy() for name, value in SENT.items()}
    for value in arrays.values():
        value.setflags(write=False)
    assert TapeWriter(tmp_path / "tape", HEADER).write_round(1, arrays)
