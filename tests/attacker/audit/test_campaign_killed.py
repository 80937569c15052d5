"""kill -9 at random moments: nothing lost, nothing twice, the same record."""

from __future__ import annotations

import random
import time

import pytest

from attacker.audit.audit import audit
from attacker.audit.inputs.tape_source import TapeSource
from tests.attacker.campaigns import finished, kill_when, log_of, pictures, settings, start, without_times
from tests.attacker.taped_federation import tape_federation


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    return tape_federation(tmp_path_factory.mktemp("run"), defence="precode", rounds=16, clients=4).tape


def kill_and_go_on(tape, out, kills, rng, takes, workers, victims):
    """Finished chunks after every kill; the last process is left to its end."""
    seen: list[dict[str, tuple[int, int]]] = []
    while len(seen) < kills:
        process, began = start(tape, out, workers, victims), time.monotonic()
        known, more, pause = len(finished(out)), rng.randrange(3), rng.uniform(0.0, takes / 10)
        begun = rng.random() < 0.3  # some moments lie before the work: while it starts, plans, or checks what is there

        def moment(began=began, known=known, more=more, pause=pause, begun=begun) -> bool:
            ready = len(finished(out)) >= known + more or begun
            return ready and time.monotonic() - began > pause

        if not kill_when(process, moment):
            break  # it was quicker
        time.sleep(0.3)  # workers that lost their parent end by themselves
        seen.append(finished(out))
    assert start(tape, out, workers, victims).wait() == 0, log_of(out).read_text()
    return [*seen, finished(out)]


@pytest.mark.timeout(6000)
@pytest.mark.parametrize(
    ("kills", "workers", "victims"),
    [(2, 1, 10), pytest.param(20, 1, 64, marks=pytest.mark.slow), pytest.param(20, 2, 64, marks=pytest.mark.slow)],
)
def test_killed_at_random_moments_nothing_is_lost_or_done_twice(tape, tmp_path, kills, workers, victims):
    undisturbed, out, began = tmp_path / "whole", tmp_path / "audit", time.monotonic()
    audit([TapeSource(tape=tape)], settings(victims=victims), out=undisturbed)
    takes = time.monotonic() - began
    seen = kill_and_go_on(tape, out, kills, random.Random(kills), takes, workers, victims)
    assert len(seen) == kills + 1
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert {name: later.get(name) for name in earlier} == earlier
    assert seen[-1].keys() == finished(undisturbed).keys()
    assert without_times(out) == without_times(undisturbed)
    assert pictures(out) == pictures(undisturbed)
    assert not list((out / "campaign").rglob("*.part"))
