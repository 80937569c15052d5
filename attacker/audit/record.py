"""The audit record: everything that the report says, as versioned JSON.

Numbers are finite or null. JSON has no NaN and no infinity, so a figure that is not finite is null, and ``outcome`` or
another figure says why: a diverged attack has no similarity, and a null ``psnr`` beside ``mse`` 0 means that the images
are identical (an infinite PSNR).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fl_precode.private_file import write_private

SCHEMA_VERSION: Final = 1
SCHEMA_FILE: Final = Path(__file__).parent / "schema" / f"audit-{SCHEMA_VERSION}.schema.json"
RECORD_NAME: Final = "audit.json"

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)]
PicturePath = Annotated[str, Field(pattern=r"^images/[a-z0-9][a-z0-9.-]*\.png$", max_length=120)]
Setting = str | int | float | bool | None
OutcomeName = Literal["converged", "iteration_limit", "diverged", "not_applicable", "failed"]
LabelKnowledge = Literal["granted", "recovered"]


def finite(value: float | None) -> float | None:
    """The value as a JSON number, or None where it is None, NaN or infinite.

    >>> finite(float("inf")) is None, finite(0.5)
    (True, 0.5)
    """
    return float(value) if value is not None and math.isfinite(value) else None


class Entry(BaseModel):
    """A part of the record: immutable, and no unknown field is let in."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Entry):
    """The computer that ran the audit."""

    cpu: str
    cores: Count
    memory_bytes: Count
    gpus: list[str]


class AttackDescription(Entry):
    """An attack as it was asked for."""

    spec: str = Field(description="name and settings, as given")
    description: str
    adaptive: bool = Field(description="true when the attack takes the defence into account")


class RoundResult(Entry):
    """Central evaluation after one round."""

    round: Count
    accuracy: Share | None
    loss: Number | None = Field(description="mean loss on the test images, nats")
    usable: Count | None = Field(description="client replies that went into the aggregate")


class LeftOut(Entry):
    """A reply of a client that was not usable."""

    round: Count
    node: str
    reason: str


class FederationSummary(Entry):
    """One audited federation, that is one tape."""

    id: Identifier
    tape: str = Field(description="folder that was audited")
    model: str
    defence: str
    dataset: str | None
    shape: tuple[int, int, int] = Field(description="channels, height, width of the images")
    classes: Count
    protocol: str
    local_steps: int | None
    local_epochs: int | None
    learning_rate: Number | None
    batch_size: int | None = Field(
        description="distinct images behind one update, null when not revealed or not the same for all"
    )
    rounds: Count = Field(description="rounds with an update on the tape")
    clients: Count = Field(description="different nodes on the tape")
    updates: Count = Field(description="client updates on the tape")
    accuracy: list[RoundResult]
    final_accuracy: Share | None
    final_loss: Number | None
    parameters: Count = Field(description="trainable numbers in the model, defence included")
    parameters_undefended: Count
    payload_bytes: Count = Field(description="bytes of tensors that one client sends in one round")
    payload_bytes_undefended: Count
    left_out: list[LeftOut]
    tape_problems: list[str]
    doubts: list[str] = Field(
        default=[], description="what the updates show against the announced defence; absent in older records"
    )
    lost: Count | None = Field(description="tape entries that could not be written, null when not known")
    truth_known: bool
    truth_note: str = Field(description="why there is no truth; empty when there is")
    labels: LabelKnowledge = Field(description="whether the attacker was given the labels")
    settings: dict[str, Setting] = Field(description="run-config of the federation, as far as it is known")


class VictimImage(Entry):
    """One image that was attacked. Its picture is the truth: evaluation only."""

    id: Identifier
    federation: Identifier
    round: Count
    node: str
    image: Count = Field(description="place in the batch")
    label: int | None
    label_name: str | None
    truth: PicturePath | None


class ImageResult(Entry):
    """What one attack made of one image."""

    victim_id: Identifier
    federation: Identifier
    attack: str
    model: str
    defence: str
    dataset: str | None
    round: Count
    node: str
    image: Count
    outcome: OutcomeName
    reason: str
    ssim: Number | None = Field(description="against the truth, images in [0, 1]")
    psnr: Number | None = Field(description="dB, data range 1; null with mse 0 means identical images")
    mse: Number | None
    baseline_ssim: Number | None = Field(description="SSIM of the mean training image against the truth")
    label_accuracy: Share | None = Field(description="right labels in this batch; null when labels were granted")
    matching_loss: Number | None = Field(description="gradient distance without priors; null when not measured")
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(description="this image's share of wall time")
    iterations: Count
    reconstruction: PicturePath | None
    method: str = Field(
        default="", description="the attack of a portfolio that found it; empty otherwise, and in older records"
    )


class AttackSummary(Entry):
    """Success of one attack on one federation, over the images it could be tried on."""

    federation: Identifier
    attack: str
    images: Count = Field(description="images attacked, without those the attack does not fit")
    not_applicable: Count
    failed: Count = Field(description="images on which the attack raised or diverged; they count as not come back")
    reasons: list[str] = Field(description="different reasons for not applicable and failed")
    successes: Count | None = Field(description="images with SSIM at or above the threshold; null without truth")
    success_rate: Share | None
    interval: tuple[Share, Share] | None = Field(description="95 % Wilson interval of the success rate")
    mean_ssim: Number | None
    median_ssim: Number | None
    baseline_successes: Count | None = Field(
        description="images on which the mean training image alone reaches the threshold"
    )
    label_accuracy: Share | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AuditRecord(Entry):
    """The whole audit of one or more federations."""

    format: Literal["fl-precode-audit"] = "fl-precode-audit"
    schema_version: Literal[1] = 1
    created: str = Field(description="ISO 8601, UTC")
    title: str
    success_threshold: Share = Field(description="an image came back when its SSIM is at least this")
    settings: dict[str, Setting]
    seeds: dict[str, int]
    versions: dict[str, str]
    machine: Machine
    attacks: list[AttackDescription]
    federations: list[FederationSummary]
    victims: list[VictimImage]
    results: list[ImageResult]
    summaries: list[AttackSummary]


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
    """Read an ``audit.json``.

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
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema version {version!r}, and this fl-precode reads version {SCHEMA_VERSION}. "
            "Use the fl-precode version that wrote it (see 'versions' in the file), or run the audit again."
        )
    try:
        return AuditRecord.model_validate_json(json.dumps(content))
    except ValidationError as error:
        places = [f"{'.'.join(map(str, one['loc'])) or 'record'}: {one['msg']}" for one in error.errors()[:3]]
        raise ValueError(
            f"{path} was altered or damaged: {error.error_count()} fields do not fit the schema ({'; '.join(places)}). "
            "Run the audit again, or take the original file."
        ) from error
