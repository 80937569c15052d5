"""Scores of reconstructions by others, and the sealed truth that they need."""

from __future__ import annotations

import json
import shutil
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attacker.standard.reconstructions import name_of, read_reconstructions
from attacker.standard.run import run_standard
from attacker.standard.scoring import score
from attacker.standard.sealing import SEALED_NAME, key_digest, new_key, read_key, seal, unseal, write_key
from fl_precode.tape import Tape
from tests.attacker.cli.test_cli_notes import invoke
from tests.attacker.standard.small import SMALL, sealed_federation


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A sealed tape, its key, and the true images by the names of the updates."""
    taped, key = sealed_federation(tmp_path_factory.mktemp("sealed"))
    truth = {name_of(entry.file): taped.used[entry.node, entry.round][0].numpy() for entry in Tape(taped.tape).entries}
    return taped.tape, key, truth


def stored(folder, arrays, name="mine.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


def test_the_truth_itself_is_reconstructed_and_identified(sealed, tmp_path):
    tape, key, truth = sealed
    found = score(tape, stored(tmp_path, truth), key=key, name="oracle", standard=SMALL)
    assert (found.figures.images, found.figures.reconstructed, found.figures.identified) == (5, 5, 5)
    assert found.figures.mean_ssim == pytest.approx(1)
    assert (found.name, found.standard, len(found.attacked)) == ("oracle", "standard-0", 5)


def test_both_kinds_of_files_hold_the_same(sealed, tmp_path):
    _, _, truth = sealed
    save_file({name: torch.from_numpy(images) for name, images in truth.items()}, tmp_path / "mine.safetensors")
    one, of_one = read_reconstructions(stored(tmp_path, truth))
    two, of_two = read_reconstructions(tmp_path / "mine.safetensors")
    assert of_one != of_two
    assert one.keys() == two.keys() == truth.keys()
    assert all(torch.equal(one[name], two[name]) for name in truth)


def test_grey_images_are_no_reconstruction(sealed, tmp_path):
    tape, key, truth = sealed
    grey = {name: np.full_like(images, 0.5) for name, images in truth.items()}
    found = score(tape, stored(tmp_path, grey), key=key, standard=SMALL)
    assert (found.figures.reconstructed, found.figures.identified) == (0, 0)


def test_images_that_fit_another_update_do_not_count(sealed, tmp_path):
    tape, key, truth = sealed
    names = [*truth]
    moved = {name: truth[other] for name, other in zip(names, [*names[1:], names[0]], strict=True)}
    assert score(tape, stored(tmp_path, moved), key=key, standard=SMALL).figures.reconstructed == 0


def test_what_an_attack_of_ours_made_has_the_same_figures_as_in_its_audit(sealed, tmp_path):
    """One scoring for all: the reconstructions of first-layer, given to `score` as those of somebody else."""
    tape, key, truth = sealed
    _, record = run_standard(tape, out=tmp_path / "ours", standard=SMALL, key=key)
    result = json.loads((tmp_path / "ours" / "standard.json").read_bytes())
    ours = next(attack["figures"] for attack in result["attacks"] if attack["attack"] == "first-layer")
    assert {row.outcome for row in record.results if row.attack == "first-layer"} == {"converged"}
    found = score(tape, stored(tmp_path, truth), key=key, standard=SMALL).figures.model_dump()
    same = ("images", "reconstructed", "identified", "failed")
    assert {name: found[name] for name in same} == {name: ours[name] for name in same}
    assert found["mean_guess_ssim"] == pytest.approx(ours["mean_guess_ssim"], abs=1e-6)


def _without(truth):
    return {name: images for number, (name, images) in enumerate(truth.items()) if number}


def _changed(change):
    return lambda truth: {name: change(images) if number == 0 else images
                          for number, (name, images) in enumerate(truth.items())}  # fmt: skip


WRONG = {
    "missing": (_without, "updates are missing: round-0001-node-.*grey images"),
    "foreign": (lambda truth: {**truth, "other": truth[min(truth)]}, "of no update on this tape: other; the tape has"),
    "shape": (_changed(lambda images: images[:, :, :4]), r"expected the shape \(1, 1, 8, 8\).*got \(1, 1, 4, 8\)"),
    "nan": (_changed(lambda images: images * np.nan), "expected finite numbers, got NaN"),
    "range": (_changed(lambda images: images * 255), r"expected numbers in \[0, 1\], got .*undo the normalisation"),
    "bytes": (_changed(lambda images: (images * 255).astype(np.uint8)), "expected floating-point numbers.*uint8"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_reconstructions_are_refused_with_what_is_expected(sealed, tmp_path, case):
    tape, key, truth = sealed
    change, says = WRONG[case]
    with pytest.raises(ValueError, match=says):
        score(tape, stored(tmp_path, change(truth)), key=key, standard=SMALL)


def test_files_that_are_no_reconstructions_are_refused(sealed, tmp_path):
    tape, key, _ = sealed
    for name, says in (
        ("a.npz", "no complete .npz"),
        ("a.safetensors", "no complete safetensors"),
        ("a.txt", "ending in"),
    ):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=says):
            score(tape, tmp_path / name, key=key, standard=SMALL)
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="objects.npz is no complete .npz file of floating-point arrays"):
        score(tape, tmp_path / "objects.npz", key=key, standard=SMALL)


def test_a_truth_opens_by_its_key_and_for_its_tape_only(sealed, tmp_path):
    tape, key, truth = sealed
    assert stat.S_IMODE(key.stat().st_mode) == stat.S_IMODE((tape.parent / SEALED_NAME).stat().st_mode) == 0o600
    assert b"seed" not in (tape.parent / SEALED_NAME).read_bytes()
    content = unseal(tape, read_key(key))
    assert json.loads(content)["format"] == "fl-precode-evaluation"
    write_key(new_key(), tmp_path / "other.key")
    with pytest.raises(ValueError, match="does not open; the key is another one"):
        score(tape, stored(tmp_path, truth), key=tmp_path / "other.key", standard=SMALL)
    (tmp_path / "bad.key").write_text("secret")
    with pytest.raises(ValueError, match="no key of sealed tapes"):
        read_key(tmp_path / "bad.key")
    with pytest.raises(ValueError, match="needs its key"):
        score(tape, stored(tmp_path, truth), standard=SMALL)
    assert len(key_digest(read_key(key))) == 64
    before = (tape.parent / SEALED_NAME).read_bytes()
    assert seal(content, read_key(key), tape).read_bytes() == before


def test_an_altered_tape_is_refused(sealed, tmp_path):
    tape, key, truth = sealed
    shutil.copytree(tape.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / "tape"
    update = copy / Tape(copy).entries[0].file
    content = bytearray(update.read_bytes())
    content[-1] ^= 1
    update.write_bytes(content)
    with pytest.raises(ValueError, match="altered or damaged"):
        score(copy, stored(tmp_path, truth), key=key, standard=SMALL)
    manifest = copy / "manifest.jsonl"
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(ValueError, match="does not open.*altered"):
        unseal(copy, read_key(key))
    (copy.parent / SEALED_NAME).write_bytes(b"other")
    with pytest.raises(ValueError, match="no sealed truth of this version"):
        unseal(copy, read_key(key))
    (copy.parent / SEALED_NAME).unlink()
    with pytest.raises(ValueError, match="leave --key out"):
        unseal(copy, read_key(key))


def test_the_command_writes_the_score(sealed, tmp_path):
    tape, key, truth = sealed
    result = invoke(
        "score", tape, stored(tmp_path, truth), "--key", key, "--name", "oracle", "--out", tmp_path / "s.json"
    )
    assert result.exit_code == 0, result.output
    assert "5 of 5" in result.output
    assert json.loads((tmp_path / "s.json").read_bytes())["figures"]["reconstructed"] == 5
    wrong = invoke("score", tape, stored(tmp_path, _without(truth)), "--key", key)
    assert wrong.exit_code == 1
    assert "updates are missing" in wrong.output
