"""A tape that keeps some of the updates: it counts all of them, an audit says so, and training does not notice."""

from __future__ import annotations

import random
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from attacker.audit.inputs.nothing_to_attack import no_update
from fl_precode.flower.interceptor import Interceptor
from fl_precode.flower.wire import ListeningGrid, listening
from fl_precode.places.object_store import ObjectStore
from fl_precode.tape import Tape, spool
from fl_precode.tape.fetched import local_tape
from fl_precode.tape.sampling import Sampler
from tests.local_grid import LocalGrid
from tests.server.test_interceptor import client

CLIENTS, ROUNDS = 12, 3
SENT = {"w": np.arange(3_000, dtype=np.float32).reshape(1_000, 3)}  # 12 kB


def initial():
    return ArrayRecord({name: Array(value) for name, value in SENT.items()})


def run(tape, sampling, *, fails=()):
    """Train; returns the final weights, and the state of Python's and NumPy's generators."""
    random.seed(0)
    np.random.seed(0)
    app = client()
    if fails:
        good, app = app, lambda message, context: _failing(good, message, context, fails)
    strategy = FedAvg(fraction_evaluate=0.0)
    if tape is not None:
        strategy = Interceptor(strategy, tape, sampling=sampling)
    final = strategy.start(LocalGrid(app, CLIENTS, {}), initial(), num_rounds=ROUNDS).arrays
    return final["w"].numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


def _failing(good, message, context, fails):
    if context.node_config["partition-id"] in fails:
        raise RuntimeError("no data")
    return good(message, context)


@pytest.mark.parametrize(
    ("sampling", "each_round"),
    [
        (None, [12, 12, 12]),
        ("every:k=5", [3, 2, 3]),
        ("reservoir:n=4", [4, 4, 4]),
        ("size:megabytes=0.25", [12, 5, 0]),
    ],
)
def test_training_is_the_same_to_the_bit_and_the_tape_counts_every_update(tmp_path, sampling, each_round):
    assert run(tmp_path / "tape", sampling) == run(None, None)
    tape = Tape(tmp_path / "tape")
    assert not tape.verify()
    counts = [sum(entry.round == number for entry in tape.entries) for number in range(1, ROUNDS + 1)]
    assert counts == each_round
    assert tape.updates_seen == CLIENTS * ROUNDS
    if sampling is None:
        assert not tape.samplings
    else:
        assert [one.seen for one in tape.samplings] == [CLIENTS] * ROUNDS
        assert [one.kept for one in tape.samplings] == counts
        assert {one.by for one in tape.samplings} == {sampling} == {tape.sampled_by}


def test_a_tape_stays_near_its_size(tmp_path):
    run(tmp_path / "tape", "size:megabytes=0.25")
    total = sum(file.stat().st_size for file in (tmp_path / "tape").rglob("*") if file.is_file())
    assert 230_000 < total < 250_000


def test_clients_that_failed_are_on_the_tape_and_take_no_place_in_a_reservoir(tmp_path):
    run(tmp_path / "tape", "reservoir:n=4", fails=(0, 1, 2))
    tape = Tape(tmp_path / "tape")
    assert len(tape.failures) == 3 * ROUNDS
    assert [(one.seen, one.kept) for one in tape.samplings] == [(9, 4)] * ROUNDS
    assert len(tape.entries) == 4 * ROUNDS


def test_the_view_from_the_wire_samples_alike_whether_replies_come_at_once_or_one_by_one(tmp_path):
    class OneByOne(LocalGrid):
        def send_and_receive(self, messages, *, timeout=None):
            identities = list(outer.push_messages(messages))
            return [reply for identity in identities for reply in outer.pull_messages([identity])]

    kept = []
    for name, grid in (("whole", LocalGrid), ("portions", OneByOne)):
        outer = ListeningGrid(grid(client(), CLIENTS, {}), tmp_path / name, sampling="reservoir:n=4")
        if grid is OneByOne:
            outer.send_and_receive = outer._grid.send_and_receive
        FedAvg(fraction_evaluate=0.0).start(outer, initial(), num_rounds=ROUNDS)
        tape = Tape(tmp_path / name)
        assert tape.updates_seen == CLIENTS * ROUNDS
        kept.append({(entry.round, entry.node) for entry in tape.entries})
    assert kept[0] == kept[1]
    assert len(kept[0]) == 4 * ROUNDS


