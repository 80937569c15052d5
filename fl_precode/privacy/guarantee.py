"""Guarantee of a defence by formula, beside its claim: for one image and for one client, a round and all."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal

from fl_precode.privacy.accountant import ACCOUNTANT, GaussianReleases, composed_pure
from fl_precode.privacy.mechanism import Claim, Mechanism, NoMechanism, mechanism_of

Level = Literal["image", "client"]

_LEVELS: Final[tuple[Level, ...]] = ("image", "client")

_CLASSICAL_UP_TO: Final = 1.0
"""Epsilon up to which the classical formula of the Gaussian mechanism is proved."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Number of uses of a mechanism, and the data behind them; None where it is not known.

    Attributes:
        rounds: In which the client took part, 1 or more.
        steps: Local steps of one round.
        batch_size: Images of one step.
        images: Images of the client.
        sampling: Chance of a client to take part in a round.
        numbers: In one update.
        delta: At which epsilon is given where the defence states none.
    """

    rounds: int = 1
    steps: int | None = None
    batch_size: int | None = None
    images: int | None = None
    sampling: float | None = None
    numbers: int | None = None
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if self.rounds < 1 or not 0 < self.delta < 1:
            raise ValueError(f"expected 1 round or more and 0 < delta < 1, got {self.rounds} and {self.delta:g}")
        if self.sampling is not None and not 0 < self.sampling <= 1:
            raise ValueError(f"expected sampling above 0 and at most 1, got {self.sampling:g}")


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """For one image, or for one client with all of its images.

    Attributes:
        level: Whose.
        a_round: Epsilon of one round by formula; None where there is none, or it cannot be computed here.
        composed: Epsilon of all rounds.
        delta: At which both hold.
        sensitivity: How far the protected unit moves what gets the noise, in L2 (Laplace: L1).
        noise_multiplier: Gaussian noise over that sensitivity; None for other noise.
        classical: What the classical formula gives for one round with that sensitivity, valid or not; None for others.
        note: What it assumes, or why there is none.
    """

    level: Level
    a_round: float | None
    composed: float | None
    delta: float
    sensitivity: float | None = None
    noise_multiplier: float | None = None
    classical: float | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """Claimed, and by formula.

    Attributes:
        claim: None where nothing is claimed.
        guarantees: By image and by client; empty without a mechanism.
        holds: Whether the guarantees hold against the server that is audited.
        why_not: Why they do not, or why there are none; empty where they hold.
        notes: Sentences on the claim and the conditions.
    """

    claim: Claim | None
    guarantees: tuple[Guarantee, ...] = ()
    holds: bool = False
    why_not: str = ""
    notes: tuple[str, ...] = ()

    def of(self, level: Level) -> Guarantee | None:
        """The guarantee at a level; None where there is none."""
        return next((one for one in self.guarantees if one.level == level), None)


def privacy_statement(spec: str, conditions: Conditions, claim: Claim | None = None) -> PrivacyStatement:
    """Guarantee of a defence, whatever it claims.

    Args:
        spec: The defence; ``unknown`` for one that nobody announced.
        conditions: How often it worked.
        claim: What is claimed besides its settings; its own where None.

    Raises:
        ValueError: If the spec is not one that exists.
    """
    found = mechanism_of(spec)
    claim = claim or found.claim
    if isinstance(found, NoMechanism):
        notes = []
        if claim is not None and found.claim is None:
            notes = [f"epsilon {claim.epsilon:g} is claimed, and {spec!r} is no mechanism that could have one"]
        return PrivacyStatement(claim=claim, why_not=found.why, notes=tuple(notes))
    delta = claim.delta if claim is not None and claim.delta else conditions.delta
    conditions = replace(conditions, delta=delta)
    guarantees = tuple(_guarantee(found, level, conditions) for level in _LEVELS)
    why_not = _why_not(found)
    return PrivacyStatement(
        claim=claim,
        guarantees=guarantees,
        holds=not why_not and any(one.a_round is not None for one in guarantees),
        why_not=why_not,
        notes=tuple(_notes(found, claim, conditions)),
    )


def weakest_statement(specs: Collection[str], conditions: Conditions) -> PrivacyStatement:
    """The statement of clients that announce different settings: that of the client which promises least.

    Raises:
        ValueError: If there is no spec, or one is not one that exists.
    """
    different = list(dict.fromkeys(specs))
    if not different:
        raise ValueError("expected the defence of one client or more, got none")
    statements = {spec: privacy_statement(spec, conditions) for spec in different}
    spec, least = max(statements.items(), key=lambda item: _strength(item[1]))
    if len(different) == 1:
        return least
    note = (
        f"clients announce {len(different)} different settings ({', '.join(different)}); this is the statement of "
        f"{spec}, which promises least"
    )
    return replace(least, notes=(note, *least.notes))


def _strength(statement: PrivacyStatement) -> float:
    """The composed epsilon of a client; infinite where nothing holds."""
    client = statement.of("client")
    known = statement.holds and client is not None and client.composed is not None
    return client.composed if known and client is not None and client.composed is not None else math.inf


def _guarantee(mechanism: Mechanism, level: Level, conditions: Conditions) -> Guarantee:
    try:
        if mechanism.kind == "sparse-vectors":
            return _of_sparse_vectors(mechanism, level, conditions)
        if mechanism.kind == "laplace":
            return _of_laplace(mechanism, level, conditions)
        if mechanism.kind == "dp-sgd":
            return _of_dp_sgd(mechanism, level, conditions)
        return _of_update(mechanism, level, conditions)
    except ModuleNotFoundError as error:
        return Guarantee(level=level, a_round=None, composed=None, delta=conditions.delta, note=str(error))


def _gaussian(
    level: Level, *, noise: float, sensitivity: float, releases: int, rounds: int, delta: float, sampling: float = 1.0,
    note: str = "",
) -> Guarantee:  # fmt: skip
    """Guarantee of Gaussian noise on each of ``releases``, in ``rounds`` rounds."""
    multiplier = noise / sensitivity
    one = GaussianReleases(noise_multiplier=multiplier, releases=releases // rounds, sampling=sampling)
    every = GaussianReleases(noise_multiplier=multiplier, releases=releases, sampling=sampling)
    classical = math.sqrt(2 * math.log(1.25 / delta)) / multiplier if delta < 1 else None
    if sampling < 1 and not every.counts_sampling:
        note = f"{note}; sampling is not counted: beside so little noise its gain cannot be computed".removeprefix("; ")
    return Guarantee(
        level=level, a_round=one.epsilon(delta), composed=every.epsilon(delta), delta=delta, sensitivity=sensitivity,
        noise_multiplier=multiplier, classical=classical if releases == rounds else None, note=note,
    )  # fmt: skip


_BALL: Final = "with another image the clipped update may lie anywhere in the ball of the clip, twice the clip away"


def _of_update(mechanism: Mechanism, level: Level, conditions: Conditions) -> Guarantee:
    """Guarantee of noise on a whole clipped update: it covers the client, and one of its images no better."""
    sensitivity = mechanism.clip * (2 if level == "image" else 1)
    note = _BALL if level == "image" else "with or without the client; one in place of another is twice as far"
    sampling = 1.0
    if mechanism.kind == "central" and conditions.sampling is not None:
        sampling = conditions.sampling
    return _gaussian(
        level, noise=mechanism.noise, sensitivity=sensitivity, releases=conditions.rounds, rounds=conditions.rounds,
        delta=conditions.delta, sampling=sampling, note=note,
    )  # fmt: skip


def _of_dp_sgd(mechanism: Mechanism, level: Level, conditions: Conditions) -> Guarantee:
    """Guarantee of noise on the sum of clipped gradients of images, at each local step."""
    releases = conditions.rounds * (conditions.steps or 1)
    if level == "client":
        if conditions.batch_size is None:
            note = "how many images a step has is not known, and with it how far one client moves a sum"
            return Guarantee(level=level, a_round=None, composed=None, delta=conditions.delta, note=note)
        return _gaussian(
            level, noise=mechanism.noise, sensitivity=conditions.batch_size * mechanism.clip, releases=releases,
            rounds=conditions.rounds, delta=conditions.delta, note="all images of a batch are the client's",
        )  # fmt: skip
    sampling, note = 1.0, "every image taken to be in every step: how many the client has is not known"
    if conditions.images is not None and conditions.batch_size is not None:
        sampling = min(1.0, conditions.batch_size / conditions.images)
        note = "proved for Poisson sampling of images; batches of fixed size are the customary approximation"
    return _gaussian(
        level, noise=mechanism.noise, sensitivity=mechanism.clip, releases=releases, rounds=conditions.rounds,
        delta=conditions.delta, sampling=sampling, note=note if sampling < 1 or conditions.images is None else "",
    )  # fmt: skip


def _of_laplace(mechanism: Mechanism, level: Level, conditions: Conditions) -> Guarantee:
    """Guarantee of Laplace noise on a clipped update: its L1 norm is at most its L2 norm times the root of its size."""
    if conditions.numbers is None:
        note = "how many numbers the update has is not known, and with it its largest L1 norm"
        return Guarantee(level=level, a_round=None, composed=None, delta=conditions.delta, note=note)
    sensitivity = mechanism.clip * math.sqrt(conditions.numbers) * (2 if level == "image" else 1)
    one = sensitivity / mechanism.noise
    every = composed_pure([(one, conditions.rounds)], delta=conditions.delta)
    note = f"{_BALL}; " if level == "image" else ""
    return Guarantee(
        level=level, a_round=one, composed=every, delta=conditions.delta, sensitivity=sensitivity,
        note=f"{note}one round at delta 0",
    )  # fmt: skip


def _of_sparse_vectors(mechanism: Mechanism, level: Level, conditions: Conditions) -> Guarantee:
    """By composition, as if what the filter accepts and does not draw were withheld.

    Comparing: half of the threshold's epsilon, and half of that of the queries, up to the accepted ones that are wanted
    (Lyu, Su, Li, VLDB 2017). Sending: ``noise_var`` for each number that is drawn, whose range is 2 gamma.
    """
    settings = mechanism.filter
    assert settings is not None
    if conditions.numbers is None:
        note = "how many numbers the update has is not known, and with it how many are sent"
        return Guarantee(level=level, a_round=None, composed=None, delta=conditions.delta, note=note)
    count = settings.sent_with_noise(conditions.numbers)
    compared = settings.epsilon * (1 + (2 * count) ** (2 / 3)) / 2
    pieces = [(settings.noise_var, count), (compared, 1)]
    note = (
        f"by composition: {settings.noise_var:g} for each of {count:,} numbers with noise, and {compared:.3g} for the "
        "comparisons; as if what is accepted and not drawn were not sent"
    )
    return Guarantee(
        level=level, a_round=composed_pure(pieces, delta=conditions.delta),
        composed=composed_pure([(e, n * conditions.rounds) for e, n in pieces], delta=conditions.delta),
        delta=conditions.delta, note=note,
    )  # fmt: skip


def _why_not(mechanism: Mechanism) -> str:
    """Why what was computed does not hold against the server; empty where it does."""
    if mechanism.kind == "sparse-vectors":
        return (
            "numbers that the filter accepts and does not draw are sent as they are, without noise, and what it draws "
            "is cut to gamma after its noise and not before: against whoever sees the update there is no guarantee, "
            "and the figures are those of a filter that would withhold the former and cut the latter first"
        )
    if mechanism.kind == "central":
        return (
            "the server holds each update before the noise that it adds itself: the figures hold against those who see "
            "the model alone, and against the server there is no guarantee"
        )
    return ""


def _notes(mechanism: Mechanism, claim: Claim | None, conditions: Conditions) -> list[str]:
    notes = [f"epsilon by {ACCOUNTANT}"]
    if claim is not None:
        notes += _on_the_claim(mechanism, claim)
    if conditions.sampling is None and mechanism.kind == "central":
        notes.append("how clients are sampled is not known: each is taken to take part in every round")
    if mechanism.kind == "central":
        notes.append("clients must have equal weights in the mean: a larger weight is a larger sensitivity")
    if conditions.images is not None and conditions.delta > 1 / conditions.images:
        notes.append(
            f"delta {conditions.delta:g} is above 1 over the client's {conditions.images} images: a mechanism that "
            "sends one of them in the clear would have it too"
        )
    return notes


def _on_the_claim(mechanism: Mechanism, claim: Claim) -> list[str]:
    notes = []
    if mechanism.kind == "sparse-vectors":
        notes.append(f"the stated epsilon {claim.epsilon:g} is that of the threshold, and not of what is sent")
    elif claim.sensitivity is not None and claim.sensitivity < mechanism.clip:
        notes.append(
            f"the noise is for a sensitivity of {claim.sensitivity:g}, and an update clipped to {mechanism.clip:g} has "
            f"{mechanism.clip:g} ({2 * mechanism.clip:g} for one client in place of another): the stated epsilon "
            f"{claim.epsilon:g} does not follow"
        )
    if claim.sensitivity is not None and claim.epsilon > _CLASSICAL_UP_TO:
        notes.append(
            "the noise is by the classical formula, which is proved for epsilon up to 1 and not for "
            f"{claim.epsilon:g}: the figures are those of the exact (analytic) Gaussian mechanism"
        )
    return notes
