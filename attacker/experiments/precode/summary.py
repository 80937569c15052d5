"""The experiment in figures: one JSON that the page and the table are made from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from attacker.audit.record.schema import Count, Entry, Machine, Number, Setting, Share
from attacker.experiments.cells import Point


class Score(Entry):
    """Success over the victims that were attacked."""

    victims: Count = Field(description="images attacked, without those that the attack does not fit")
    not_applicable: Count
    failed: Count = Field(description="raised or diverged; they count as not reconstructed")
    successes: Count = Field(description="images that were reconstructed, beyond the threshold and the best guess")
    rate: Share | None = Field(description="null when the attack fits no victim")
    interval: tuple[Share, Share] | None = Field(description="95 % interval of the rate (Clopper-Pearson)")
    ssim: Number | None = Field(description="mean")
    psnr: Number | None = Field(description="mean in dB, each at most 100")
    mse: Number | None = Field(description="mean")


class AttackScore(Entry):
    """One attack in one state of the model."""

    attack: str
    adaptive: bool
    score: Score
    seconds: Number
    reasons: list[str]


class SetupState(Entry):
    """The model at one moment of its training, attacked."""

    epoch: Count = Field(description="0 is the untrained model")
    baseline: Score = Field(description="the best guess without the update, counted from the threshold on")
    attacks: list[AttackScore]
    best_by_own_measure: Score = Field(description="per client the image whose update fits best; needs no truth")
    best_by_ssim: Score = Field(description="per client the best of all attacks by SSIM: an oracle, the upper bound")


class Curve(Entry):
    """Accuracy on the test images."""

    points: list[Point]
    final: Share | None
    interval: tuple[Share, Share] | None = Field(
        description="95 % interval (Clopper-Pearson) for the number of test images"
    )
    note: str
    seconds: Number


class SetupSummary(Entry):
    """A defended model on an image set."""

    data: str
    model: str
    defence: str
    parameters: Count
    parameters_undefended: Count
    payload_bytes: Count
    payload_bytes_undefended: Count
    client_seconds: Number = Field(description="CPU of one client's defended gradient of one image")
    epsilon: Number | None
    epsilon_note: str = Field(default="", description="what epsilon assumes, or why there is none")
    central: Curve
    federated: Curve | None = Field(description="null where no federation was run")
    states: list[SetupState]


Assumption = Literal["plain", "adaptive", "none tried", "cannot tell"]


class Fall(Entry):
    """Under which assumption a defence falls, the weakest first."""

    data: str
    model: str
    defence: str
    assumption: Assumption
    attack: str
    epoch: Count
    score: Score | None
    sentence: str


class DataSummary(Entry):
    """An image set."""

    name: str
    shape: tuple[int, int, int]
    classes: Count
    train: Count
    test: Count
    most_frequent: Share = Field(description="accuracy of always naming the most frequent class of the test images")


class LeftOutSetup(Entry):
    """A combination that does not exist."""

    data: str
    model: str
    defence: str
    reason: str


class Summary(Entry):
    """The whole experiment."""

    format: Literal["fl-precode-reproduction"] = "fl-precode-reproduction"
    version: Literal[1] = 1
    created: str
    scale: str
    success_threshold: Share
    settings: dict[str, Setting]
    versions: dict[str, str]
    machine: Machine
    notes: list[str]
    data: list[DataSummary]
    setups: list[SetupSummary]
    falls: list[Fall]
    left_out: list[LeftOutSetup]
    seconds: Number = Field(description="of all cells, by the clock, one after another")
