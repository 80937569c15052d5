"""Requirements of supervisors and standards, and an audit's answers: the cross-table of the evidence pack.

A clause is named where its number is known for sure; else the document and the topic stand alone.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any, Final

from attacker.audit.record.csv_file import harmless
from attacker.audit.record.schema import AuditRecord
from attacker.audit.verdict.verdict import title_of
from attacker.report.pack.answers import PROBES, Answer, audited

EDPB: Final = "EDPB Opinion 28/2024"
EDPS: Final = "EDPS TechDispatch 1/2025"
AI_ACT: Final = "EU AI Act (Regulation 2024/1689)"
NIST: Final = "NIST AI 100-2 E2025"
AISVS: Final = "OWASP AISVS 1.0"


@dataclass(frozen=True)
class Requirement:
    """One thing that a document asks.

    Attributes:
        document: Its name.
        clause: Number in it; empty where only the topic is known.
        topic: What it is about.
        probe: How it is answered, by name.
    """

    document: str
    clause: str
    topic: str
    probe: str


REQUIREMENTS: Final = (
    Requirement(EDPB, "paragraph 55", "Tests of a model by reconstruction attacks", "images"),
    Requirement(EDPB, "paragraph 55", "Tests with attacks of the state of the art", "state-of-the-art"),
    Requirement(EDPB, "paragraph 55", "Attribute inference", "labels"),
    Requirement(EDPB, "paragraph 55", "Membership inference", "membership"),
    Requirement(EDPB, "paragraph 55", "Exfiltration, regurgitation of training data and model inversion", "model"),
    Requirement(EDPS, "", "Personal data that leak through model updates", "images"),
    Requirement(EDPS, "", "Sensitive information that gradients or weights give away", "labels"),
    Requirement(EDPS, "", "Membership inference", "membership"),
    Requirement(AI_ACT, "Article 15(5)", "Confidentiality attacks (high-risk systems)", "images"),
    Requirement(
        AI_ACT,
        "Article 15(5)",
        "Data poisoning, model poisoning, adversarial examples, model flaws (high-risk systems)",
        "integrity",
    ),
    Requirement(NIST, "NISTAML.032", "Reconstruction", "images"),
    Requirement(NIST, "NISTAML.033", "Membership inference", "membership"),
    Requirement(NIST, "NISTAML.034", "Property inference", "properties"),
    Requirement(NIST, "NISTAML.031", "Model extraction", "extraction"),
    Requirement(AISVS, "C11.2", "Reconstruction of private training data", "images"),
    Requirement(AISVS, "11.2.4", "Differentially private optimisation for sensitive data", "guarantee"),
    Requirement(AISVS, "11.2.5", "Simulated membership-inference attacks", "membership"),
)
"""In the order of the table. A document that asks more than this audit touches is not covered by its rows here."""

COLUMNS: Final = (
    "document",
    "clause",
    "topic",
    "federation",
    "status",
    "test",
    "criterion",
    "result",
    "date",
    "not_tested",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One requirement, and what the audit says to it for each federation by its title."""

    requirement: Requirement
    date: str
    answers: tuple[tuple[str, Answer], ...]

    @property
    def grouped(self) -> list[tuple[list[str], Answer]]:
        """Each answer once, with the titles of all federations that it is for."""
        titles: dict[Answer, list[str]] = {}
        for title, answer in self.answers:
            titles.setdefault(answer, []).append(title)
        return [(names, answer) for answer, names in titles.items()]


def cross_table(record: AuditRecord) -> list[Row]:
    """All requirements with the answers of a record."""
    ones = audited(record)
    return [
        Row(
            requirement=requirement,
            date=record.created,
            answers=tuple((title_of(one.federation), PROBES[requirement.probe](one)) for one in ones),
        )
        for requirement in REQUIREMENTS
    ]


def _flat(rows: list[Row]) -> list[dict[str, Any]]:
    return [
        {
            "document": row.requirement.document,
            "clause": row.requirement.clause,
            "topic": row.requirement.topic,
            "federation": title,
            "status": answer.status,
            "test": answer.test,
            "criterion": answer.criterion,
            "result": answer.result,
            "date": row.date,
            "not_tested": answer.not_tested,
        }
        for row in rows
        for title, answer in row.answers
    ]


def as_csv(rows: list[Row]) -> str:
    """One line for each requirement and federation; cells that a spreadsheet would run are text."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in _flat(rows):
        writer.writerow({name: harmless(str(value)) for name, value in line.items()})
    return text.getvalue()


def as_json(rows: list[Row]) -> str:
    """The same lines as JSON."""
    return json.dumps({"format": "fl-precode-requirements", "rows": _flat(rows)}, indent=1, ensure_ascii=False) + "\n"
