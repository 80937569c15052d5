from __future__ import annotations

import json
import math
import stat

import jsonschema
import pydantic
import pytest
from packaging.version import Version
from pydantic import ValidationError

from attacker.audit.record.json_file import SCHEMA_FILE, json_schema, read_record, write_record
from attacker.audit.record.schema import AuditRecord, ImageResult, finite
from tests.attacker.audits import audit_tape
from tests.attacker.taped_federation import tape_federation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A real audit of a real tape, one node of which has a hostile name."""
    run = tmp_path_factory.mktemp("run")
    taped = tape_federation(run, rounds=1, batch_size=2, nodes=("<script>alert(1)</script>", "7"))
    audit_tape(taped.tape, out=run / "audit", attacks=["first-layer", "inverting-gradients:iterations=2"], victims=2)
    return run / "audit"


@pytest.mark.skipif(
    Version(pydantic.VERSION) < Version("2.10"), reason="before pydantic 2.10 a constant is an enum of one as well"
)
def test_the_schema_in_the_package_is_that_of_the_model():
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema()


def test_a_real_record_validates_against_the_schema_in_the_package(folder):
    schema = json.loads(SCHEMA_FILE.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = json.loads((folder / "audit.json").read_text())
    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content | {"results": [{}]}, schema)
    assert content["results"]


def test_reading_gives_what_was_written_and_only_the_owner_may_read_it(folder, tmp_path):
    record = read_record(folder)
    path = write_record(record, tmp_path)
    assert read_record(path) == record
    assert path.read_bytes() == (folder / "audit.json").read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["audit.json"]


def test_numbers_that_are_not_finite_never_reach_the_file(folder):
    row = read_record(folder).results[0].model_dump()
    for name in ("ssim", "psnr", "mse", "matching_loss", "seconds", "baseline_ssim"):
        for value in (math.nan, math.inf):
            with pytest.raises(ValidationError):
                ImageResult.model_validate(row | {name: value})
    assert finite(math.nan) is None
    assert finite(None) is None


def test_a_record_from_before_results_named_their_method_is_still_one(folder, tmp_path):
    content = json.loads((folder / "audit.json").read_text())
    for row in content["results"]:
        assert row.pop("method") == ""
    jsonschema.validate(content, json.loads(SCHEMA_FILE.read_text()))
    (tmp_path / "audit.json").write_text(json.dumps(content))
    assert read_record(tmp_path) == read_record(folder)


def test_a_record_of_version_1_is_read_and_says_nothing_of_what_came_later(folder, tmp_path):
    content = json.loads((folder / "audit.json").read_text()) | {"schema_version": 1}
    for name in ("threat_model", "plan", "flags", "verdicts", "leakage"):
        content.pop(name)
    for row in content["results"]:
        row.pop("starting_loss"), row.pop("late_fall")
    for federation in content["federations"]:
        federation.pop("control_of")
    (tmp_path / "audit.json").write_text(json.dumps(content))
    record = read_record(tmp_path)
    assert (record.threat_model, record.plan, record.flags, record.leakage) == (None, [], [], [])
    assert record.results[0].starting_loss is None
    assert record.schema_version == 2


def test_picture_paths_cannot_leave_the_folder(folder):
    row = read_record(folder).results[0].model_dump()
    for path in ("../secret.png", "/etc/passwd", "images/../x.png", "images/a/b.png", "http://x/images/a.png"):
        with pytest.raises(ValidationError):
            ImageResult.model_validate(row | {"reconstruction": path})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not an audit record"),
        ({"schema_version": 3}, "has schema version 3, and this fl-precode reads versions 1 and 2"),
        ({"schema_version": None}, "has schema version None"),
        ({"schema_version": True}, "has schema version True"),
        ({"title": 3, "extra": 1}, r"was altered or damaged: 2 fields .*title: .*Run the audit again"),
        ({"success_threshold": 7}, "success_threshold: Input should be less than or equal to 1"),
    ],
)
def test_altered_foreign_and_newer_records_are_refused(folder, tmp_path, change, message):
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(json.loads((folder / "audit.json").read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_truncated_records_are_refused(folder, tmp_path):
    path = tmp_path / "audit.json"
    path.write_bytes((folder / "audit.json").read_bytes()[:-20])
    with pytest.raises(ValueError, match="is not complete JSON"):
        read_record(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not an audit record"):
        read_record(path)


def test_the_record_is_immutable(folder):
    record: AuditRecord = read_record(folder)
    with pytest.raises(ValidationError, match="frozen"):
        record.title = "other"  # type: ignore[misc]
