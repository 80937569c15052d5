"""Parts of the audit record about differential privacy: what no attack exceeds, and what canaries refute."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from attacker.audit.record.entry import Count, Entry, Identifier, Number, Share


class CanaryAudit(Entry):
    """What canaries in a federation's updates measured: an epsilon that one round cannot be below."""

    federation: Identifier
    canaries: Count = Field(description="known gradients, each in an update with probability 1/2")
    norm: Number = Field(description="of each")
    round: Count = Field(default=0, description="the only round in which they entered; 0 for every round")
    updates: Count = Field(description="updates that they entered")
    scored: Count = Field(description="canaries of all updates that could be looked for")
    lost: Count = Field(description="canaries of all updates of which no number was returned; they are not counted")
    silent: list[str] = Field(
        description="updates in which the canaries do not show although they do in others: round and client"
    )
    unit: Literal["image", "client"] = Field(description="whom the epsilons are about")
    delta: Number
    mu: Number | None = Field(
        description="separation of canaries that are in and out, over the deviation within, of one canary: the lower "
        "end of its 95 % interval"
    )
    mu_seen: Number | None = Field(description="the same, estimated")
    mu_most: Number | None = Field(description="the same, upper end")
    gaussian: Number | None = Field(
        description="epsilon that is refuted if the noise is Gaussian; null where the defence has no such noise"
    )
    guesses: Count = Field(description="canaries that were guessed to be in or out")
    right: Count = Field(description="of these, guessed right")
    counted: Number | None = Field(description="epsilon that this refutes with 95 % confidence, whatever the noise is")
    epsilon: Number | None = Field(
        description="the lower bound that is stated: by Gaussian noise where there is such, else by the guesses; null "
        "where nothing was measured"
    )
    notes: list[str] = Field(default=[], description="what to know of it")
    reason: str = Field(default="", description="why nothing was measured; empty otherwise")
    codes: list[Identifier] = Field(default=[], description="of reason and notes, as in docs/reference/codes.md")


class AttackBound(Entry):
    """What no attack exceeds on one federation, by what its defence promises, beside what was measured."""

    federation: Identifier
    unit: Literal["image", "client"] | None = Field(description="whom the defence protects; null without a mechanism")
    mu: Number | None = Field(description="of one round: what a unit adds at most, over the deviation of the noise")
    rounds: Count = Field(description="that the attacker sees of one client, at most")
    delta: Number
    claimed: Number | None = Field(description="epsilon of one round by the defence's own settings")
    formula: Number | None = Field(description="epsilon of one round that follows from clip and noise")
    composed: Number | None = Field(description="epsilon of all rounds that follows")
    prior_seen: Share | None = Field(description="share of the victims that the best guess without an update reaches")
    prior: Share | None = Field(description="upper end of its 95 % interval: the prior that the bound goes by")
    most: Share | None = Field(description="share of images that no attack exceeds; null where nothing bounds it")
    attack: str | None = Field(description="spec of the attack whose rate is surest to be high")
    measured: Share | None = Field(description="its rate")
    least: Share | None = Field(description="lower end of its interval, which allows for the number of attacks")
    reason: str = Field(default="", description="why there is no bound; empty otherwise")
    codes: list[Identifier] = Field(default=[], description="of the reason, as in docs/reference/codes.md")
    sentence: str = Field(description="claim, formula, lower bound and upper bound in a line")

    @property
    def exceeded(self) -> bool:
        """Whether an attack did better than any can: an error here, or a promise that is not kept."""
        return self.most is not None and self.least is not None and self.least > self.most
