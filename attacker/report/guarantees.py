"""Guarantees of a federation's defence, for readers who do not know epsilon: claim, formula, canaries, bound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.evidence import PrivacyClaims, PrivacyGuarantee
from attacker.audit.record.privacy import AttackBound, CanaryAudit
from attacker.audit.record.schema import AuditRecord
from attacker.report.panels import Panel

_ALL = 0.995
"""Share from which a bound reads 100 %, and rules nothing out."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table.

    Attributes:
        what: The question.
        image: The answer for one image.
        client: For one client; None where one answer stands for both.
        strong: Whether it is what readers should see first.
    """

    what: str
    image: str
    client: str | None = None
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Guaranteed:
    """The card of one federation.

    Attributes:
        title: Model, images and defence.
        reading: What it comes to, in sentences.
        lines: The table.
        notes: What was assumed, in sentences.
    """

    title: str
    reading: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]


def guaranteed(record: AuditRecord, panels: Sequence[Panel]) -> list[Guaranteed]:
    """A card for each audited federation of which anything is claimed, promised or measured by canaries."""
    return [
        _card(record, panel)
        for panel in panels
        if not panel.control and (panel.federation.claims or panel.bound or panel.canaries)
    ]


def _card(record: AuditRecord, panel: Panel) -> Guaranteed:
    claims, bound, canaries = panel.federation.claims, panel.bound, panel.canaries
    lines = [] if claims is None else _of_claims(claims, panel.federation.rounds)
    lines += _of_canaries(canaries)
    lines += _of_attacks(bound)
    reading = [
        *([] if claims is None else _on_claims(claims)),
        *_on_canaries(claims, canaries),
        *([] if bound is None else _on_bound(bound)),
    ]
    notes = [] if claims is None else _notes(claims)
    if canaries is not None:
        notes += _on_guesses(canaries)
    if bound is not None and bound.prior is not None:
        notes.append(_on_the_prior(record, bound))
    return Guaranteed(title=panel.title, reading=tuple(reading), lines=tuple(lines), notes=tuple(notes))


def _of_claims(claims: PrivacyClaims, rounds: int) -> list[Line]:
    claimed = "nothing" if claims.claimed_epsilon is None else wording.in_words(claims.claimed_epsilon)
    lines = [Line(what="Claimed epsilon, each round", image=claimed)]
    if not claims.guarantees:
        return [*lines, Line(what="By formula", image="no guarantee", strong=True)]
    held = "" if claims.holds else ", if it held"
    lines.append(
        _line(f"By formula, one round{held}", claims, lambda one: wording.in_words(one.a_round), strong=claims.holds)
    )
    if rounds > 1:
        lines.append(
            _line(f"By formula, all {rounds} rounds{held}", claims, lambda one: wording.in_words(one.composed))
        )
    delta = claims.guarantees[0].delta
    lines.append(Line(what="Chance that it does not hold (delta)", image=wording.one_in(delta)))
    if any(one.noise_multiplier is not None for one in claims.guarantees):
        what = "Noise, as a share of what one can change"
        lines.append(_line(what, claims, lambda one: wording.small_percent(one.noise_multiplier)))
    return [*lines, Line(what="Holds against the server", image="yes" if claims.holds else "no")]


def _line(what: str, claims: PrivacyClaims, figure: Callable[[PrivacyGuarantee], str], *, strong: bool = False) -> Line:
    found = {one.level: figure(one) for one in claims.guarantees}
    return Line(what=what, image=found.get("image", "–"), client=found.get("client", "–"), strong=strong)


def _of_canaries(canaries: CanaryAudit | None) -> list[Line]:
    what = "Canaries: epsilon is at least"
    if canaries is None:
        return [Line(what=what, image="not measured")]
    if canaries.epsilon is None:
        return [Line(what=what, image="no result")]
    found = wording.in_words(canaries.epsilon)
    of_client = canaries.unit == "client"
    return [Line(what=what, image="–" if of_client else found, client=found if of_client else "–", strong=True)]


def _of_attacks(bound: AttackBound | None) -> list[Line]:
    if bound is None:
        return [Line(what="Any attack reconstructs at most", image="no bound")]
    most = "no bound" if bound.most is None else f"{wording.percent(bound.most)} of the images"
    lines = [Line(what="Any attack reconstructs at most", image=most, strong=True)]
    if bound.prior_seen is not None:
        guessed = f"{wording.percent(bound.prior_seen)}, at most {wording.percent(bound.prior or 0.0)}"
        lines.append(Line(what="A guess without the update reaches", image=guessed))
    if bound.measured is not None:
        lines.append(Line(what="Reconstructed here, by the best attack alone", image=wording.percent(bound.measured)))
    return lines


def _on_claims(claims: PrivacyClaims) -> list[str]:
    if not claims.holds:
        # What is known of it stands at the top: most deployed filters have no guarantee at all.
        return [f"No guarantee: {claims.why_not}." if claims.why_not else "No guarantee."]
    client = next((one for one in claims.guarantees if one.level == "client"), None)
    if client is None or client.a_round is None or claims.claimed_epsilon is None:
        return []
    if client.a_round <= claims.claimed_epsilon:
        return ["The claim follows from clip and noise."]
    return [
        f"The claim does not follow: epsilon {wording.in_words(claims.claimed_epsilon)} is claimed, and clip and noise "
        f"give {wording.in_words(client.a_round)} for one client in one round."
    ]


def _on_canaries(claims: PrivacyClaims | None, canaries: CanaryAudit | None) -> list[str]:
    if canaries is None:
        return []
    if canaries.epsilon is None:
        return [f"Canaries measured nothing: {canaries.reason}."]
    if canaries.epsilon == 0:
        return ["Canaries refute nothing: none of them shows."]
    found = (
        f"Canaries show that epsilon is at least {wording.in_words(canaries.epsilon)} for one {canaries.unit} in one "
        "round (95 % confidence)"
    )
    claimed = None if claims is None else claims.claimed_epsilon
    refuted = claimed is not None and canaries.epsilon > claimed
    return [f"{found}: the claim is refuted." if refuted else f"{found}."]


def _on_bound(bound: AttackBound) -> list[str]:
    if bound.most is None:
        return [f"Nothing bounds what attacks reconstruct: {bound.reason}."] if bound.reason else []
    if bound.most >= _ALL:
        return ["A bound of 100 % rules nothing out: as far as the guarantee goes, every image may be reconstructed."]
    by = "" if bound.attack is None else f"; {attack_title(bound.attack)} reconstructed "
    by += "" if bound.attack is None else wording.percent(bound.measured or 0.0)
    return [
        f"Whatever the attack, at most {wording.percent(bound.most)} of such images are reconstructed while clip and "
        f"noise are what was announced{by}."
    ]


def _notes(claims: PrivacyClaims) -> list[str]:
    found = [f"{wording.capitalised(note)}." for note in claims.notes]
    found += [f"For one {one.level}: {one.note}." for one in claims.guarantees if one.note]
    return found


def _on_the_prior(record: AuditRecord, bound: AttackBound) -> str:
    similar, prior = wording.figure(record.success_threshold), wording.percent(bound.prior or 0.0)
    return (
        f"The bound is for images that are reconstructed with SSIM {similar} or more. It rests on the most that a "
        f"guess without the update may reach, {prior} (95 % confidence)."
    )


def _on_guesses(canaries: CanaryAudit) -> list[str]:
    """How well the auditor told canaries apart, and what that supposes."""
    if canaries.epsilon is None:
        return []
    updates = wording.counted(canaries.updates, "update")
    found = [
        f"Canaries: {wording.count(canaries.canaries)} in each of {updates}; {wording.count(canaries.right)} of "
        f"{wording.count(canaries.guesses)} guesses right, which refutes epsilon {wording.budget(canaries.counted)} "
        "whatever the noise is."
    ]
    if canaries.gaussian is not None:
        found.append(f"If the noise is Gaussian, {wording.in_words(canaries.gaussian)} is refuted.")
    return found + [f"{wording.capitalised(note)}." for note in canaries.notes]
