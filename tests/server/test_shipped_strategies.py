"""Wrapping any of flwr's strategies changes no bit of the training and no metric (docs/how-to/strategies.md)."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.serverapp import strategy as flower

from fl_precode.flower.interceptor import Interceptor
from fl_precode.tape import Tape
from tests.server.shipped_strategies import CASES, run

SLOW = ("FedAvgM", "FedAdagrad", "FedYogi", "FedProx", "FedTrimmedAvg", "MultiKrum", "Bulyan", "QFedAvg")
"""Strategies whose calls have the form of another one's here, and two whose arithmetic takes long."""

SLOW_OR_QUICK = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "running.md"


def test_no_strategy_that_flwr_ships_is_missing_here_or_on_the_page():
    shipped = set(flower.__all__) - {"Strategy", "Result"}
    assert set(CASES) == shipped
    assert all(f"| `{name}` |" in PAGE.read_text() for name in shipped)


@pytest.mark.parametrize("name", SLOW_OR_QUICK)
def test_wrapped_and_not_wrapped_are_equal_bit_for_bit(name, tmp_path):
    plain, plain_result = run(name, lambda strategy: strategy)
    wrapped, wrapped_result = run(name, lambda strategy: Interceptor(strategy, tmp_path / "tape"))
    assert len(plain) == 4
    assert len({tuple(sorted(one.items())) for one in plain}) == 4, "every round changes the model"
    assert wrapped == plain
    for what in ("train_metrics_clientapp", "evaluate_metrics_serverapp"):
        ours, theirs = getattr(wrapped_result, what), getattr(plain_result, what)
        assert {k: dict(v) for k, v in ours.items()} == {k: dict(v) for k, v in theirs.items()}
    tape = Tape(tmp_path / "tape")
    assert len(tape.entries) == 3 * CASES[name].mean_of
    assert not tape.problems
    assert not tape.failures


@pytest.mark.parametrize("name", [name for name in CASES if "ServerSide" in name])
def test_inside_server_side_privacy_the_tape_holds_what_was_clipped(name, tmp_path):
    """The position decides what is seen: outside the raw updates, inside the clipped ones."""
    norms = {}
    for place in ("outside", "inside"):

        def wrap(strategy, place=place):
            if place == "outside":
                return Interceptor(strategy, tmp_path / place)
            strategy.strategy = Interceptor(strategy.strategy, tmp_path / place)
            return strategy

        seen, _ = run(name, wrap)
        assert seen == run(name, lambda strategy: strategy)[0]
        norms[place] = [
            sum(float(value.double().square().sum()) for value in one.update.values()) ** 0.5
            for one in Tape(tmp_path / place).observations()
        ]
    # Adaptive clipping starts at 0.1; fixed clipping has 0.05; the updates have a norm of 0.15.
    assert max(norms["inside"]) < min(norms["outside"])
