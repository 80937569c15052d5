"""The audit record: everything that the report says, as versioned JSON; `json_file` reads and writes it.

Numbers are finite or null. JSON has no NaN and no infinity, so a figure that is not finite is null, and ``outcome`` or
another figure says why: a diverged attack has no similarity, and a null ``psnr`` beside ``mse`` 0 means that the images
are identical (an infinite PSNR).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from attacker.audit.record.channels import ReplyChannel
from attacker.audit.record.entry import (
    Count,
    Entry,
    Identifier,
    LabelKnowledge,
    LossNamedBy,
    Number,
    OutcomeName,
    PicturePath,
    PlanStatus,
    Role,
    Setting,
    Share,
    VerdictName,
    finite,
)
from attacker.audit.record.evidence import (
    AssumptionEntry,
    ControlRound,
    Flag,
    HeadReading,
    InfluenceGroup,
    LayerLeakage,
    LeakageSummary,
    NoiseAttack,
    PlannedAttack,
    PositionLeakage,
    PrivacyClaims,
    PrivacyGuarantee,
    PrivacySpent,
    SpanLeakage,
    TapeIdentity,
    TapeSampling,
    ThreatModel,
    UpdateFacts,
    UpdateReading,
    VerdictEntry,
    VerdictLine,
)
from attacker.audit.record.group_entries import DisclosedGroup, GroupDisclosure, GroupShare
from attacker.audit.record.labels import LabelDisclosure, LabelReading
from attacker.audit.record.privacy import AttackBound, CanaryAudit
from fl_precode.spec import split_parts

__all__ = [
    "SCHEMA_VERSION",
    "AssumptionEntry",
    "AttackBound",
    "AttackDescription",
    "AttackSummary",
    "AuditRecord",
    "CanaryAudit",
    "ControlRound",
    "Count",
    "DisclosedGroup",
    "Entry",
    "FederationSummary",
    "Flag",
    "GroupDisclosure",
    "GroupShare",
    "HeadReading",
    "Identifier",
    "ImageResult",
    "InfluenceGroup",
    "LabelDisclosure",
    "LabelKnowledge",
    "LabelReading",
    "LayerLeakage",
    "LeakageSummary",
    "LeftOut",
    "LossNamedBy",
    "Machine",
    "NoiseAttack",
    "Number",
    "OutcomeName",
    "PicturePath",
    "PlanStatus",
    "PlannedAttack",
    "PositionLeakage",
    "PrivacyClaims",
    "PrivacyGuarantee",
    "PrivacySpent",
    "ReplyChannel",
    "Role",
    "RankSummary",
    "RoundResult",
    "Setting",
    "Share",
    "SpanLeakage",
    "TapeIdentity",
    "TapeSampling",
    "ThreatModel",
    "UpdateFacts",
    "UpdateReading",
    "VerdictEntry",
    "VerdictLine",
    "VerdictName",
    "VictimImage",
    "finite",
    "parts_of",
]

SCHEMA_VERSION: Final = 2


class Machine(Entry):
    """The computer that ran the audit."""

    cpu: str
    cores: Count
    memory_bytes: Count
    gpus: list[str]


def parts_of(defence: str) -> set[str]:
    """Names of the parts of a defence spec, without those that do nothing.

    >>> sorted(parts_of("none+precode:latent=8 + noise:std=1e+2"))
    ['noise', 'precode']
    """
    return {part.partition(":")[0] for part in split_parts(defence)} - {"none", ""}


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

    oblivious: bool = Field(
        default=False,
        description="true when it answers defences only because they cannot touch what it works with",
    )

    def answers_to(self, defence: str) -> bool:
        """Whether the attack takes a part of this defence spec into account."""
        parts = parts_of(defence)
        return self.adaptive and (not self.answers or bool(parts & set(self.answers)))

    def answers_whole(self, defence: str) -> bool:
        """Whether the attack takes every part of this defence spec into account; nobody knows an unannounced one."""
        parts = parts_of(defence)
        return self.adaptive and "unknown" not in parts and (not self.answers or parts <= set(self.answers))


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
    sampled: TapeSampling | None = Field(
        default=None, description="of a tape that keeps some of the updates; null where it keeps all"
    )
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
    not_announced: list[str] = Field(
        default=[],
        description="what the updates show that was not announced and that honest clients can show as well; absent in "
        "older records",
    )
    lost: Count | None = Field(description="tape entries that could not be written, null when not known")
    truth_known: bool
    truth_note: str = Field(description="why there is no truth, or none of some updates; empty when there is")
    labels: LabelKnowledge = Field(description="whether the attacker was given the labels")
    settings: dict[str, Setting] = Field(description="run-config of the federation, as far as it is known")
    control_of: Identifier | None = Field(
        default=None,
        description="set for an undefended control: the federation whose updates it repeats without the defence",
    )
    tape_identity: TapeIdentity | None = Field(default=None, description="absent in older records and for controls")
    facts: UpdateFacts | None = Field(default=None, description="absent in older records")
    loss: str | None = Field(
        default=None, description="name of the loss that was replayed; null for cross-entropy, and in older records"
    )
    loss_named_by: LossNamedBy | None = Field(
        default=None,
        description="who named that loss: the tape or the notes beside it, the auditor, or nobody, so that it is "
        "assumed; null where no loss can be replayed, and in older records",
    )
    assumptions: list[AssumptionEntry] = Field(
        default=[], description="what was guessed about the updates; absent in older records"
    )
    control_training: list[ControlRound] = Field(
        default=[],
        description="for a control of a defence with own layers: how well trained it is; absent in older records",
    )
    noise_from_seed: bool = Field(
        default=False, description="whether the defence's noise can be drawn again from the run configuration's seed"
    )
    privacy: PrivacySpent | None = Field(
        default=None, description="by the run's result.json; null without DP-SGD and in older records"
    )
    claims: PrivacyClaims | None = Field(
        default=None,
        description="what differential privacy is claimed, and what the formula gives; null without a defence that "
        "anybody announced, and in older records",
    )
    statistics: Count = Field(
        default=0,
        description="layers of the model with running statistics, which leave a client beside what most defences "
        "protect; 0 in older records",
    )
    truth_codes: list[Identifier] = Field(
        default=[], description="of truth_note, as in docs/reference/codes.md; absent in older records"
    )
    doubt_codes: list[Identifier] = Field(
        default=[], description="of all doubts, as in docs/reference/codes.md; absent in older records"
    )
    not_announced_codes: list[Identifier] = Field(
        default=[], description="of all that was not announced, as in docs/reference/codes.md; absent in older records"
    )
    identification_note: str = Field(
        default="", description="what identification lacks, and why; empty where nothing, and in older records"
    )
    identification_codes: list[Identifier] = Field(
        default=[], description="of it, as in docs/reference/codes.md; absent in older records"
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
    guess: PicturePath | None = Field(
        default=None, description="the best guess at this image without any update; absent in older records"
    )
    guess_ssim: Number | None = Field(default=None, description="its SSIM against the truth")
    guess_name: str = Field(default="", description="which guess it is")
    same_as: Identifier | None = Field(
        default=None, description="the first victim of this federation with the same image; null for a first one"
    )
    groups: dict[str, str] = Field(
        default={}, description="column of the data set to the image's group there; absent in older records"
    )


class ImageScore(Entry):
    """What one attack made of one image, beside the truth and the best guess: in records, and in experiments."""

    outcome: OutcomeName
    reason: str
    ssim: Number | None = Field(description="against the truth, images in [0, 1]")
    psnr: Number | None = Field(description="dB, data range 1; null with mse 0 means identical images")
    mse: Number | None
    baseline_ssim: Number | None = Field(description="SSIM of the mean training image against the truth")
    guess_ssim: Number | None = Field(
        default=None,
        description="SSIM of the best guess without this update; null without truth and in older records",
    )
    guess: str = Field(default="", description="which guess that is; empty without truth and in older records")
    reason_codes: list[Identifier] = Field(
        default=[],
        description="of the reason, as in docs/reference/codes.md, that of the whole first; absent in older records",
    )


class ImageResult(ImageScore):
    """What one attack made of one image of an audit."""

    victim_id: Identifier
    federation: Identifier
    attack: str
    model: str
    defence: str
    dataset: str | None
    round: Count
    node: str
    image: Count
    label_accuracy: Share | None = Field(
        description="right labels in this batch; null when the attack used labels that it was granted"
    )
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
    cut: bool = Field(
        default=False,
        description="whether the budget ended it, so that the best until then was kept; absent in older records",
    )
    starts: Count | None = Field(
        default=None, description="starts that a search compared; 0 when it does not search, null in older records"
    )
    recovered_label: Count | None = Field(
        default=None,
        description="class that the attack used for this image; null when it used none, when images were put in the "
        "order of the truth, and in older records",
    )
    candidates: Count | None = Field(
        default=None,
        description="images that the reconstruction could be taken for, the true one included; null without truth or "
        "other images, and in older records",
    )
    candidates_of_class: Count | None = Field(default=None, description="of them, those of the true image's class")
    rank: Number | None = Field(
        default=None,
        description="place of the true image among them by pixels, from 1, the mean of those that it shares; null "
        "without a picture",
    )
    rank_tied: Count | None = Field(default=None, description="other candidates that are as near")
    rank_chance: Share | None = Field(
        default=None, description="probability, at most, of such a place or a better one by a picture that says nothing"
    )
    identified: bool | None = Field(
        default=None,
        description="whether the true image is first alone, and chance would make as many images of the attack first "
        "with a probability below 0.001, and at most a twentieth of them in the mean",
    )
    feature_distance: Number | None = Field(
        default=None, description="LPIPS-like distance from the true image, null without the extra identification"
    )
    feature_rank: Number | None = Field(default=None, description="as rank, by that distance")
    feature_tied: Count | None = Field(default=None, description="as rank_tied, by that distance")
    feature_chance: Share | None = Field(default=None, description="as rank_chance, by that distance")
    feature_identified: bool | None = Field(default=None, description="as identified, by that distance")


class RankSummary(Entry):
    """How well one attack's reconstructions name their images among candidates, by one measure of distance."""

    measure: Literal["pixels", "features"]
    images: Count = Field(description="with candidates; those without a picture are not identified, and counted")
    candidates: Count = Field(description="of each image, the true one included; the fewest where they differ")
    first: Number = Field(description="images that are first; one that shares the place counts with its share of it")
    first_interval: tuple[Share, Share] = Field(
        description="95 % interval of the share of images that are first (Clopper, Pearson), by independent trials as "
        "that of the success rate"
    )
    among_five: Number = Field(description="images that are among the first five, likewise")
    among_five_interval: tuple[Share, Share]
    median_rank: Number | None = Field(description="of those with a picture; null without any")
    identified: Count
    expected: Number = Field(description="images that would be first by chance, where an update has one image")
    chance: Share = Field(
        description="probability, at most, that as many images are first by pictures that say nothing; it allows for "
        "several images of an update"
    )


