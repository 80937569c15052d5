"""The audit record: everything that the report says, as versioned JSON; `record_file` reads and writes it.

Numbers are finite or null. JSON has no NaN and no infinity, so a figure that is not finite is null, and ``outcome`` or
another figure says why: a diverged attack has no similarity, and a null ``psnr`` beside ``mse`` 0 means that the images
are identical (an infinite PSNR).
"""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Final = 2

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=80)]
PicturePath = Annotated[str, Field(pattern=r"^images/[a-z0-9][a-z0-9.-]*\.png$", max_length=120)]
Setting = str | int | float | bool | None
OutcomeName = Literal["converged", "iteration_limit", "diverged", "not_applicable", "failed"]
LabelKnowledge = Literal["granted", "recovered"]
Role = Literal["plain", "adaptive"]
PlanStatus = Literal["run", "not_applicable", "refused", "over_budget"]
VerdictName = Literal[
    "leaks", "leaks to an adaptive attacker", "not shown to leak", "held against everything tried", "not known"
]


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
    adaptive: bool = Field(description="true when the attack takes any defence into account")
    answers: list[str] = Field(
        default_factory=list,
        description="names of the defences that it takes into account, or that cannot touch what it works with; empty "
        "in older records, where an adaptive attack counts for every defence",
    )

    def answers_to(self, defence: str) -> bool:
        """Whether the attack takes a part of this defence spec into account."""
        parts = {part.strip().partition(":")[0] for part in defence.split("+")}
        return self.adaptive and (not self.answers or bool(parts & set(self.answers)))


class ThreatModel(Entry):
    """What the attacker is taken to know."""

    name: str = Field(description="of the attacker, in the words of the taxonomy")
    granted: list[str] = Field(description="kinds of knowledge that the attacker has")
    withheld: list[str] = Field(description="kinds that it has not; an attack that needs one is refused")


class PlannedAttack(Entry):
    """One attack that was considered for one federation, and why it was run or not."""

    federation: Identifier
    attack: str
    role: Role = Field(description="adaptive when it answers a part of this federation's defence")
    status: PlanStatus
    reason: str
    updates: Count = Field(description="updates it was planned for")
    iterations: Count | None = Field(description="of one update, null when it does not search")
    expected_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None


class Flag(Entry):
    """A reason to distrust a low score."""

    federation: Identifier
    name: Identifier = Field(description="as in docs/flags.md")
    attack: str | None = Field(description="spec, when it is about one attack")
    sentence: str


class VerdictEntry(Entry):
    """What the audit allows to be said about one federation, by written rules."""

    federation: Identifier
    verdict: VerdictName
    sentence: str
    cautions: list[str]


class InfluenceGroup(Entry):
    """I2F over the victims of one node or one class."""

    group: Literal["node", "class"]
    name: str
    images: Count
    mean: Number = Field(description="RMSE of pixels predicted from the defence's own change of the gradient")
    largest: Number


class LayerLeakage(Entry):
    """Equations that a gradient gives for the input of one layer."""

    name: str
    kind: str
    unknowns: Count
    rank: Count = Field(description="independent equations, counted or computed")


class LeakageSummary(Entry):
    """Leakage indices of one federation's model, computed without reconstructing anything."""

    federation: Identifier
    unknowns: Count = Field(description="numbers in one image")
    jacobian_rank: Count | None = Field(description="of them determined by the gradient, null when not computed")
    unit_rmse: Number | None = Field(description="expected error of pixels for noise of deviation 1 on the gradient")
    solubility: Number | None = Field(description="c(M) of Chen, Campbell; unsound, for comparison")
    layers: list[LayerLeakage]
    influence: list[InfluenceGroup]
    correlation: Number | None = Field(description="Spearman's, of I2F and the measured error; null when not measured")
    correlation_interval: tuple[Number, Number] | None
    reason: str = Field(description="why something is missing; empty otherwise")


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
    control_of: Identifier | None = Field(
        default=None,
        description="set for an undefended control: the federation whose updates it repeats without the defence",
    )


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
    baseline: PicturePath | None = Field(
        default=None, description="the mean training image, a guess that needs no update; absent in older records"
    )


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
    starting_loss: Number | None = Field(
        default=None, description="gradient distance at the start of the search that was kept; null when not measured"
    )
    late_fall: Number | None = Field(
        default=None,
        description="share by which the distance still fell over the last tenth of the search; null when not measured",
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
    schema_version: Literal[2] = SCHEMA_VERSION
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
    threat_model: ThreatModel | None = Field(default=None, description="absent in records before version 2")
    plan: list[PlannedAttack] = Field(default=[], description="absent in records before version 2")
    flags: list[Flag] = Field(default=[], description="absent in records before version 2")
    verdicts: list[VerdictEntry] = Field(default=[], description="absent in records before version 2")
    leakage: list[LeakageSummary] = Field(default=[], description="absent in records before version 2")
