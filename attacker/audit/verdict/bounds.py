"""Bound on every attack on a federation, by the promise of its defence, beside the measured success.

Explained in docs/explanation/bounds.md.

A pure function of the record. The bound is that of reconstruction robustness (`fl_precode.privacy.robustness`) for the
images of one client, over all rounds. Its prior is the share of victims that the best guess without the update brings
to the threshold: the upper end of its interval, because a bound that goes by too small a prior is none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from attacker.audit.record.counting import best_guess
from attacker.audit.record.privacy import AttackBound, CanaryAudit
from attacker.audit.record.schema import AuditRecord, FederationSummary, finite
from attacker.audit.record.trials import share_interval
from attacker.audit.record.view import FederationView, views
from attacker.metrics.intervals import exact_interval
from attacker.reasons import Reason, because
from attacker.wording import budget, percent
from fl_precode.privacy.released import DELTA, Released, pure_epsilon, released_by
from fl_precode.privacy.robustness import composed, gaussian_epsilon, most_successes, most_successes_gaussian

_LEVEL = 0.05


def bounds(record: AuditRecord) -> list[AttackBound]:
    """The bounds of every federation that promises differential privacy or has canaries, in the record's order."""
    return [bound for view in views(record) if (bound := _bound(view)) is not None]


def bound_of(view: FederationView) -> AttackBound | None:
    """The bound that stands in the record."""
    return next((bound for bound in view.record.bounds if bound.federation == view.federation.id), None)


def canaries_of(view: FederationView) -> CanaryAudit | None:
    """The lower bound that stands in the record."""
    return next((found for found in view.record.canaries if found.federation == view.federation.id), None)


@dataclass(frozen=True, kw_only=True)
class _Promised:
    """What a defence promises of the images of one client, over all rounds."""

    unit: Literal["image", "client"] | None = None
    delta: float = DELTA
    claimed: float | None = None
    mu: float | None = None
    formula: float | None = None
    composed: float | None = None
    most: Callable[[float], float] | None = None
    reason: Reason = Reason("")


def _bound(view: FederationView) -> AttackBound | None:
    federation, canaries = view.federation, canaries_of(view)
    promised = _promised(federation)
    if federation.control_of is not None or (promised.unit is None and canaries is None):
        return None
    reason = promised.reason
    seen, prior = _prior(view)
    if not reason and prior is None:
        reason = because("bound-without-prior")
    rate = _surest(view)
    bound = AttackBound(
        federation=federation.id,
        unit=promised.unit,
        mu=finite(promised.mu),
        rounds=federation.rounds,
        delta=promised.delta,
        claimed=promised.claimed,
        formula=finite(promised.formula),
        composed=finite(promised.composed),
        prior_seen=seen,
        prior=prior,
        most=None if promised.most is None or prior is None else promised.most(prior),
        attack=None if rate is None else rate.attack,
        measured=None if rate is None else rate.measured,
        least=None if rate is None else rate.least,
        reason=str(reason),
        codes=list(reason.codes),
        sentence="",
    )
    return bound.model_copy(update={"sentence": bound_sentence(bound, canaries)})


def _promised(federation: FederationSummary) -> _Promised:
    released = released_by(federation.defence)
    pure = pure_epsilon(federation.defence, max(1, federation.parameters))
    rounds = max(1, federation.rounds)
    reason = _why_none(federation, released, pure)
    if released is None and pure is None:
        return _Promised(reason=reason)
    if released is None or pure is not None:
        assert pure is not None
        known = _Promised(unit="client", delta=0.0, reason=reason)
        # Pure releases add up: beyond their sum no delta is left, whatever the mechanisms are.
        total = pure * rounds
        most = partial(most_successes, curve=lambda epsilon: 0.0 if epsilon >= total else 1.0, at=(total,))
        return known if reason else replace(known, formula=pure, composed=total, most=most)
    known = _Promised(unit=released.unit, delta=released.delta, claimed=released.claimed, reason=reason)
    if reason:
        return known
    mu = _mu_of_a_round(federation, released)
    whole = composed(mu, rounds)
    return replace(
        known,
        mu=mu,
        formula=gaussian_epsilon(mu, released.delta),
        composed=gaussian_epsilon(whole, released.delta),
        most=partial(most_successes_gaussian, mu=whole),
    )


def _why_none(federation: FederationSummary, released: Released | None, pure: float | None) -> Reason:
    """Why nothing is known of what one round's update tells at most; empty where something is."""
    if released is None and pure is None:
        return because("bound-without-mechanism")
    if federation.noise_from_seed:
        return because("bound-noise-from-seed")
    if federation.statistics and (released is None or not released.buffers):
        return because("bound-beside-statistics", layers=federation.statistics)
    if released is not None and released.per_step and _steps(federation) is None:
        return because("bound-without-steps")
    return Reason("")


def _mu_of_a_round(federation: FederationSummary, released: Released) -> float:
    """What one round's update tells at most, over its noise."""
    # An image may be in every step: that it is drawn by chance protects no image that was.
    return composed(released.mu, _steps(federation) or 1) if released.per_step else released.mu


def _steps(federation: FederationSummary) -> int | None:
    return federation.facts.steps if federation.facts is not None else federation.local_steps


def _prior(view: FederationView) -> tuple[float | None, float | None]:
    """Share of the victims that the best guess brings to the threshold, and the upper end of its interval."""
    victims = {row.victim_id: best_guess(row) for row in view.compared}
    if not victims:
        return None, None
    guessed = sum((guess or 0.0) >= view.record.success_threshold for guess in victims.values())
    independent = max(1, view.union.independent)
    return guessed / len(victims), share_interval(guessed, len(victims), independent)[1]


@dataclass(frozen=True, kw_only=True)
class _Rate:
    attack: str
    measured: float
    least: float


def _surest(view: FederationView) -> _Rate | None:
    """The attack whose rate is surest to be high; each alone, because the bound is about one attack's answer."""
    confidence = 1 - _LEVEL / max(1, len(view.scored))
    rates = [
        _Rate(
            attack=summary.attack,
            measured=summary.success_rate or 0.0,
            least=exact_interval(
                summary.success_rate or 0.0, max(1, view.independent(summary.attack)), confidence=confidence
            )[0],
        )
        for summary in view.scored
    ]
    return max(rates, key=lambda rate: (rate.least, rate.measured, rate.attack), default=None)


def bound_sentence(bound: AttackBound, canaries: CanaryAudit | None) -> str:
    """Claim, formula, lower bound and upper bound in a line.

    Args:
        bound: What no attack exceeds.
        canaries: What was measured from below; None without canaries.
    """
    claimed = "no epsilon claimed" if bound.claimed is None else f"claimed {budget(bound.claimed)}"
    formula = "no epsilon by formula" if bound.formula is None else f"formula {budget(bound.formula)}"
    if canaries is None:
        audited = "not audited by canaries"
    elif canaries.epsilon is None:
        audited = "audited without a result"
    else:
        audited = f"audited at least {budget(canaries.epsilon)}"
    whom = "" if bound.unit is None else f" of one {bound.unit}"
    if bound.most is None:
        most = f"no bound on attacks: {bound.reason}"
    else:
        most = f"any attack at most {percent(bound.most)} of the images in {bound.rounds} round"
        most += "" if bound.rounds == 1 else "s"
        most += "" if bound.measured is None else f" (measured {percent(bound.measured)})"
    return f"Epsilon{whom} a round, at delta {budget(bound.delta)}: {claimed}, {formula}, {audited}; {most}."
