"""Parts of the audit record that say what a result is worth: threat model, plan, flags, verdicts, leakage indices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from attacker.audit.record.entry import (
    Count,
    Entry,
    Identifier,
    LineState,
    Number,
    PlanStatus,
    Role,
    Share,
    VerdictName,
)
from attacker.reasons import Reason


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
    unanswerable: bool = Field(
        default=False,
        description="whether no search here answers these updates within ten times the budget; absent in older records",
    )
    mends: list[Identifier] = Field(
        default=[],
        description="what would let it run, by the codes of docs/reference/assumptions.md; absent in older records",
    )
    reason_codes: list[Identifier] = Field(
        default=[],
        description="of the reason, as in docs/reference/codes.md, that of the whole first; absent in older records",
    )

    @property
    def why(self) -> Reason:
        """The reason with its codes."""
        return Reason(self.reason, *self.reason_codes)

    def replanned(self, reason: Reason, **changes: object) -> PlannedAttack:
        """The same with another reason, and other changes."""
        return self.model_copy(update={**changes, "reason": str(reason), "reason_codes": list(reason.codes)})


class AssumptionEntry(Entry):
    """What was taken to be so about a federation's updates because nobody said it."""

    code: Identifier = Field(description="as in docs/reference/assumptions.md")
    sentence: str
    doubt: str = Field(description="what would show it wrong")
    line: str = Field(default="", description="the line for the notes beside the tape that settles it; may be empty")
    updates: Count = Field(description="attacked updates about which it is assumed")


class Flag(Entry):
    """A reason to distrust a low score."""

    federation: Identifier
    name: Identifier = Field(description="as in docs/reference/flags.md")
    attack: str | None = Field(description="spec, when it is about one attack")
    sentence: str
    weak: bool = Field(default=True, description="whether it alone forbids to say that the defence held")


class VerdictLine(Entry):
    """What an audit shows of one thing that may be disclosed, apart from the others: images, labels, or guarantees."""

    subject: Literal["images", "labels", "guarantees"]
    state: LineState
    sentence: str = Field(description="number, interval and comparison with the best guess, in plain words")
    seen: Count | None = Field(default=None, description="images reconstructed, or updates with all labels read right")
    cases: Count | None = Field(default=None, description="of so many; null where nothing could be compared")
    interval: tuple[Share, Share] | None = Field(
        default=None, description="95 % interval of the share (Clopper-Pearson), by independent trials"
    )
    guess: Share | None = Field(default=None, description="share of them that the best guess without an update has")
    p_value: Share | None = Field(default=None, description="of a test against that guess, where one was made")
    identified: Count | None = Field(
        default=None,
        description="images whose true one an attack put first among candidates, by more than chance; null where none "
        "had candidates, for labels and guarantees, and in older records",
    )
    identified_of: Count | None = Field(default=None, description="images that had candidates")
    identified_interval: tuple[Share, Share] | None = Field(default=None, description="as interval, of that share")
    identified_chance: Share | None = Field(
        default=None,
        description="probability, at most, that pictures which say nothing are first as often in any comparison",
    )
    reason: str = Field(default="", description="why a result that shows nothing is no protection; empty otherwise")
    attacks: Count = Field(
        default=0, description="that gave a result on images; when, and what they cost, stands in created and summaries"
    )


class VerdictEntry(Entry):
    """What the audit allows to be said about one federation, by written rules."""

    federation: Identifier
    verdict: VerdictName
    sentence: str
    cautions: list[str]
    lines: list[VerdictLine] = Field(
        default=[], description="the same in three lines that do not mix; absent in older records"
    )


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


class PositionLeakage(Entry):
    """Patches of one image that the gradient of a position embedding determines by one linear system."""

    positions: str = Field(description="name of the position embedding")
    layer: str = Field(description="that sees the patches")
    patches: Count = Field(description="of one image")
    width: Count = Field(description="numbers of a token")
    rank: Count = Field(description="patches that are determined; all where it is as large as their number")

    @property
    def exact(self) -> bool:
        """Whether one image is exactly determined."""
        return self.rank == self.patches


class SpanLeakage(Entry):
    """Images of one batch that two stacked layers take apart."""

    first: str = Field(description="layer whose inputs are found")
    second: str = Field(description="layer behind the activation")
    activation: str
    tokens: bool = Field(description="whether they see the tokens of a transformer's block; else images")
    each: Count = Field(description="vectors of one image")
    most: Count = Field(description="vectors that are taken apart at most, by the widths of the layers")
    rank: Count = Field(description="directions that one image has; fewer than its vectors where these are alike")

    @property
    def images(self) -> int:
        """Images of a batch that are exactly determined together, at most."""
        return self.most // max(1, self.each)


class NoiseAttack(Entry):
    """A search with a prior on updates under noise at which an attacker without one is expected to see nothing."""

    std: Number = Field(description="standard deviation of the Gaussian noise on each number of the update")
    expected_rmse: Number = Field(description="error at it that E-I2F foresees for an attacker without a prior")
    iterations: Count = Field(description="of each search")
    ssim: list[Number | None] = Field(
        description="of each image that was tried, by the best of several weights of the prior; null when diverged"
    )
    reason: str = Field(description="why nothing was tried; empty otherwise")


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
    noise_attack: NoiseAttack | None = Field(
        default=None, description="what an attacker with a prior makes of noise; absent in older records"
    )
    reason_codes: list[Identifier] = Field(
        default=[], description="of the reason, as in docs/reference/codes.md; absent in older records"
    )
    positions: PositionLeakage | None = Field(
        default=None,
        description="patches of one image that its positions determine, also where the rank is not computed; null "
        "where the model has no such positions, and in older records",
    )
    spans: list[SpanLeakage] = Field(
        default=[], description="pairs of layers that take batches apart; absent in older records"
    )


