"""The lower bound by canaries in simulated audits: how often it is below the truth, and how far.

Three mechanisms of known epsilon, one release each: Gaussian noise, judged by the separation of scores and by counted
guesses; randomised response, judged by counted guesses alone. Run: ``python -m benchmarks.canaries --out
docs/results/canaries.json --page docs/results/canaries.md``; the table of the page is made from the file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from attacker.audit.execution.machine import this_machine, versions
from benchmarks.page_tables import write_between
from fl_precode.privacy.one_run import guess_and_refute, separation
from fl_precode.privacy.robustness import gaussian_epsilon, gaussian_mu

DELTA = 1e-5
AUDITS = 1_000
CANARIES = (100, 1_000)
EPSILONS = (1.0, 10.0, 100.0)

_mu = cache(lambda epsilon: gaussian_mu(epsilon, DELTA))

Scores = tuple[NDArray[np.float64], NDArray[np.bool_]]


def gaussian_run(epsilon: float, canaries: int, draw: Generator) -> Scores:
    """Scores of canaries under Gaussian noise that is exactly (epsilon, `DELTA`)-private, and which were in."""
    inside = draw.random(canaries) < 0.5
    return _mu(epsilon) * inside + draw.standard_normal(canaries), inside


def randomised_response(epsilon: float, canaries: int, draw: Generator) -> Scores:
    """Answers that are right with probability ``e^eps / (1 + e^eps)``, the best that epsilon allows."""
    inside = draw.random(canaries) < 0.5
    right = draw.random(canaries) < 1 / (1 + math.exp(-epsilon))
    return np.where(right, inside, ~inside) + 1e-9 * draw.random(canaries), inside


def by_separation(run: Scores) -> float:
    """Epsilon by the separation of scores, which supposes Gaussian noise."""
    return gaussian_epsilon(separation(*run, zero_outside=True)[0], DELTA)


def by_guesses(run: Scores) -> float:
    """Epsilon by counted guesses, at the delta of the mechanisms."""
    return guess_and_refute(*run, delta=DELTA).epsilon


def by_guesses_alone(run: Scores) -> float:
    """Epsilon by counted guesses of a mechanism without delta."""
    return guess_and_refute(*run).epsilon


CASES: tuple[tuple[str, str, Callable[[float, int, Generator], Scores], Callable[[Scores], float]], ...] = (
    ("Gaussian", "separation", gaussian_run, by_separation),
    ("Gaussian", "guesses", gaussian_run, by_guesses),
    ("randomised response", "guesses", randomised_response, by_guesses_alone),
)


def measured(seed: int, audits: int) -> list[dict[str, Any]]:
    """One row for each mechanism, test, epsilon and number of canaries."""
    rows = []
    for mechanism, test, run, bound in CASES:
        for epsilon in EPSILONS:
            for canaries in CANARIES:
                draw = np.random.default_rng([seed, int(epsilon), canaries])
                began = time.perf_counter()
                found = np.array([bound(run(epsilon, canaries, draw)) for _ in range(audits)])
                rows.append(
                    {
                        "mechanism": mechanism,
                        "test": test,
                        "epsilon": epsilon,
                        "canaries": canaries,
                        "audits": audits,
                        "at_most_the_truth": float((found <= epsilon).mean()),
                        "median": float(np.median(found)),
                        "fifth": float(np.quantile(found, 0.05)),
                        "within_a_factor_of_2": float(((found >= epsilon / 2) & (found <= 2 * epsilon)).mean()),
                        "seconds": time.perf_counter() - began,
                    }
                )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    head = (
        "| mechanism | test | true epsilon | canaries | at most the truth | median of the bound | 5 % lie below | "
        "within a factor of 2 |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    lines = [
        f"| {row['mechanism']} | {row['test']} | {row['epsilon']:g} | {row['canaries']:,} | "
        f"{row['at_most_the_truth']:.1%} | {row['median']:.3g} | {row['fifth']:.3g} | "
        f"{row['within_a_factor_of_2']:.1%} |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def main() -> None:
    """Measure, and write the file and the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("canaries.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--audits", type=int, default=AUDITS)
    parser.add_argument("--page", type=Path, help="Markdown page whose table is written anew")
    options = parser.parse_args()
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": this_machine().model_dump(),
        "versions": versions(),
        "seed": options.seed,
        "delta": DELTA,
        "rows": measured(options.seed, options.audits),
    }
    options.out.write_text(json.dumps(content, indent=1) + "\n")
    if options.page is not None:
        write_between(options.page, "canaries", table(content["rows"]))


if __name__ == "__main__":
    main()
