"""The gate and the comparison: exit codes, reasons, and records that cannot be used."""

from __future__ import annotations

import json
import re
import shutil
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from attacker.audit.verdict.ci_gate import Answer, Demands, answers, images_reconstructed, judged, junit
from attacker.audit.verdict.finish import finish_record, write_audit
from attacker.audit.verdict.integrity import contradictions
from attacker.cli.main import app
from tests.attacker.audits import audit_tape
from tests.attacker.records import ADAPTIVE, PLAIN, each, federation, record, summary
from tests.attacker.taped_federation import tape_federation

HOSTILE = "<script>alert(1)</script>\x1b[31m"
PAIR = [federation("f1"), federation("f2", "precode")]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A real audit, of a tape with a hostile node."""
    folder = tmp_path_factory.mktemp("run")
    taped = tape_federation(folder, rounds=2, nodes=(HOSTILE, "7"))
    audit_tape(taped.tape, out=folder / "audit", attacks=["first-layer"], victims=2)
    return folder / "audit"


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "200"})


def text_of(result) -> str:
    assert "Traceback" not in result.stderr
    return " ".join((result.stdout + result.stderr).split())


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--max-asr", 1], 0, "2 of 2 images were reconstructed by some attack (95 % interval 16 to 100 %)"),
        (["--max-asr", 0], 1, "NOT MET --max-asr 0 f1: MLP with no defence on digits 2 of 2 images were reconstructed"),
        (["--min-victims", 2], 0, "2 images were attacked and compared"),
        (["--min-victims", 64], 1, "NOT MET --min-victims 64"),
        (["--no-flags"], 0, "no flag that counts"),
        (["--max-asr", 1, "--min-victims", 3, "--no-flags"], 1, "met --max-asr 1"),
    ],
)
def test_demands_and_their_exit_codes(audited, arguments, code, reason):
    for path in (audited, audited / "audit.json"):
        result = invoke("check", path, *arguments)
        assert result.exit_code == code
        assert reason in text_of(result)
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing is demanded"),
        (["--max-asr", 1.5], "a share from 0 to 1"),
        (["--min-victims", 0], "1 or more"),
        (["--no-flags", "--allow-flag", "luck"], "there is no flag luck"),
    ],
)
def test_bad_usage_is_2(audited, arguments, reason):
    result = invoke("check", audited, *arguments)
    assert result.exit_code == 2
    assert reason in text_of(result)


def altered(content, change):
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c.update(schema_version=3), "schema version 3"),
        (lambda c: c.update(format="other"), "is not an audit record"),
        (lambda c: c["results"][0].update(ssim="high"), "was altered or damaged"),
        (lambda c: c["results"][0].update(ssim=0.1), "the summary of first-layer on f1 does not follow"),
        (lambda c: c["results"].pop(), "the summary of first-layer on f1 does not follow"),
        (lambda c: c["summaries"][0].update(successes=0, success_rate=0.0), "does not follow from its results"),
        (lambda c: c["verdicts"][0].update(verdict="held against everything tried"), "its verdicts do not follow"),
        (lambda c: c["results"][0].update(federation="f9"), "the federation 'f9', which is not in it"),
        (lambda c: c["federations"][0]["tape_identity"].update(sha256="0" * 64), "is not the one that was audited"),
        (lambda c: c["victims"][0].update(node="9"), "round 1, client 9 is not on the tape"),
    ],
)
def test_records_that_cannot_be_used_are_2(audited, tmp_path, change, reason):
    content = json.loads((audited / "audit.json").read_text())
    if "round 1" in reason:
        content["victims"][0]["round"] = 1
    (tmp_path / "audit.json").write_text(altered(content, change))
    result = invoke("check", tmp_path, "--max-asr", 1, "--junit", tmp_path / "junit.xml")
    assert result.exit_code == 2
    assert reason in text_of(result)
    assert not (tmp_path / "junit.xml").exists()


def test_missing_and_cut_records_are_2(audited, tmp_path):
    assert invoke("check", tmp_path / "nowhere", "--no-flags").exit_code == 2
    (tmp_path / "audit.json").write_bytes((audited / "audit.json").read_bytes()[:-9])
    assert invoke("check", tmp_path, "--no-flags").exit_code == 2


def test_another_tape_and_one_that_was_altered_are_2(audited, tmp_path):
    other = tape_federation(tmp_path / "other", rounds=2)
    result = invoke("check", audited, "--no-flags", "--tape", other.tape)
    assert result.exit_code == 2
    assert "is not the one that was audited, or was altered since" in text_of(result)
    assert invoke("check", audited, "--no-flags", "--tape", tmp_path / "nowhere").exit_code == 2


def test_a_tape_that_has_grown_is_the_same_and_one_that_is_gone_is_noted(audited, tmp_path):
    grown = tmp_path / "tape"
    shutil.copytree(audited.parent / "tape", grown)
    with (grown / "manifest.jsonl").open("ab") as manifest:
        manifest.write(b'{"type": "failure", "round": 3, "node": "7", "reason": "gone"}\n')
    assert invoke("check", audited, "--no-flags", "--tape", grown).exit_code == 0
    content = json.loads((audited / "audit.json").read_text())
    content["federations"][0]["tape"] = str(tmp_path / "elsewhere")
    (tmp_path / "audit.json").write_text(json.dumps(content))
    result = invoke("check", tmp_path, "--no-flags")
    assert result.exit_code == 0
    assert "Note: f1: its tape is not at" in result.stderr


def test_junit(audited, tmp_path):
    path = tmp_path / "deep" / "junit.xml"
    assert invoke("check", audited, "--max-asr", 0, "--min-victims", 2, "--junit", path).exit_code == 1
    suites = ElementTree.parse(path).getroot()
    assert suites.attrib["failures"] == "1"
    cases = {case.attrib["name"]: case for case in suites.iter("testcase")}
    assert "2 of 2 images were reconstructed" in cases["--max-asr 0"].find("failure").attrib["message"]
    assert cases["--min-victims 2"].find("failure") is None
    assert path.stat().st_mode & 0o077 == 0


def test_junit_survives_hostile_names():
    made = junit([Answer(federation=f"f1 {HOSTILE}\0", demand="--no-flags", met=False, reason=HOSTILE)], name=HOSTILE)
    (case,) = ElementTree.fromstring(made).iter("testcase")
    assert case.attrib["classname"] == "f1 <script>alert(1)</script>[31m"
    assert b"<script>" not in made


def made(successes=0, images=64, federations=PAIR, **changes):
    results = [
        *each("f1", PLAIN, images, ssim=0.9),
        *each("f2", PLAIN, images, ssim=[0.9] * successes + [0.1] * (images - successes)),
        *each("f2", ADAPTIVE, images, **({"ssim": 0.2} | changes)),
    ]
    summaries = [summary("f1", PLAIN, images, images), summary("f2", PLAIN, successes, images)]
    return finish_record(record(federations, [*summaries, summary("f2", ADAPTIVE, 0, images)], results=results))


def test_controls_are_not_judged():
    assert [one.id for one in judged(made())] == ["f2"]
    assert [one.id for one in judged(made(federations=[federation("f1", control_of="f2"), PAIR[1]]))] == ["f2"]
    assert [one.id for one in judged(made(federations=[federation("f1", model="mlp"), PAIR[1]]))] == ["f1", "f2"]
    alone = record(PAIR[:1], [])
    assert [one.id for one in judged(alone)] == ["f1"]


def test_images_that_any_attack_reconstructed_count_once():
    whole = made(3, ssim=[0.9] * 5 + [0.1] * 59)
    assert images_reconstructed(whole, "f2") == (5, 64)
    assert images_reconstructed(whole, "f1") == (64, 64)


def test_the_gates_interval_goes_by_updates():
    demands = Demands(max_asr=1.0)
    whole = made(5)
    assert (
        answers(whole, demands)[0].reason
        == "5 of 64 images were reconstructed by some attack (95 % interval 3 to 17 %)"
    )
    one = whole.model_copy(update={"results": [row.model_copy(update={"node": "7"}) for row in whole.results]})
    assert answers(one, demands)[0].reason == (
        "5 of 64 images were reconstructed by some attack (95 % interval 0 to 98 %); they count as 1 independent trial"
    )


def test_flags_may_be_allowed(tmp_path):
    write_audit(_consistent(made(images=4)), tmp_path)
    result = invoke("check", tmp_path, "--no-flags")
    assert result.exit_code == 1
    assert "[too-few-victims]" in text_of(result)
    assert invoke("check", tmp_path, "--no-flags", "--allow-flag", "too-few-victims").exit_code == 0


def test_flags_that_somebody_deleted_count_all_the_same(tmp_path):
    bare = _consistent(made(images=4)).model_copy(update={"flags": [], "verdicts": []})
    assert contradictions(bare) == []  # as a record of an older version
    write_audit(bare, tmp_path)
    assert invoke("check", tmp_path, "--no-flags").exit_code == 1


def test_without_truth_no_share_is_within_bounds(tmp_path):
    taped = tape_federation(tmp_path, rounds=1, evaluation=False)
    audit_tape(taped.tape, out=tmp_path / "audit", attacks=["first-layer"], victims=1)
    result = invoke("check", tmp_path / "audit", "--max-asr", 1)
    assert result.exit_code == 1
    assert "how many images were reconstructed is not known: There is no evaluation.json" in text_of(result)


def _consistent(whole):
    """With summaries that follow from the rows, as every real record has them."""
    from attacker.audit.scoring.similarity import summarise

    again = [summarise(one.federation, one.attack, whole.results) for one in whole.summaries]
    return finish_record(whole.model_copy(update={"summaries": again}))


def test_every_real_record_is_without_contradiction(audited):
    from attacker.audit.record.json_file import read_record

    assert contradictions(read_record(audited)) == []
    assert contradictions(_consistent(made())) == []


def test_the_help_says_what_the_exit_codes_mean():
    for command in ("check", "compare"):
        plain = re.sub(r"[│╭╮╰╯─]", " ", invoke(command, "--help").stdout)
        assert "Exit code 0" in " ".join(plain.split())