class AttackSummary(Entry):
    """Success of one attack on one federation, over the images it could be tried on."""

    federation: Identifier
    attack: str
    images: Count = Field(description="images attacked, without those the attack does not fit")
    not_applicable: Count
    failed: Count = Field(description="images on which the attack raised or diverged; they count as not reconstructed")
    reasons: list[str] = Field(description="different reasons for not applicable and failed")
    successes: Count | None = Field(
        description="reconstructed images: SSIM at or above the threshold, and beyond the best guess; null without "
        "truth"
    )
    success_rate: Share | None
    interval: tuple[Share, Share] | None = Field(
        description="95 % interval of the success rate (Clopper-Pearson), by independent trials: images of one update "
        "are one, equal images are one"
    )
    mean_ssim: Number | None
    median_ssim: Number | None
    baseline_successes: Count | None = Field(
        description="images on which the mean training image alone reaches the threshold"
    )
    guess_successes: Count | None = Field(
        default=None,
        description="images on which the best guess without the update reaches the threshold; absent in older records",
    )
    label_accuracy: Share | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    reason_codes: list[Identifier] = Field(
        default=[],
        description="of all reasons, as in docs/reference/codes.md, in the alphabet; absent in older records",
    )
    identification: list[RankSummary] = Field(
        default=[], description="by pixels, and by features where these were compared; absent in older records"
    )


class AuditRecord(Entry):
    """The whole audit of one or more federations."""

    format: Literal["fl-precode-audit"] = "fl-precode-audit"
    schema_version: Literal[2] = SCHEMA_VERSION
    created: str = Field(description="ISO 8601, UTC")
    title: str
    success_threshold: Share = Field(description="an image counts as reconstructed when its SSIM is at least this")
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
    canaries: list[CanaryAudit] = Field(
        default=[], description="lower bounds of epsilon, of federations with canaries; absent in older records"
    )
    bounds: list[AttackBound] = Field(
        default=[],
        description="what no attack exceeds, of federations whose defence is a mechanism of differential privacy or "
        "that have canaries; absent in older records",
    )
    label_disclosures: list[LabelDisclosure] = Field(
        default=[], description="what updates disclose of their labels, by federation; absent in older records"
    )
    channels: list[ReplyChannel] = Field(
        default=[], description="what replies hold in clear beside the update; absent in older records"
    )
    group_disclosures: list[GroupDisclosure] = Field(
        default=[],
        description="what was disclosed by class, client and column of the data set, of federations with known true "
        "images; absent in older records",
    )