def test_a_sampler_that_fails_costs_updates_and_not_the_training(tmp_path, monkeypatch, caplog):
    def choose(*arguments, **named):
        raise ArithmeticError("broken")

    monkeypatch.setattr(Sampler, "choose", choose)
    interceptor = Interceptor(FedAvg(fraction_evaluate=0.0), tmp_path / "tape", sampling="every:k=2")
    interceptor.start(LocalGrid(client(), CLIENTS, {}), initial(), num_rounds=1)
    assert interceptor.tape.lost == CLIENTS
    assert "could not be recorded (ArithmeticError: broken); training goes on" in caplog.text
    assert not Tape(tmp_path / "tape").entries


def test_what_is_no_sampling_is_refused_before_a_tape_is_made(tmp_path):
    for wrap in (lambda: Interceptor(FedAvg(), tmp_path / "tape", sampling="half"),
                 lambda: ListeningGrid(LocalGrid(client(), 1, {}), tmp_path / "tape", sampling="half")):  # fmt: skip
        with pytest.raises(ValueError, match="no sampling of updates is called 'half'; expected every:k=10"):
            wrap()
    assert not (tmp_path / "tape").exists()


def test_a_note_that_cannot_be_is_named(tmp_path):
    run(tmp_path / "tape", "every:k=6")
    manifest = tmp_path / "tape" / "manifest.jsonl"
    altered = re.sub(r'"seen": 12, "kept": 2', '"seen": 1, "kept": 2', manifest.read_text(), count=1)
    manifest.write_text(altered)
    tape = Tape(tmp_path / "tape")
    assert "expected a number of updates seen and how many of them were kept, got 1 and 2" in tape.problems[0]
    assert tape.updates_seen == 2 * CLIENTS


def test_a_tape_that_was_too_small_for_any_update_says_so(tmp_path):
    run(tmp_path / "tape", "size:megabytes=0.001")
    tape = Tape(tmp_path / "tape")
    assert not tape.entries
    assert "none of 36 updates was kept (size:megabytes=0.001)" in str(no_update(tape))


class TestInAStore:
    """Written to an object store, as far as training and the tape's readers can tell."""

    @pytest.fixture
    def url(self, tmp_path, monkeypatch):
        monkeypatch.setattr(spool, "_FIRST_PAUSE", 0.02)
        yield "memory://sampled/tape"
        fsspec.filesystem("memory").store.clear()

    def test_training_is_the_same_and_the_tape_is_there_when_it_ends(self, url):
        assert run(url, "reservoir:n=4") == run(None, None)
        tape = Tape(local_tape(url))
        assert tape.verify() == []
        assert (len(tape.entries), tape.updates_seen) == (4 * ROUNDS, CLIENTS * ROUNDS)
        notes = tape.path.with_name("tape.toml")
        assert "[protocol]" in notes.read_text()

    def test_a_path_made_of_the_url_is_the_url(self, url):
        run(Path(url), "every:k=12")
        assert len(Tape(local_tape(Path(url))).entries) == ROUNDS

    def test_training_is_the_same_without_the_store(self, url, monkeypatch, caplog):
        monkeypatch.setattr(ObjectStore, "write", lambda *arguments, **named: 1 / 0)
        monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.1)
        assert run(url, None) == run(None, None)
        assert caplog.text.count("cannot be sent to") == 1
        assert f"{CLIENTS * ROUNDS + ROUNDS} entries of the tape are not in {url}" in caplog.text

    def test_apps_that_are_listened_to_from_the_wire_leave_it_complete(self, url):
        server = ServerApp()

        @server.main()
        def main(grid, context):
            FedAvg(fraction_evaluate=0.0).start(grid, initial(), num_rounds=ROUNDS)

        listening(server, url, sampling="reservoir:n=2")(LocalGrid(client(), CLIENTS, {}), None)
        assert len(Tape(local_tape(url)).entries) == 2 * ROUNDS