class UpdateReading(Entry):
    """What one update says by itself, without any attack that searches."""

    round: Count
    node: str
    images: Count | None = Field(description="behind it, null when not revealed")
    steps: Count | None = Field(description="local steps behind it, null when not announced")
    numbers: Count = Field(description="in it")
    norm: Number | None = Field(description="L2 norm of the update")
    statistics: Count = Field(description="normalisation layers whose running means of features are on the tape")
    batch_statistics: Count = Field(
        default=0,
        description="of these layers, those whose exact mean and variance over the client's one batch follow from what "
        "was returned; absent in older records",
    )
    at_least: list[Count] = Field(
        description="images of each class that there are at least, by plain SGD on cross-entropy; empty where not known"
    )
    why_no_labels: str = Field(description="why not; empty otherwise")
    why_codes: list[Identifier] = Field(
        default=[], description="of it, as in docs/reference/codes.md; absent in older records"
    )


class HeadReading(Entry):
    """The features of an update's images, which the gradient of a head behind a frozen trunk tells."""

    round: Count
    node: str
    layer: str = Field(description="that they enter: the first that was trained")
    images: Count = Field(description="behind the update")
    known: Count = Field(description="of them those whose features are known to 1 %")
    residual: Number | None = Field(description="relative error of the equations that they solve")
    labels: Count = Field(description="images whose class was read with the features")
    candidates: Count = Field(description="true images that they were compared with; 0 without a truth")
    identified: Count = Field(description="images of the update that are nearest to features that were found")


class TapeSampling(Entry):
    """How many updates the server received, of a tape that keeps some of them."""

    seen: Count = Field(description="updates that the server received")
    by: str = Field(description="what chose those that were kept, as a spec of the Interceptor's sampling")


class UpdateFacts(Entry):
    """What the audit measured about the updates that it attacked, beside attacking them."""

    random: bool | None = Field(
        description="whether the replayed gradient differs between calls on equal images; null when not replayed"
    )
    buffers_withheld: bool = Field(description="whether normalisation statistics of the model are not on the tape")
    steps: Count | None = Field(description="most local steps behind one update; null when not announced")
    noise_floors: dict[str, Number] = Field(
        default={},
        description="by name of a gradient distance, how far the announced noise alone keeps the true images from "
        "their update, the median; empty without noise, where that is not known, and in older records",
    )
    readings: list[UpdateReading] = Field(
        default=[], description="of updates that no search answers; absent in older records"
    )
    head_readings: list[HeadReading] = Field(
        default=[], description="of the first updates of clients that train a head alone; absent in older records"
    )


class TapeIdentity(Entry):
    """What tells the audited tape from any other."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the header and the manifest, which lists the SHA-256 of every update"
    )
    manifest_bytes: Count = Field(description="length of the manifest when it was audited; a tape may grow")


class PrivacySpent(Entry):
    """What differential privacy the federation's clients have spent, for one example of the one that spent most."""

    epsilon: Number | None = Field(description="null where there is none; the note says why")
    delta: Number
    note: str = Field(description="what the figure assumes, or why there is none")


class PrivacyGuarantee(Entry):
    """What a mechanism's formula gives one image, or one client with all of its images."""

    level: Literal["image", "client"]
    a_round: Number | None = Field(description="epsilon of one round; null where there is none, as the note says")
    composed: Number | None = Field(description="epsilon of all rounds; null likewise")
    delta: Number = Field(description="at which both hold")
    sensitivity: Number | None = Field(description="how far an image or a client moves what gets the noise")
    noise_multiplier: Number | None = Field(description="Gaussian noise over that; null for other noise")
    classical: Number | None = Field(
        description="what the classical formula of the Gaussian mechanism gives for one round, proved for up to 1 only"
    )
    note: str = Field(description="what it assumes, or why there is none")


class PrivacyClaims(Entry):
    """What differential privacy a defence claims, beside what its formula gives."""

    claimed_epsilon: Number | None = Field(description="of one round; null where nothing is claimed")
    claimed_delta: Number | None
    claimed_sensitivity: Number | None = Field(description="that the noise was computed for")
    guarantees: list[PrivacyGuarantee] = Field(description="empty where the defence is no mechanism")
    holds: bool = Field(description="whether they hold against the server that is audited")
    why_not: str = Field(description="why they do not, or why there are none; empty where they hold")
    notes: list[str] = Field(description="sentences on the claim and on what is assumed")


class ControlRound(Entry):
    """How well trained an undefended control is, at the weights of one round; mean cross-entropy in nats."""

    round: Count
    defended_loss: Number | None = Field(description="of the defended model; null when not finite")
    cut_loss: Number | None = Field(description="of the control as it was without the defence's own layers")
    loss: Number | None = Field(description="of the control that was attacked")
    steps: Count = Field(description="of training without the defence between the two")
