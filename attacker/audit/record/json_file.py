"""Reads and writes ``audit.json``, the file of the audit record, and gives its schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from attacker.audit.record.schema import SCHEMA_VERSION, AuditRecord
from fl_precode.private_file import write_private

SCHEMA_FILE: Final = Path(__file__).parent / "json_schema" / f"audit-{SCHEMA_VERSION}.schema.json"
RECORD_NAME: Final = "audit.json"
READ_VERSIONS: Final = (1, SCHEMA_VERSION)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the record, equal to the file that the package ships."""
    schema = AuditRecord.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_record(record: AuditRecord, folder: Path) -> Path:
    """Write ``audit.json`` into the folder, at once or not at all, readable by its owner only.

    Raises:
        OSError: If the folder cannot be written.
    """
    path = folder / RECORD_NAME
    write_private(path, (record.model_dump_json(indent=1) + "\n").encode())
    return path


def read_record(path: Path) -> AuditRecord:
    """Read an ``audit.json``; one of an older version is read as one of this version.

    Raises:
        ValueError: If the file is no audit record, is damaged, or has another schema version; the text says which
            and what to do.
        OSError: If there is no such file or it cannot be read.
    """
    if path.is_dir():
        path = path / RECORD_NAME
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not complete JSON ({error}). An audit record is written by `fl-precode audit`; "
            "this file was cut short or is something else."
        ) from error
    if not isinstance(content, dict) or content.get("format") != "fl-precode-audit":
        raise ValueError(f"{path} is not an audit record: expected the audit.json that `fl-precode audit` writes")
    version = content.get("schema_version")
    if isinstance(version, bool) or version not in READ_VERSIONS:  # True is 1
        raise ValueError(
            f"{path} has schema version {version!r}, and this fl-precode reads versions "
            f"{' and '.join(map(str, READ_VERSIONS))}. "
            "Use the fl-precode version that wrote it (see 'versions' in the file), or run the audit again."
        )
    # What version 2 added has defaults that say "not known".
    content["schema_version"] = SCHEMA_VERSION
    try:
        return AuditRecord.model_validate_json(json.dumps(content))
    except ValidationError as error:
        places = [
            f"{'.'.join(map(str, problem['loc'])) or 'record'}: {problem['msg']}" for problem in error.errors()[:3]
        ]
        raise ValueError(
            f"{path} was altered or damaged: {error.error_count()} fields do not fit the schema ({'; '.join(places)}). "
            "Run the audit again, or take the original file."
        ) from error
