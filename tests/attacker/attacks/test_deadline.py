"""Deadlines: searches end with the best that they have, and calls that do not return are ended."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import time

import pytest
import torch

from attacker.attacks.base import Outcome
from attacker.attacks.registry import build_attack
from attacker.audit.clock import Clock
from attacker.jobs.in_time import TimeEnded, any_left_behind, call_in_time
from attacker.jobs.job import Job
from attacker.optim.deadline import share_of_time, time_is_up, within
from attacker.victim import Victim
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation, Protocol
from tests.slow_models import slow

INPUTS = InputSpec(channels=1, height=8, width=8, classes=4, mean=(0.5,), std=(0.5,))


def update(count=1, seconds=0.0):
    """Updates of one image each, and the victim that they are of."""
    torch.manual_seed(0)
    model = slow(INPUTS, seconds)
    names = dict(model.named_parameters())
    seen = []
    for label in range(count):
        loss = torch.nn.functional.cross_entropy(model(torch.randn(1, *INPUTS.shape)), torch.tensor([label % 4]))
        gradient = dict(zip(names, torch.autograd.grad(loss, list(names.values())), strict=True))
        seen.append(
            Observation(
                kind="gradient", parameters={name: one.detach() for name, one in names.items()}, buffers={},
                update=gradient, batch_size=1, round=1, node=str(label), protocol=Protocol(name="fedsgd"),
            )
        )  # fmt: skip
    return Victim(model=model, inputs=INPUTS), seen


def attacked(spec, seconds, *, count=1, slowness=0.0):
    victim, seen = update(count, slowness)
    with within(seconds) as deadline:
        found = build_attack(spec)(victim, seen, generator=torch.Generator().manual_seed(1))
    return found, deadline


@pytest.mark.parametrize("spec", ["inverting-gradients:iterations=100000", "dlg:iterations=100000,stop_below=0"])
def test_a_search_ends_with_its_time_and_gives_the_best_until_then(spec):
    (found,), deadline = attacked(spec, 0.5, slowness=0.01)
    assert deadline.cut
    if found.outcome is not Outcome.CONVERGED:
        assert found.cut
        assert found.outcome is Outcome.ITERATION_LIMIT
        assert found.reason_codes == ("time-ended",)
    assert 1 < found.iterations < 100_000
    assert found.inputs is not None
    assert found.matching_loss < found.starting_loss


def test_without_time_one_iteration_is_made():
    (found,), _ = attacked("inverting-gradients:iterations=50", 0.0)
    assert (found.iterations, found.cut) == (1, True)
    assert found.inputs.shape == (1, *INPUTS.shape)


def test_what_is_not_cut_does_not_depend_on_the_deadline():
    (with_time,), deadline = attacked("inverting-gradients:iterations=20", 600.0)
    (without,), _ = attacked("inverting-gradients:iterations=20", math.inf)
    assert torch.equal(with_time.inputs, without.inputs)
    assert not with_time.cut
    assert not deadline.cut
    assert len(deadline.looks) == 19, "it is asked after every iteration but the last"


def test_parts_of_a_search_share_the_time_that_is_left():
    with within(10.0) as whole:
        for number in range(4):
            with share_of_time(number, 4):
                assert not time_is_up()
        with share_of_time(1, 2) as last:
            assert last is None, "the last part has all that is left"
        with within(0.0):
            assert time_is_up(victims=3)
    assert whole.cut, "what is ended inside is ended early"
    assert whole.looks[-1][1] == 3


def test_a_call_gives_what_it_gives_and_raises_what_it_raises():
    assert call_in_time(lambda: 7, 60.0) == 7
    with pytest.raises(ZeroDivisionError):
        call_in_time(lambda: 1 // 0, 60.0)


def test_a_call_that_goes_on_for_ever_is_interrupted():
    ended = threading.Event()

    def for_ever():
        try:
            while True:
                try:
                    time.sleep(0.001)
                except Exception:  # noqa: BLE001, S112 - as models and attacks do
                    continue
        finally:
            ended.set()

    with pytest.raises(TimeEnded):
        call_in_time(for_ever, 0.1)
    assert ended.wait(10.0)
    assert not any_left_behind()


HANGS = """
import threading
from attacker.jobs.in_time import TimeEnded, any_left_behind, call_in_time
lock = threading.Lock()
with lock:  # waited for as long as a factorisation that nothing interrupts
    try:
        call_in_time(lock.acquire, 0.1)
    except TimeEnded:
        print("ended,", "left behind" if any_left_behind() else "gone")
"""


def test_a_call_inside_one_long_operation_is_left_behind():
    # In a process that nothing traces: Python 3.11 under a tracer never gets past an exception that waits for a thread.
    ended = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "ended, left behind"


def test_the_command_line_does_not_take_python_down_under_it():
    code = (
        f"{HANGS}    import atexit; atexit.register(print, 'taken down')\n"
        "    from attacker.cli.main import leave; leave(SystemExit(3))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (3, "ended, left behind")


def jobs(*costs):
    return [Job(id="j", work="a:b", cost=cost) for cost in costs]


def test_a_job_gets_twice_its_share_of_what_is_left_and_leaves_the_others_theirs():
    clock = Clock(1000.0)
    usual = clock.timed(*jobs(1.0), jobs(*[1.0] * 9), 1)
    long = clock.timed(*jobs(9.0), jobs(1.0), 1)
    assert usual.seconds == pytest.approx(clock.attacking() * 2 / 11, rel=0.01)
    assert long.seconds < clock.attacking()
    assert usual.seconds < usual.patience < 1000.0
    both = clock.timed(*jobs(1.0), jobs(*[1.0] * 9), 2)
    assert both.seconds > usual.seconds, "two workers have twice the time"
    assert Clock(None).timed(*jobs(1.0), [], 1).seconds is None


def test_without_time_left_no_job_is_begun():
    assert Clock(1.0, began=time.monotonic() - 5.0).timed(*jobs(1.0), [], 1) is None
