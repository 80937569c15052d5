"""Five apps in the shapes in which people write them, with the README's lines and nothing else that tells an audit."""

from __future__ import annotations

import pytest

from fl_precode.tape import Tape
from tests.apps.one_process import audited, run_in_process

DIGITS = ("--input", "1x8x8", "--classes", "10")
ONE = ("--victims", "1")
SEARCH = (*ONE, "--attacks", "inverting-gradients:iterations=1500,restarts=1")


@pytest.fixture(autouse=True)
def no_folder_for_truth(monkeypatch):
    """Each app's truth goes where its tape says."""
    monkeypatch.delenv("FL_PRECODE_TRUTH", raising=False)


def codes(found):
    return {one["code"] for one in found.record["federations"][0]["assumptions"]}


def test_message_api_with_the_line_as_printed(tmp_path):
    run_in_process("message_api", "message_digits", 2, tmp_path / "tape")
    found = audited(
        tmp_path / "tape",
        tmp_path / "audit",
        *ONE,
        "--attacks",
        "then-refine",
        "--model",
        "message_digits.task:Net",
        *DIGITS,
    )
    assert found.code == 0, found.said
    assert found.best["then-refine"] > 60, "a ReLU network's layers, one after the other, then a search"
    assert "reconstructed" in found.record["verdicts"][0]["sentence"]
    # Images in [-1, 1], which nobody announced: nothing is cut off, and the scale is found.
    assert "scale-guessed" in codes(found)


def test_numpy_client_without_names_under_a_legacy_strategy(tmp_path, monkeypatch):
    tape = tmp_path / "tape"
    monkeypatch.setenv("TAPE", str(tape))
    monkeypatch.setenv("FL_PRECODE_TRUTH", f"{tape}.truth")
    run_in_process("legacy_numpy", "legacy_digits", 2, tape)
    assert len(Tape(tape).entries) == 4
    found = audited(tape, tmp_path / "audit", *SEARCH, "--model", "legacy_digits.task:Net", *DIGITS)
    assert found.code == 0, found.said
    assert found.best["inverting-gradients"] > 40
    assert "names-by-order" in codes(found)


@pytest.mark.parametrize("factory", ["LitClassifier", "network"])
def test_lightning_module(tmp_path, factory):
    run_in_process("lightning_shape", "lit_digits", 2, tmp_path / "tape")
    exact = (*ONE, "--attacks", "first-layer")
    found = audited(tmp_path / "tape", tmp_path / "audit", *exact, "--model", f"lit_digits.task:{factory}", *DIGITS)
    assert found.code == 0, found.said
    assert found.best["first-layer"] > 80


def test_only_the_head_of_a_vision_transformer(tmp_path):
    run_in_process("vit_head", "vit_digits", 2, tmp_path / "tape")
    assert len(Tape(tmp_path / "tape").entries) == 4
    found = audited(tmp_path / "tape", tmp_path / "audit", *SEARCH, "--model", "vit_digits.task:get_model", *DIGITS)
    assert found.code == 0, found.said
    assert found.best["inverting-gradients"] > 40
    assert "weights-of-the-factory" in codes(found)


PATCHES = ("--model", "dense_patches.task:load_model", "--input", "1x16x16", "--classes", "6")
NOTES = """
examples = "batches"

[protocol]
batch-size = 4
local-epochs = 1
optimiser = "adam"
learning-rate = 0.001
"""


def test_batches_counted_as_examples_and_adam(tmp_path):
    tape = tmp_path / "tape"
    run_in_process("dense_adam", "dense_patches", 2, tape)
    quick = (*ONE, "--attacks", "inverting-gradients:iterations=40,restarts=1")
    # Four images in a batch, and the client says 1: it is seen that this cannot be, and said what to add.
    found = audited(tape, tmp_path / "audit", *quick, *PATCHES)
    assert found.code == 3, found.said
    assert "examples-are-batches" in codes(found)
    assert "the batch size is unknown" in found.said
    # The same tape, told: no federation has to be run again.
    (tmp_path / "tape.toml").write_text(NOTES)
    found = audited(tape, tmp_path / "told", *quick, *PATCHES)
    assert found.code == 0, found.said
    assert len(found.record["victims"]) == 4
    assert len([one for one in found.record["results"] if one["psnr"] is not None]) == 4
    assert "examples-are-batches" not in codes(found)
    assert found.record["verdicts"][0]["verdict"] == "not shown to leak"
