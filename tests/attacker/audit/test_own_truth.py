"""An own app gets pictures, figures and a verdict from its own truth, and a truth of anything else is not scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from attacker.audit.federations.federation import open_federations
from attacker.audit.inputs.tape_source import TapeSource, open_subject
from attacker.audit.settings import AuditSettings
from attacker.audit.truth.base import mean_of
from attacker.audit.verdict.verdict import verdicts
from attacker.cli.main import main
from attacker.reasons import because
from attacker.report.page import render_page
from fl_precode.flower import record_truth
from fl_precode.models.input_spec import InputSpec
from fl_precode.recorded_truth import read_batch, read_head, to_bytes, truth_folder
from fl_precode.tape import Tape
from fl_precode.tape.notes import notes_path
from tests.attacker.audits import audit_tape, audit_tapes
from tests.local_grid import FIRST_NODE
from tests.server.own_app import client_app, guarded, part, run

INPUTS = InputSpec(channels=1, height=8, width=8, classes=10, mean=(0.0,), std=(1.0,))


@pytest.fixture(autouse=True)
def no_place_from_outside(monkeypatch):
    monkeypatch.delenv("FL_PRECODE_TRUTH", raising=False)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A federation of one image each; its clients recorded their truth."""
    return run(tmp_path_factory.mktemp("single"), client_app(record_truth))


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Four images each, in one step."""
    return run(tmp_path_factory.mktemp("several"), client_app(record_truth, each=4), each=4)


def used(entry, each=1):
    return part(int(entry.node) - FIRST_NODE, entry.round, each)


def audited(tape, out, **more):
    attack = more.pop("attacks", ["first-layer"])
    return audit_tapes([TapeSource(tape=tape, **more)], out=out, attacks=attack, victims=3)


def federation_of(tape, **more):
    return open_federations(
        [TapeSource(tape=tape, **more)],
        AuditSettings(victims=6, control=False, attacks=("first-layer",)),
        tape / "unused",
    )[0]


def test_recorded_truth_beside_the_tape_is_found_and_gives_a_verdict(single, tmp_path):
    record = audited(single, tmp_path)
    (one,) = record.federations
    assert one.truth_known
    assert one.truth_note == ""
    (summary,) = record.summaries
    assert (summary.successes, summary.images) == (3, 3)
    assert summary.baseline_successes == 0
    assert [entry.verdict for entry in verdicts(record)] == ["leaks"]
    assert all(row.psnr > 60 for row in record.results)
    assert all(victim.truth and victim.label is not None for victim in record.victims)


def test_without_a_truth_the_page_says_what_would_give_one(single, tmp_path):
    import shutil

    shutil.copytree(single, tmp_path / "tape")
    (one,) = audited(tmp_path / "tape", tmp_path / "out").federations
    assert not one.truth_known
    assert "no tape.truth" in one.truth_note
    assert "record_truth" in one.truth_note


def test_a_folder_that_holds_nothing_of_use_costs_the_comparison_only(single, tmp_path):
    import shutil

    shutil.copytree(single, tmp_path / "tape")
    (tmp_path / "tape.truth").mkdir()
    subject = open_subject(TapeSource(tape=tmp_path / "tape"))
    assert subject.truth is None
    assert "has no file of record_truth" in subject.truth_note
    with pytest.raises(ValueError, match="has no file of record_truth"):
        open_subject(TapeSource(tape=tmp_path / "tape", truth=f"recorded:{tmp_path / 'tape.truth'}"))


def test_a_file_that_lists_another_client_s_number_is_not_scored(single, tmp_path):
    import shutil

    shutil.copytree(single, tmp_path / "tape")
    (tmp_path / "tape.truth").mkdir()
    other = {str(FIRST_NODE): str(FIRST_NODE + 1), str(FIRST_NODE + 1): str(FIRST_NODE)}
    for path in truth_folder(single).iterdir():
        head = read_head(path)
        answered = replace(head.answered, node=other.get(head.answered.node, head.answered.node))
        content = to_bytes(answered, head.number, read_batch(path), complete=True)
        (tmp_path / "tape.truth" / path.name).write_bytes(content)
    own = federation_of(tmp_path / "tape")
    assert {entry.node for entry in own.entries if own.truth(entry) is not None} == {str(FIRST_NODE + 2)}
    assert f"it was recorded by node {FIRST_NODE + 1}, and the update is listed as that of" in own.subject.truth_note


def test_more_images_than_examples_hints_at_batches(single):
    own = federation_of(single, truth=by_function(lambda client, number: part(client, number, 4)))
    other = because("truth-of-other-number.batches", images="4 images", behind=1)
    assert other in own.subject.truth_note
    assert own.subject.truth_note.codes == ("truth-refused", "truth-of-other-number")


def test_the_second_run_under_one_name_finds_its_truth_beside_the_first(tmp_path):
    for _ in range(2):
        run(tmp_path, client_app(record_truth))
    assert len(list((tmp_path / "tape.truth").iterdir())) == 12
    for name in ("tape", "tape-2"):
        own = federation_of(tmp_path / name)
        assert own.refused == {}
        for entry in own.entries:
            assert torch.allclose(own.truth(entry).images, used(entry)[0], atol=1e-6)
    assert not {entry.message for entry in Tape(tmp_path / "tape").entries} & {
        entry.message for entry in Tape(tmp_path / "tape-2").entries
    }


def test_a_slow_function_is_asked_once_for_each_update(single):
    asked = []

    def truth(node, number):
        asked.append((node, number))
        return known_to_the_test(node, number)

    own = federation_of(single, truth=truth)
    assert own.refused == {}
    assert len(asked) == len(set(asked)) == 6


def test_truth_of_another_run_is_said(single, several):
    subject = open_subject(TapeSource(tape=single, truth=f"recorded:{truth_folder(several)}"))
    assert subject.truth is not None
    own = federation_of(single, truth=f"recorded:{truth_folder(several)}")
    assert own.subject.truth is None
    assert own.subject.truth_note.code == "truth-of-another-run"


def by_function(change):
    """A function that gives what a client used, or what ``change`` makes of its node, round and images."""

    def truth(node, number):
        return change(int(node) - FIRST_NODE, number)

    return truth


WRONG = {
    "the wrong round": lambda client, number, each: part(client, 3 - number, each),
    "the wrong client": lambda client, number, each: part((client + 1) % 3, number, each),
    "wrong labels": lambda client, number, each: (
        part(client, number, each)[0],
        (part(client, number, each)[1] + 4) % 10,
    ),
}


@pytest.mark.parametrize("each", [1, 4])
@pytest.mark.parametrize("wrong", WRONG)
def test_truth_that_does_not_fit_the_update_is_said_and_not_scored(single, several, tmp_path, wrong, each):
    tape = single if each == 1 else several
    function = by_function(lambda client, number: WRONG[wrong](client, number, each))
    # A scale that must be guessed leaves a doubt, of which a wrong truth has the benefit now and then.
    own = federation_of(tape, truth=function, inputs=INPUTS)
    assert len(own.refused) == 6, own.refused
    assert own.subject.truth is None
    assert "truth-does-not-fit" in own.subject.truth_note.codes
    source = TapeSource(tape=tape, truth=function, inputs=INPUTS)
    record = audit_tapes([source], out=tmp_path, attacks=["first-layer"], victims=2)
    (one,) = record.federations
    assert not one.truth_known
    assert one.truth_codes[0] == "truth-refused"
    assert all(row.ssim is None for row in record.results)


@pytest.mark.parametrize("each", [1, 4])
def test_other_images_under_the_right_labels_are_nearly_always_refused(single, several, each):
    """An image that is much like the true one passes for it: that is no wrong figure, only a hard case."""
    refused = 0
    for other in (3, 4, 5, 6):

        def truth(client, number, other=other):
            return part(client + other, number, each)[0], part(client, number, each)[1]

        own = federation_of(single if each == 1 else several, truth=by_function(truth), inputs=INPUTS)
        refused += len(own.refused)
    assert refused >= 20, f"{refused} of 24"


def test_one_wrong_client_does_not_spoil_the_others(single, tmp_path):
    def truth(node, number):
        return part(2 if int(node) == FIRST_NODE else int(node) - FIRST_NODE, number, 1)

    record = audit_tapes([TapeSource(tape=single, truth=truth)], out=tmp_path, attacks=["first-layer"], victims=6)
    (one,) = record.federations
    assert one.truth_known
    assert "is not that of 2 of the 6 attacked updates, which are" in one.truth_note
    scored = [row for row in record.results if row.ssim is not None]
    assert {row.node for row in scored} == {str(FIRST_NODE + 1), str(FIRST_NODE + 2)}
    assert all(row.ssim > 0.99 for row in scored)
    page = render_page(record, tmp_path)
    assert "is not that of 2 of the 6 attacked updates" in page
    assert "label accuracy cannot be given for it" not in page


@pytest.mark.parametrize(
    ("give", "text"),
    [
        (lambda _c, _n: None, "has nothing about any attacked update"),
        (
            lambda c, n: (part(c, n, 1)[0].expand(1, 3, 8, 8), part(c, n, 1)[1]),
            r"shape \(3, 8, 8\), and the model takes",
        ),
        (lambda c, n: (part(c, n, 1)[0], torch.tensor([11])), "it has a label 11, and the model has 10 classes"),
        (lambda c, n: (part(c, n, 1)[0] * 2 - 1, part(c, n, 1)[1]), "values from -1 to 1; if they are normalised"),
        (lambda _c, _n: 7, r"expected \(images, labels\) or None from the truth by truth, got int"),
        (lambda _c, _n: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_truth_that_cannot_be_is_said(single, give, text):
    import re

    own = federation_of(single, truth=by_function(give))
    assert own.subject.truth is None
    assert re.search(text, own.subject.truth_note), own.subject.truth_note


def test_a_function_is_taken_by_name_and_in_python(single, tmp_path):
    record = audit_tape(single, out=tmp_path / "a", attacks=["first-layer"], victims=2, truth=known_to_the_test)
    assert all(row.ssim > 0.99 for row in record.results)
    spec = f"{__name__}:known_to_the_test"
    record = audited(single, tmp_path / "b", truth=spec)
    assert all(row.ssim > 0.99 for row in record.results)
    with pytest.raises(ValueError, match="expected module:function, importable"):
        open_subject(TapeSource(tape=single, truth="no_such_module:f"))
    with pytest.raises(ValueError, match="expected the truth as recorded:PATH"):
        open_subject(TapeSource(tape=single, truth=str(tmp_path)))


def known_to_the_test(node, number):
    return part(int(node) - FIRST_NODE, number, 1)


def write_pictures(root, tape, *, name=lambda node: node, rounds=True):
    for entry in Tape(tape).entries:
        images, labels = used(entry)
        for place, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / name(entry.node) / (f"round-{entry.round}" if rounds else "") / f"{int(label)}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = (image[0] * 255).round().to(torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / f"{place}.png")


def test_a_folder_of_pictures(single, tmp_path):
    write_pictures(tmp_path / "pictures", single)
    record = audited(single, tmp_path / "out", truth=f"folder:{tmp_path / 'pictures'}")
    assert all(row.ssim > 0.99 for row in record.results)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="has no folder of a client of the tape; expected folders named after node ids"
    ):
        open_subject(TapeSource(tape=single, truth=f"folder:{tmp_path / 'empty'}"))


def test_names_of_clients_from_the_notes(single, tmp_path):
    import shutil

    shutil.copytree(single, tmp_path / "tape")
    names = {str(FIRST_NODE + number): f"hospital {number}" for number in range(3)}
    shutil.copy(notes_path(single), tmp_path / "tape.toml")
    with (tmp_path / "tape.toml").open("a") as notes:
        notes.write("\n[clients]\n" + "".join(f'{node} = "{name}"\n' for node, name in names.items()))
    write_pictures(tmp_path / "pictures", single, name=names.get)
    own = federation_of(tmp_path / "tape", truth=f"folder:{tmp_path / 'pictures'}")
    assert own.refused == {}
    entries = Tape(single).entries
    images, labels = (torch.cat(column) for column in zip(*map(used, entries), strict=True))
    np.savez(
        tmp_path / "own.npz",
        images=(images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy(),
        labels=labels.numpy(),
        node=[names[entry.node] for entry in entries],
        round=[entry.round for entry in entries],
    )
    own = federation_of(tmp_path / "tape", truth=f"npz:{tmp_path / 'own.npz'}")
    assert own.refused == {}
    for entry in own.entries:
        assert torch.allclose(own.truth(entry).images, used(entry)[0], atol=1 / 255)


def test_arrays_that_do_not_say_whose_they_are(single, tmp_path):
    np.savez(tmp_path / "own.npz", images=np.zeros((6, 8, 8), np.uint8), labels=np.zeros(6, int))
    with pytest.raises(ValueError, match="does not say whose its images are, and the tape has 3 clients; add an array"):
        open_subject(TapeSource(tape=single, truth=f"npz:{tmp_path / 'own.npz'}"))
    with pytest.raises(ValueError, match="there is no file"):
        open_subject(TapeSource(tape=single, truth=f"npz:{tmp_path / 'none.npz'}"))


def test_names_of_classes_that_need_an_order(single, tmp_path):
    write_pictures(tmp_path / "pictures", single)
    for folder in list((tmp_path / "pictures").glob("*/*/*")):
        folder.rename(folder.with_name(f"digit {folder.name}"))
    spec = f"folder:{tmp_path / 'pictures'}"
    with pytest.raises(ValueError, match=r"so that their numbers are not known; write a file classes\.txt"):
        open_subject(TapeSource(tape=single, truth=spec))
    (tmp_path / "pictures" / "classes.txt").write_text("".join(f"digit {number}\n" for number in range(10)))
    own = federation_of(single, truth=spec)
    assert own.refused == {}
    assert own.subject.truth.class_names[3] == "digit 3"


def test_the_mean_of_few_images_does_not_show_them():
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mean_of([images[:20], images[10:]]), images.mean(dim=0))
    few = mean_of([images[:15], images[:15]])
    assert float(few.std()) == pytest.approx(0, abs=1e-6)
    assert float(few.mean()) == pytest.approx(float(images[:15].mean()), abs=1e-6)
    assert mean_of([]) is None


def test_labels_can_be_granted(single):
    settings = AuditSettings(victims=2, control=False, attacks=("first-layer",))
    settings = replace(settings, knowledge=type(settings.knowledge).usual(know=["labels"]))
    (own,) = open_federations([TapeSource(tape=single)], settings, single / "unused")
    for entry, target in zip(own.entries, own.targets, strict=True):
        assert target.labels == tuple(used(entry)[1].tolist())


def test_the_command_takes_it(single, tmp_path, capsys, monkeypatch):
    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["fl-precode", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr()

    common = ("audit", single, "--attacks", "first-layer", "--victims", 2, "--no-leakage", "--device", "cpu")
    code, said = command(*common, "--out", tmp_path / "out", "--truth", f"recorded:{truth_folder(single)}")
    assert code == 0, said
    assert "2 of 2" in said.out
    code, said = command(*common, "--out", tmp_path / "b", "--truth", "npz:x.npz", "--no-truth")
    assert code == 2
    assert "either a file of the truth or --no-truth, not both" in " ".join(said.err.replace("│", " ").split())
    code, said = command(*common, "--out", tmp_path / "c", "--truth", "npz:x.npz", "--evaluation", "e.json")
    assert code == 2
    code, said = command("plan", single, "--victims", 2, "--truth", "npz:nowhere.npz")
    assert code != 0
    assert "there is no file nowhere.npz" in said.err


def test_a_defended_app_gets_a_control_where_every_batch_is_recorded(tmp_path):
    app = client_app(record_truth, each=4, batch=2, build=guarded)
    tape = run(tmp_path, app, each=4, batch=2, build=guarded)
    settings = AuditSettings(victims=2, attacks=("first-layer",))
    source = TapeSource(tape=tape, defence="precode")
    own, control = open_federations([source], settings, tmp_path / "controls")
    assert own.no_control is None
    assert own.refused == {}
    assert control.control_of == own.id
    for entry in control.entries:
        assert control.truth(entry) is not None
    for path in truth_folder(tape).glob("*-0002.safetensors"):
        path.unlink()
    (own,) = open_federations([source], settings, tmp_path / "other")
    assert own.subject.truth is None
    assert because("truth-of-other-number", images="2 images", behind=4) in own.subject.truth_note


def test_why_there_is_no_control(tmp_path):
    app = client_app(lambda x, y: None, each=4, batch=2, build=guarded)
    tape = run(tmp_path, app, each=4, batch=2, build=guarded, rounds=1)
    settings = AuditSettings(victims=2, attacks=("first-layer",))

    def truth(node, number):
        return part(int(node) - FIRST_NODE, number, 4)

    source = TapeSource(tape=tape, defence="precode", truth=truth)
    (own,) = open_federations([source], settings, tmp_path / "c")
    assert own.no_control == because("control-needs-training")
    (own,) = open_federations([replace(source, inputs=INPUTS)], settings, tmp_path / "c")
    assert own.subject.truth is not None
    assert own.no_control == because("control-needs-training.batches", steps=2, recorded=1)
