"""The guard at a site, as far as no audit is needed: which rounds it judges, what it lets pass, what it refuses."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

import pytest
import torch
from flwr.app import RecordDict

import fl_precode.flower.truth as recording
from fl_precode.flower import record_truth
from fl_precode.flower.guard import WITHHELD
from fl_precode.recorded_truth import SUFFIX
from tests.local_grid import FIRST_NODE
from tests.server.site import ask, failing, guard, nothing, site, weights


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch):
    monkeypatch.delenv("FL_PRECODE_TRUTH", raising=False)
    monkeypatch.setattr(recording, "_said", set())
    monkeypatch.setattr(recording, "_RECORDS", recording._Records())


def withheld(reply) -> bool:
    """A client without true images cannot be judged: what is withheld was to be judged."""
    return reply.has_error() and reply.error.code == WITHHELD


def judged_among(grid, numbers):
    return [place for place, number in enumerate(numbers, start=1) if withheld(ask(grid, number))]


@pytest.mark.parametrize(
    ("every", "numbers", "judged"),
    [
        (1, [1, 2, 3], [1, 2, 3]),
        (3, [1, 2, 3, 4, 5, 6, 7], [1, 4, 7]),
        (5, [4, 6, 9, 10, 30], [1, 3, 5]),
        (3, [None] * 7, [1, 4, 7]),
        (3, [1] * 7, [1, 4, 7]),
        (3, [None, 9, None, None, 2, 1, 1], [1, 4, 7]),
    ],
    ids=["all", "rounds", "sampled client", "nameless rounds", "a server that says 1", "a server that jumps"],
)
def test_which_messages_are_judged(tmp_path, every, numbers, judged):
    grid = site(guard(tmp_path / "guard", every=every), line=nothing)
    assert judged_among(grid, numbers) == judged


def test_the_count_outlives_the_process(tmp_path):
    grid = site(guard(tmp_path / "guard", every=3), line=nothing)
    found = []
    for number in (1, 2, 3, 4):
        fresh = site(guard(tmp_path / "guard", every=3), line=nothing)
        fresh.contexts = grid.contexts
        found.append(withheld(ask(fresh, number)))
    assert found == [True, False, False, True]


def test_an_app_that_replaces_its_state_does_not_lose_the_count(tmp_path):
    def forget(message, context):
        context.state = RecordDict()

    grid = site(guard(tmp_path / "guard", every=3), line=nothing, before=forget)
    assert judged_among(grid, [1, 2, 3, 4]) == [1, 4]


def test_errors_and_evaluation_pass_and_count_for_nothing(tmp_path, said):
    mods = [guard(tmp_path / "guard", every=2)]
    failed = site(*mods, before=failing)
    assert [ask(failed, number).error.reason for number in (1, 2)] == ["no disk"] * 2
    assert ask(failed, 3, kind="evaluate").content["metrics"]["loss"] == 1.0
    assert not list((tmp_path / "guard").iterdir())
    assert not said.records
    later = site(*mods, line=nothing)
    later.contexts = failed.contexts
    assert judged_among(later, [4, 5, 6]) == [1, 3]


def test_a_client_that_raises_leaves_nothing_behind(tmp_path):
    def broken(images, labels):
        record_truth(images, labels)
        raise RuntimeError("no memory")

    reply = ask(site(guard(tmp_path / "guard"), line=broken), 1)
    assert "no memory" in reply.error.reason
    assert not list((tmp_path / "guard").iterdir())


def test_the_error_tells_nothing_and_the_log_tells_why(tmp_path, said):
    reply = ask(site(guard(tmp_path / "guard"), line=nothing), 7)
    assert (reply.error.code, reply.has_content()) == (WITHHELD, False)
    assert reply.error.reason == "This site withheld its update of this round. Its own log says why."
    assert said.last == (
        "Leakage guard, round 7: the update is withheld; it could not be judged: no true images were recorded; call "
        "fl_precode.flower.record_truth(images, labels) where the client trains."
    )
    assert said.records[-1].levelno == logging.WARNING
    assert not list((tmp_path / "guard").iterdir())


def test_a_warning_changes_no_bit_of_the_reply(tmp_path, said):
    warned, bare = (ask(site(*mods, line=nothing), 1) for mods in ([guard(tmp_path / "g", action="warn")], []))
    assert weights(warned) == weights(bare)
    assert dict(warned.content["metrics"]) == dict(bare.content["metrics"])
    assert "round 1: the update is sent all the same (action='warn'); it could not be judged" in said.last


def test_what_cannot_be_kept_is_withheld(tmp_path, said):
    (tmp_path / "guard").write_text("a file")
    assert withheld(ask(site(guard(tmp_path / "guard")), 1))
    assert "its evidence cannot be kept (FileExistsError" in said.last

    def asked_without_arrays(message, context, call_next):
        arrays = message.content.pop("arrays")

        def trained(message, context):
            message.content["arrays"] = arrays
            return call_next(message, context)

        return inner(message, context, trained)

    inner = guard(tmp_path / "other")
    assert withheld(ask(site(asked_without_arrays), 1))
    assert "the message has no arrays" in said.last


def taken_away(folder: Path) -> list[Path]:
    """What lies in a folder, which is removed, so that there is nothing to audit."""
    found = list(folder.rglob(f"*{SUFFIX}"))
    for path in found:
        path.unlink()
    return [path.parent for path in found]


def test_true_images_go_to_the_guard_and_where_they_went_before(tmp_path):
    kept = []

    def look(images, labels):
        record_truth(images, labels)
        kept.extend(taken_away(tmp_path / "guard" / "round-0001" / "tape.truth"))

    usual = tmp_path / "usual"
    assert withheld(ask(site(guard(tmp_path / "guard"), line=look, config={"truth": str(usual)}), 1))
    assert kept == [tmp_path / "guard" / "round-0001" / "tape.truth"]
    assert taken_away(tmp_path) == [usual]


def test_after_the_round_nothing_more_goes_to_the_guard(tmp_path):
    asked = []
    grid = site(guard(tmp_path / "guard"), line=nothing, before=lambda message, context: asked.append(message))
    ask(grid, 1)
    record_truth(torch.rand(1, 1, 8, 8), torch.tensor([1]), message=asked[0], context=grid.contexts[FIRST_NODE])
    assert taken_away(tmp_path) == []


def test_another_thread_that_names_its_message_is_found(tmp_path):
    asked, kept = [], []

    def in_a_thread(images, labels):
        named = {"message": asked[0][0], "context": asked[0][1]}
        thread = threading.Thread(target=record_truth, args=(images, labels), kwargs=named)
        thread.start()
        thread.join()
        kept.extend(taken_away(tmp_path / "guard" / "round-0001" / "tape.truth"))

    ask(site(guard(tmp_path / "guard"), line=in_a_thread, before=lambda *both: asked.append(both)), 1)
    assert [folder.name for folder in kept] == ["tape.truth"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "block"}, "expected action to be 'warn' or 'withhold', got 'block'"),
        ({"every": 0}, "expected every to be a whole number of rounds, 1 or more, got 0"),
        ({"every": True}, "a whole number of rounds"),
        ({"budget": "soon"}, "expected a time such as 90s, 10m or 2h, got 'soon'"),
        ({"max_asr": 1.5}, "expected max_asr to be a share from 0 to 1, got 1.5"),
        ({"max_asr": float("nan")}, "expected max_asr to be a share from 0 to 1"),
        ({"model": "Net"}, "model 'Net': expected package.module:name"),
        ({"inputs": "32x32"}, "expected channels x height x width"),
        ({"classes": None}, "inputs='1x8x8' needs classes"),
        ({"loss": "mine"}, "expected 'cross-entropy' or package.module:function"),
        ({"defence": "nose"}, "nose"),
    ],
)
def test_bad_settings_are_refused_at_once(tmp_path, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        guard(tmp_path / "guard", **settings)
    assert not (tmp_path / "guard").exists()


def test_an_empty_folder_name_is_refused():
    with pytest.raises(ValueError, match="expected a folder of the guard's own"):
        guard("")
