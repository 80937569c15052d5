"""Flags about differential privacy: a rate above what its promise allows, and canaries that refute or do not show."""

from __future__ import annotations

from collections.abc import Iterator

from attacker.attacks.registry import attack_title
from attacker.audit.record.flag_sentences import Found, raised_flag
from attacker.audit.record.view import FederationView
from attacker.audit.verdict.bounds import bound_of, canaries_of
from attacker.wording import budget, capitalised, percent


def above_the_bound(view: FederationView) -> Iterator[Found]:
    """An attack that did better than the promise allows any to do."""
    bound = bound_of(view)
    if bound is None or not bound.exceeded or bound.attack is None:
        return
    yield raised_flag(
        "above-the-bound",
        bound.attack,
        attack=capitalised(attack_title(bound.attack)),
        measured=percent(bound.measured or 0.0),
        least=percent(bound.least or 0.0),
        most=percent(bound.most or 0.0),
    )


def claim_refuted(view: FederationView) -> Iterator[Found]:
    """Canaries that show a larger epsilon than the one claimed, or than follows from clip and noise."""
    bound, canaries = bound_of(view), canaries_of(view)
    if bound is None or canaries is None or canaries.epsilon is None:
        return
    least = canaries.epsilon
    if bound.claimed is not None and least > bound.claimed:
        yield raised_flag("claim-refuted", least=budget(least), epsilon=budget(bound.claimed))
    if bound.formula is not None and least > bound.formula:
        yield raised_flag("claim-refuted.formula", least=budget(least), epsilon=budget(bound.formula))


def canaries_missing(view: FederationView) -> Iterator[Found]:
    """Canaries that were announced and do not show, so that the lower bound says nothing."""
    canaries = canaries_of(view)
    if canaries is None:
        return
    if canaries.reason:
        yield raised_flag("canaries-missing", why=canaries.reason)
    elif canaries.epsilon == 0 or canaries.mu == 0 or canaries.silent or "canaries-outside" in canaries.codes:
        yield raised_flag("canaries-missing", why=canaries.notes[-1])


def canaries_present(view: FederationView) -> Iterator[Found]:
    """Canaries in the updates that were attacked, which disturb what attacks look at."""
    canaries = canaries_of(view)
    if canaries is None or not canaries.updates:
        return
    if any(canaries.round in (0, row.round) for row in view.compared):
        yield raised_flag("canaries-present", updates=canaries.updates, of=view.federation.updates)
