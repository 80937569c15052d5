"""The map of architectures: its page says what its file says, and its cells are those of the real audit."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.architecture_map import STATES, counted, square, state, table, write_page
from benchmarks.architecture_models import calibrated, residual_18
from benchmarks.architectures import COLUMNS, ROWS, Cell, cells, chosen, is_missing, measure
from fl_precode.models import InputSpec, build_model

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SMALL = InputSpec(channels=3, height=32, width=32, classes=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def test_page_and_file_say_the_same(tmp_path):
    content = json.loads((DOCS / "results" / "architectures.json").read_text())
    page = tmp_path / "architectures.md"
    page.write_text((DOCS / "results" / "architectures.md").read_text())
    pytest.importorskip("matplotlib", reason="the picture needs matplotlib, a development dependency")
    write_page(content, page)
    assert page.read_text() == (DOCS / "results" / "architectures.md").read_text(), "write it again with --table --page"
    assert (tmp_path / "architectures.png").stat().st_size > 10_000
    assert (DOCS / "results" / "architectures.png").exists()


def test_every_cell_of_the_file_is_one_of_the_map():
    content = json.loads((DOCS / "results" / "architectures.json").read_text())
    for key, entry in content["cells"].items():
        parts = {name: entry[name] for name in ("row", "size", "batch", "steps", "alter", "searched")}
        assert Cell(**parts).key == key
        assert entry["images"] == entry["batch"]
        assert entry["came_back"] <= entry["images"]
        assert entry["cpu_seconds"] > 0
        assert len(entry["date"]) == 10
        if entry["searched"] and not entry["came_back"] and not entry["alter"]:
            assert entry["flags"], "a cell in which nothing was reconstructed is flagged"
    assert state(content["cells"]["lenet | 64 | batch 1 | 1 step"]) == "reconstructed", "the control"
    assert content["cells"]["lenet | 64 | batch 1 | 1 step | swapped"]["came_back"] == 0, "the control's control"


def test_what_was_not_run_is_white_and_counts_as_nothing():
    content = {"cells": {}, "machine": {"cpu": "none", "cores": 2}, "torch": "2", "seed": 0, "measured": "2000-01-01"}
    assert f"{len(ROWS) * len(COLUMNS)} were not run here" in counted(content)
    assert len(table(content).splitlines()) == 2
    assert (state(None), square(None)) == (STATES[-1], "")


def test_what_is_missing_or_was_not_searched_for_want_of_time_is_measured_with_more_of_it():
    every = cells("gpu")
    assert len(every) == len(ROWS) * len(COLUMNS)
    assert all(cell.searched for cell in every)
    cell, other = every[:2]
    content = {"cells": {cell.key: {"searched": False, "budget": 50.0}}}
    assert is_missing(other, content, 50.0)
    assert not is_missing(cell, content, 50.0)
    assert is_missing(cell, content, 900.0)
    assert not is_missing(replace(cell, searched=False), content, 900.0), "formulas need no more time"
    content["cells"][cell.key]["searched"] = True
    assert not is_missing(cell, content, 900.0)


@pytest.mark.parametrize("row", [row for row, own in ROWS.items() if "batch" not in own.norm])
def test_networks_have_the_normalisation_that_they_say(row):
    with torch.device("meta"):  # layers, and no numbers
        model = build_model(ROWS[row].model, SMALL, seed=0)
    kinds = {type(layer) for layer in model.modules()}
    assert nn.BatchNorm2d not in kinds
    words = {nn.GroupNorm: "group norm", nn.LayerNorm: "layer norm"}
    assert [word for kind, word in words.items() if any(issubclass(one, kind) for one in kinds)] == (
        [] if ROWS[row].norm == "none" else [ROWS[row].norm]
    )


def test_running_statistics_are_those_of_the_photographs():
    model = residual_18(SMALL).eval()
    statistics = model.bn1.running_var.clone()
    assert float((statistics - 1).abs().max()) > 0.01
    assert model.bn1.momentum == 0.1
    assert int(model.bn1.num_batches_tracked) == 0
    assert torch.equal(calibrated(model, SMALL).bn1.running_var, statistics)


def test_a_measurement_goes_on_where_it_was_stopped(tmp_path):
    out, name = tmp_path / "map.json", "lenet | 64 | batch 1 | 1 step"
    options = Namespace(out=out, cells="cpu", only=name, seconds=100.0, again=False, budget=12.0, device="cpu")
    content = {"cells": {cell.key: {"searched": True} for cell in chosen(cells("cpu"), name) if cell.alter}}
    measure(options, content)
    written = json.loads(out.read_text())
    assert written["cells"].pop(f"{name} | swapped") == {"searched": True}, "what is there is not measured again"
    (entry,) = written["cells"].values()
    assert entry["images"] == entry["labels_right"] == 1
    assert entry["refused"]["spear"] == ["first-layer-not-linear"]
    attempts = [one["attack"] for one in entry["attempts"]]
    # On a busy machine the twelve seconds may have no room for the formula.
    assert attempts in (["layerwise-inversion", "inverting-gradients"], ["inverting-gradients"])
    before = out.read_text()
    measure(Namespace(**{**vars(options), "only": "nothing"}), written)
    assert out.read_text() == before
