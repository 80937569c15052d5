"""``ro-crate-metadata.json``: the pack as a Process Run Crate, that is an RO-Crate of one run of a program."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from attacker.audit.record.schema import AuditRecord
from attacker.audit.verdict.verdict import title_of
from attacker.report.pack.answers import audited

CRATE_NAME: Final = "ro-crate-metadata.json"
_SPECIFICATION: Final = "https://w3id.org/ro/crate/1.1"
_PROFILE: Final = "https://w3id.org/ro/wfrun/process/0.5"
_OWN_TERMS: Final = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}
"""What the specification's own context does not have."""

_SITE: Final = "https://pypi.org/project/fl-precode/"

_KINDS: Final = {
    ".html": "text/html",
    ".pdf": "application/pdf",
    ".json": "application/json",
    ".yaml": "text/yaml",
    ".csv": "text/csv",
}


def crate(record: AuditRecord, files: Mapping[str, bytes], descriptions: Mapping[str, str]) -> str:
    """The metadata of a pack.

    Args:
        record: The audit.
        files: Everything else in the pack, by name.
        descriptions: What each file is, in a sentence.

    Raises:
        ValueError: If the record's time is none.
    """
    moment = _moment(record)
    names = sorted(files)
    tapes = [_tape(record, one.federation.id) for one in audited(record)]
    graph = [
        {
            "@id": CRATE_NAME,
            "@type": "CreativeWork",
            "conformsTo": {"@id": _SPECIFICATION},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": f"Evidence of a privacy audit: {record.title}",
            "description": "What the updates of federated clients give away of their training images: verdict, "
            "pictures, every result, and what was not tested.",
            "datePublished": moment,
            "license": {"@id": "#terms"},
            "conformsTo": {"@id": _PROFILE},
            "hasPart": _refer(names),
            "mentions": {"@id": "#audit"},
        },
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {
            "@id": "#terms",
            "@type": "CreativeWork",
            "name": "Private",
            "description": "It may show people's images. Treat it like the data that it was made from.",
        },
        _software(record),
        {
            "@id": "#audit",
            "@type": "CreateAction",
            "name": record.title,
            "description": f"Attacks on recorded client updates, seeds {json.dumps(record.seeds, sort_keys=True)}",
            "instrument": {"@id": _SITE},
            "object": _refer([tape["@id"] for tape in tapes]),
            "result": _refer(names),
            "endTime": moment,
            "actionStatus": "http://schema.org/CompletedActionStatus",
        },
        *tapes,
        *(_file(name, files[name], descriptions.get(name, "")) for name in names),
    ]
    content = {"@context": [f"{_SPECIFICATION}/context", _OWN_TERMS], "@graph": graph}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _moment(record: AuditRecord) -> str:
    try:
        return datetime.fromisoformat(record.created).isoformat()
    except ValueError:
        raise ValueError(
            f"audit.json says that it was created at {record.created!r}, which is no time as ISO 8601 writes it; "
            "an RO-Crate needs one. Take the original record"
        ) from None


def _refer(names: list[Any]) -> list[dict[str, Any]]:
    return [{"@id": name} for name in names]


def _software(record: AuditRecord) -> dict[str, Any]:
    version = record.versions.get("fl-precode", "not known")
    return {"@id": _SITE, "@type": "SoftwareApplication", "name": "fl-precode", "version": version, "url": _SITE}


def _tape(record: AuditRecord, identifier: str) -> dict[str, Any]:
    """The updates that were audited, by the digest of what lists them; they are not in the pack."""
    federation = next(one for one in record.federations if one.id == identifier)
    described = {
        "@id": f"#tape-{identifier}",
        "@type": "CreativeWork",
        "name": f"Recorded client updates: {title_of(federation)}",
    }
    if federation.tape_identity is not None:
        described["identifier"] = f"sha256:{federation.tape_identity.sha256}"
    return described


def _file(name: str, content: bytes, description: str) -> dict[str, Any]:
    return {
        "@id": name,
        "@type": "File",
        "name": name,
        "description": description,
        "encodingFormat": _KINDS[name[name.rindex(".") :]],
        "contentSize": str(len(content)),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
