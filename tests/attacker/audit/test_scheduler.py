"""The order in which the parts of an audit are begun."""

from __future__ import annotations

from attacker.audit.clock import UNLIMITED, Clock
from attacker.audit.execution.attack_job import Chunk, Site
from attacker.audit.scheduler import in_turn


def chunk(name: str, attack: str, federation: str = "f1") -> Chunk:
    return Chunk(id=name, federation=federation, attack=attack, site=Site(tape="tape"), targets=(), seed=0, granted=())


CHUNKS = [
    chunk("short search", "inverting-gradients"),
    chunk("long search", "dlg"),
    chunk("formula of the control", "first-layer", "f1-control"),
    chunk("formula", "first-layer"),
    chunk("long formula", "layerwise-inversion"),
]
COSTS = {"short search": 5.0, "long search": 50.0, "formula of the control": 9.0, "formula": 0.1, "long formula": 2.0}


def names(clock: Clock) -> list[str]:
    return [one.id for one in in_turn(CHUNKS, COSTS, clock, {"f1-control"})]


def test_the_longest_come_first_where_time_has_no_end():
    expected = ["long formula", "formula", "formula of the control", "long search", "short search"]
    assert names(UNLIMITED) == expected


def test_a_budget_keeps_the_order_of_the_plan():
    expected = ["formula", "long formula", "formula of the control", "short search", "long search"]
    assert names(Clock(60.0)) == expected
