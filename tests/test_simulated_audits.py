"""One small simulated audit of each kind: what is said is never false where the truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.page_tables import write_between
from benchmarks.simulated_audits import KINDS, judged, numbers, read, run, tables, upper_bound
from benchmarks.simulated_cases import PERCEPTRON, Case, case
from benchmarks.simulated_oracle import recovered
from benchmarks.simulated_tapes import altered, simulate
from benchmarks.time_to_verdict import table as waits
from fl_precode.federation.config import Settings

ROOT = Path(__file__).resolve().parents[1]
ROW = {"truth": "does not", "oracle": None, "may_hold": True, "kind": "undefended", "seconds": [0.1, 2.0, 0.1]}


QUICK = (
    "noise instead of updates",
    "another client's updates",
    "64 altered updates",
    "images that are alike",
    "constant images",
    "frozen layers",
    "defences behind a Linear layer",
    "one update of many images",
)
"""Kinds with a known truth, of those that take no time here; the benchmark has them all."""


def quick(kind: str) -> Case:
    """A case with few clients, and attacks that take no time."""
    ((number, _),) = numbers(len(KINDS), [kind])
    own = case(kind, number, 11, shared=False)
    linear = str(own.settings["model"]).startswith((PERCEPTRON, "mlp"))
    few = {**own.settings, "num_clients": min(int(own.settings["num_clients"]), 4)}
    attacks = ("first-layer",) if linear else ("inverting-gradients:iterations=10",)
    return replace(own, attacks=attacks, settings=few, victims=2)


@pytest.mark.parametrize("kind", QUICK)
def test_no_verdict_of_a_kind_is_false(kind):
    row = run(quick(kind))
    assert row["verdict"] != "error", row["sentence"]
    assert not judged(row), row["sentence"]
    if row["truth"] == "leaks":
        assert row["oracle"] == 1, "the construction does not leak"
        assert row["verdict"].startswith("leaks") or kind == "frozen layers", row["sentence"]


def test_every_kind_can_be_drawn():
    for number, kind in numbers(2 * len(KINDS), []):
        own = case(kind, number, 5, shared=False)
        assert own.truth in ("leaks", "does not", "oracle")
        assert int(own.settings["num_clients"]) <= len(own.images[1]), "every client holds an image"


def test_a_case_is_the_same_each_time_and_differs_by_its_number():
    first, again, other = (case("undefended", number, 0, shared=False) for number in (4, 4, 5))
    assert (first.images[0] == again.images[0]).all()
    assert first.settings == again.settings != other.settings


@pytest.mark.parametrize("alter", ["noise", "permuted", "swapped"])
def test_altered_updates_keep_their_size_and_lose_their_images(alter):
    drawn = torch.Generator().manual_seed(0)
    updates = [{"a": torch.randn(40, 50, generator=drawn)} for _ in range(2)]
    made = altered(updates, alter, torch.Generator().manual_seed(1))
    for before, after in zip(updates, made, strict=True):
        assert float(after["a"].norm()) == pytest.approx(float(before["a"].norm()), rel=0.1)
        together = torch.stack([before["a"].flatten(), after["a"].flatten()])
        assert abs(float(torch.corrcoef(together)[0, 1])) < 0.1
    with pytest.raises(ValueError, match="expected one of noise, permuted, swapped"):
        altered(updates, "rotated", drawn)


def test_the_oracle_sees_through_pruning_and_not_through_what_says_nothing(tmp_path):
    def share(alter, **more):
        settings = Settings(dataset="digits", model="mlp", num_clients=3, num_server_rounds=1, device="cpu", **more)
        made = simulate(tmp_path / f"{alter}{len(more)}", settings, alter=alter)
        return recovered(made, made.seen, search=False)

    assert share("") == 1
    assert share("", defence="prune:share=0.9") > 0.5
    assert share("noise") == share("permuted") == 0
    assert share("", batch_size=2, defence="none") is None, "of several images no formula here gives one"


def test_the_oracle_searches_where_no_formula_fits(tmp_path):
    model = "lenet:activation=relu"
    settings = Settings(dataset="digits", model=model, num_clients=2, num_server_rounds=1, device="cpu")
    made = simulate(tmp_path / "run", settings)
    assert recovered(made, made.seen, search=False) is None
    assert recovered(made, made.seen[:1], search=True) == 1


def test_what_counts_as_false():
    leaks, held = "leaks to an adaptive attacker", "held against everything tried"
    assert judged(ROW | {"verdict": leaks}) == "false leaks"
    assert judged(ROW | {"verdict": held}) == ""
    assert judged(ROW | {"verdict": held, "may_hold": False}) == "false held"
    assert judged(ROW | {"verdict": held, "truth": "leaks"}) == "false held"
    assert judged(ROW | {"verdict": held, "truth": "oracle", "oracle": 0.25}) == "false held"
    assert judged(ROW | {"verdict": held, "truth": "oracle", "oracle": 0.05}) == "", "less than the verdict leaves open"
    assert judged(ROW | {"verdict": "not known", "truth": "leaks"}) == ""
    assert upper_bound(0, 300) < 0.01 < upper_bound(1, 300)


def test_the_tables_count_what_was_said(tmp_path):
    rows = [ROW | {"number": number, "verdict": "leaks"} for number in range(3)]
    rows += [ROW | {"number": 3, "verdict": "not known", "truth": "leaks"}]
    text = tables(rows)
    assert "| undefended | 3 | does not leak | 3 |  |  |  |  | 3 | 2.0 |" in text
    assert "| undefended | 1 | leaks |  |  |  | 1 |  | 0 | 2.0 |" in text
    assert '| false "leaks", of all audits | 4 | 3 | 75.0 % |' in text
    assert '| audits that leak, said "not known" | 1 | 1 | 100.0 % | |' in text
    assert read(tmp_path / "none.jsonl") == []


def test_a_page_gets_the_tables_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- name -->\nold\n<!-- end of name -->\nafter\n")
    for text in ("new\n", "newer"):
        write_between(page, "name", text)
    assert page.read_text() == "before\n<!-- name -->\nnewer\n<!-- end of name -->\nafter\n"
    with pytest.raises(ValueError, match="expected the marks"):
        write_between(page, "other", "text")


def test_the_page_shows_what_the_files_hold():
    page = (ROOT / "docs/results/evidence.md").read_text()
    assert tables(read(ROOT / "docs/results/simulated-audits.jsonl")) in page
    assert waits(json.loads((ROOT / "docs/results/time-to-verdict.json").read_text())) in page
