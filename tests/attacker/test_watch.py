from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from attacker.audit.subject import TapeSource
from attacker.cli import app as command_line
from attacker.watch.board import SHOWN, Board
from attacker.watch.events import from_line, to_line
from attacker.watch.follow import Follower
from attacker.watch.server import TOKEN_HEADER, make_app
from tests.attacker.growing import GrowingTape
from tests.attacker.html_page import HOSTILE
from tests.attacker.taped_federation import tape_federation


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("whole"), rounds=3, nodes=(HOSTILE, "7"))


def follower(tape: Path, **changes: object) -> tuple[Follower, list[dict]]:
    told: list[dict] = []
    return Follower(source=TapeSource(tape=tape), tell=told.append, **changes), told


def of_kind(told: list[dict], kind: str) -> list[dict]:
    return [one for one in told if one["kind"] == kind]


def everything(one: Follower) -> None:
    while one.step():
        pass


def contents(folder: Path) -> dict[str, tuple[str, float]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_it_waits_for_the_tape_and_then_takes_the_newest_update_first(whole, tmp_path):
    growing = GrowingTape(whole, tmp_path / "run")
    growing.tape.parent.mkdir()
    growing.tell_truth()
    one, told = follower(growing.tape)
    assert not one.step()
    assert not one.step()
    assert [event["kind"] for event in told] == ["waiting"]
    growing.grow(2)
    assert one.step()
    growing.grow(3)
    everything(one)
    rounds = [event["round"] for event in of_kind(told, "result")]
    assert rounds == [2, 3, 3, 2, 1, 1]
    assert {event["node"] for event in of_kind(told, "result")} == {HOSTILE, "7"}
    assert all(event["ssim"] > 0.99 > event["guess"] > -1 for event in of_kind(told, "result"))
    assert {(event["back"], event["of"]) for event in of_kind(told, "result")} == {(1, 1)}
    assert all(event["image"].startswith("data:image/png") for event in of_kind(told, "result"))
    assert of_kind(told, "seen")[-1] == {"kind": "seen", "rounds": 3, "updates": 6, "left": 0, "failures": 0}
    assert not one.step()
    assert of_kind(told, "problem") == []


def test_nothing_is_written_where_the_tape_is(whole):
    before = contents(whole.folder)
    one, _ = follower(whole.tape)
    everything(one)
    assert contents(whole.folder) == before


def test_the_truth_may_come_later(whole, tmp_path):
    growing = GrowingTape(whole, tmp_path / "run")
    growing.grow(1)
    one, told = follower(growing.tape)
    everything(one)
    assert [event["ssim"] for event in of_kind(told, "result")] == [None, None]
    assert "There is no evaluation.json" in of_kind(told, "federation")[-1]["truth"]
    growing.tell_truth()
    everything(one)
    (scores,) = of_kind(told, "scores")
    assert sorted(scores["found"]) == [0, 1]
    assert all(found["ssim"] > 0.99 and found["truth"] for found in scores["found"].values())
    assert of_kind(told, "federation")[-1]["truth"] == ""
    growing.grow(2)
    everything(one)
    assert of_kind(told, "result")[-1]["ssim"] > 0.99


def test_a_wrong_evaluation_file_costs_the_similarity_only(whole, tmp_path):
    growing = GrowingTape(whole, tmp_path / "run")
    growing.grow(1)
    (growing.tape.parent / "evaluation.json").write_text("{")
    one, told = follower(growing.tape)
    everything(one)
    assert [event["ssim"] for event in of_kind(told, "result")] == [None, None]
    assert "is not complete JSON" in of_kind(told, "problem")[0]["text"]


def test_the_first_attack_that_fits_is_taken_and_failures_are_named(whole, tmp_path):
    lenet = tape_federation(tmp_path / "lenet", model="lenet", rounds=1, clients=1)
    one, told = follower(lenet.tape, attacks=("first-layer", "inverting-gradients:iterations=2,restarts=1"))
    everything(one)
    (result,) = of_kind(told, "result")
    assert result["attack"] == "inverting-gradients:iterations=2,restarts=1"
    flight = [event["attack"].partition(":")[0] for event in of_kind(told, "attack")]
    assert list(dict.fromkeys(flight)) == ["first-layer", "inverting-gradients"]
    one, told = follower(lenet.tape, attacks=("first-layer",))
    everything(one)
    assert "needs a Linear layer" in of_kind(told, "result")[0]["reason"]
    assert of_kind(told, "result")[0]["image"] is None


def test_a_damaged_update_is_named_and_the_rest_goes_on(whole, tmp_path):
    growing = GrowingTape(whole, tmp_path / "run")
    growing.grow(1)
    damaged = sorted((growing.tape / "observations").iterdir())[0]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    one, told = follower(growing.tape)
    everything(one)
    assert len(of_kind(told, "result")) == 1
    assert any(damaged.name in event["text"] for event in of_kind(told, "problem"))


def result(number: int, server_round: int, ssim: float | None = 0.5) -> dict:
    figures = {
        "attack": "a",
        "reason": "",
        "seconds": 0.1,
        "image": "data:,",
        "truth": None,
        "ssim": ssim,
        "guess": 0.2,
        "back": 0,
        "of": 1,
    }
    return {"kind": "result", "id": number, "round": server_round, "node": "7", **figures}


def test_the_board_has_the_newest_rounds_first_and_every_similarity():
    board = Board()
    board.take({"kind": "attack", "round": 1, "node": "7", "attack": "a", "done": 0.5})
    assert board.state(-1)["attack"]["done"] == 0.5
    for number in range(SHOWN + 6):
        board.take(result(number, SHOWN + 6 - number, None if number == 3 else 0.5))
    state = board.state(-1)
    assert [one["round"] for one in state["results"]] == list(range(SHOWN + 6, 6, -1))
    assert state["attack"] is None
    assert len(state["points"]) == SHOWN + 5
    assert board.state(state["version"]) is None
    board.take(from_line(to_line({"kind": "scores", "found": {3: {"ssim": 0.75, "truth": "data:x"}}})))
    later = board.state(state["version"])
    assert len(later["points"]) == SHOWN + 6
    (one,) = (one for one in later["results"] if one["id"] == 3)
    assert (one["ssim"], one["truth"]) == (0.75, "data:x")
    board.end()
    assert not board.state(later["version"])["alive"]


class Client:
    """Asks the application without a socket."""

    def __init__(self, board: Board, token: str) -> None:
        self._transport = httpx.ASGITransport(make_app(board, token=token, port=80))

    def ask(self, address: str, method: str = "GET", **headers: str) -> httpx.Response:
        async def one() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://127.0.0.1:80") as client:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.request(method, address, headers={"host": "127.0.0.1:80", **named})

        return asyncio.run(one())


def test_the_page_is_refused_without_its_token_and_under_another_name():
    client = Client(Board(), "secret")
    for path in ("/", "/state", "/docs", "/openapi.json", "/elsewhere"):
        for query in ("", "?token=", "?token=secret2", "?token=secre", "?token=%C3%A9"):
            answer = client.ask(path + query)
            assert answer.status_code == 403, path + query
            assert "secret" not in answer.text
    assert client.ask("/state", **{TOKEN_HEADER: "secret"}).status_code == 200
    assert client.ask("/docs?token=secret").status_code == 404
    assert client.ask("/?token=secret", "POST").status_code == 405
    assert client.ask("/?token=secret", host="localhost:80").status_code == 200
    for name in ("evil.example:80", "127.0.0.1:81", "evil.example"):
        assert client.ask("/?token=secret", host=name).status_code == 403
    answer = client.ask("/?token=secret")
    assert answer.status_code == 200
    assert "default-src 'none'; connect-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_nothing_new_is_an_empty_answer():
    board = Board()
    board.take({"kind": "problem", "text": HOSTILE})
    client = Client(board, "t")
    state = client.ask("/state?token=t").json()
    assert state["problems"] == [HOSTILE]
    assert client.ask(f"/state?token=t&seen={state['version']}").status_code == 204


@pytest.fixture
def watching(whole) -> Iterator[tuple[subprocess.Popen, str]]:
    program = Path(sys.executable).parent / "fl-precode"
    command = [program, "watch", whole.tape]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().partition(" ")[2].strip()
        yield process, address
        process.kill()


def ask(address: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def soon(check, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_program_serves_this_machine_only_at_the_lowest_priority_and_leaves_nothing_behind(watching):
    process, address = watching
    page, _, token = address.partition("?token=")
    assert len(token) > 40
    soon(lambda: ask(address)[0] == 200)
    assert ask(page)[0] == 403
    assert ask(f"{page}?token={token[:-1]}")[0] == 403
    assert ask(address, Host="evil.example")[0] == 403
    soon(lambda: '"left":0' in ask(f"{page}state", **{TOKEN_HEADER: token})[1])
    (listening,) = (one for one in psutil.Process(process.pid).net_connections("inet") if one.status == "LISTEN")
    assert listening.laddr.ip == "127.0.0.1"
    (worker,) = psutil.Process(process.pid).children()
    assert worker.nice() == min(19, os.nice(0) + 19)
    assert worker.num_threads() <= 2
    os.kill(process.pid, signal.SIGKILL)
    soon(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_an_interrupt_ends_it_without_a_word(watching):
    process, address = watching
    soon(lambda: ask(address)[0] == 200)
    (worker,) = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    soon(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


def test_bad_usage_is_named():
    done = CliRunner().invoke(command_line, ["watch", "x", "--attacks", "magic"])
    assert done.exit_code == 2
    assert "unknown attack 'magic'" in re.sub(r"[│\s]+", " ", done.stderr)
