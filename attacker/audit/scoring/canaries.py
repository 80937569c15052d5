"""Looks for a federation's canaries in its updates, joined with the secret of which were in. Evaluation only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.privacy import CanaryAudit
from attacker.audit.record.schema import finite
from attacker.audit.scoring.canary_images import scores_of_images
from attacker.reasons import Reason, because, codes_of
from fl_precode.privacy.canaries import KEY, Canaries, included, secret_of_seed
from fl_precode.privacy.one_run import Guessed, guess_and_refute, separation
from fl_precode.privacy.released import DELTA, Released, released_by
from fl_precode.privacy.robustness import gaussian_epsilon
from fl_precode.tape import TapeEntry, TapeError

MOST_UPDATES: Final = 256
"""Updates that are looked at; a thousand canaries in each say enough."""

_SILENT: Final = 0.25
"""Share of the separation in all updates below which, with confidence, that in one shows that its canaries are out."""

_OUTSIDE: Final = 4.5
"""Standard errors from 0 at which canaries that should be out are taken to be in; chance does it once in 150,000."""


@dataclass(frozen=True, kw_only=True)
class _Looked:
    """One update: scores of its canaries, without those that are lost, and which were in."""

    name: str
    scores: NDArray[np.float64]
    inside: NDArray[np.bool_]
    lost: int


def canary_audit(federation: AuditedFederation, secret: str | None = None) -> CanaryAudit | None:
    """What the canaries of a federation measure; None where its tape announces none.

    Args:
        federation: Audited, no control.
        secret: Secret of the clients; None takes that of the reference federation, if it is one whose seed is known.
    """
    announced = federation.subject.tape.header.settings.get(KEY)
    if not announced:
        return None
    released = released_by(federation.subject.defence)
    try:
        canaries = Canaries.parse(str(announced))
    except ValueError as error:
        return _nothing(federation, Canaries(), released, because("canaries-unreadable", error=error))
    secret = secret or _known_secret(federation)
    if secret is None:
        return _nothing(federation, canaries, released, because("canaries-secret-unknown"))
    try:
        looked = [_look(federation, entry, canaries, secret) for entry in _entries(federation, canaries)]
    except (ValueError, TapeError) as error:
        return _nothing(federation, canaries, released, because("canaries-unreadable", error=error))
    if not looked:
        return _nothing(federation, canaries, released, because("canaries-in-no-update", round=canaries.round))
    if not sum(len(update.scores) for update in looked):
        return _nothing(federation, canaries, released, because("canaries-lost"), looked)
    return _measured(federation, canaries, released, looked)


def _known_secret(federation: AuditedFederation) -> str | None:
    truth = federation.subject.truth
    seed = None if truth is None else truth.settings.get("seed")
    return secret_of_seed(seed) if isinstance(seed, int) else None


def _entries(federation: AuditedFederation, canaries: Canaries) -> list[TapeEntry]:
    return [entry for entry in federation.subject.tape.entries if canaries.enter(entry.round)][:MOST_UPDATES]


def _look(federation: AuditedFederation, entry: TapeEntry, canaries: Canaries, secret: str) -> _Looked:
    subject = federation.subject
    observation = subject.tape.load(entry)
    if canaries.kind == "images":
        inside = included(secret, entry.node, entry.round, canaries.count)
        scores = scores_of_images(subject, observation, canaries.of(entry.node, entry.round))
        return _Looked(name=f"round {entry.round}, client {entry.node}", scores=scores, inside=inside, lost=0)
    trained = {name: tuple(p.shape) for name, p in subject.victim.model.named_parameters() if p.requires_grad}
    scores = canaries.of(entry.node, entry.round).scores(observation.update, trained)
    released = released_by(subject.defence)
    if observation.kind == "weights" and released is not None and released.per_step:
        scores = -scores  # they entered gradients, and training goes the other way
    there = ~np.isnan(scores)
    inside = included(secret, entry.node, entry.round, canaries.count)
    return _Looked(
        name=f"round {entry.round}, client {entry.node}",
        scores=scores[there],
        inside=inside[there],
        lost=int((~there).sum()),
    )


def _measured(
    federation: AuditedFederation, canaries: Canaries, released: Released | None, looked: Sequence[_Looked]
) -> CanaryAudit:
    scores, inside = (np.concatenate([getattr(update, name) for update in looked]) for name in ("scores", "inside"))
    delta = DELTA if released is None else released.delta
    if canaries.kind == "images":
        return _by_guesses(federation, canaries, delta, looked, guess_and_refute(scores, inside, delta=delta))
    outside = _shows_outside(scores, inside)
    # Where canaries share a clip, an update with more of them leaves less of each: that is no noise.
    updates = np.repeat(np.arange(len(looked)), [len(update.scores) for update in looked])
    low, seen, high = separation(scores, inside, zero_outside=not outside, groups=updates)
    guessed = guess_and_refute(scores, inside, delta=delta)
    together = math.sqrt(min(int(update.inside.sum()) for update in looked)) if _of_client(released) else 1.0
    gaussian = None if released is None else gaussian_epsilon(low * together, delta)
    silent = [update.name for update in looked if _is_silent(update, low)]
    notes = _notes(canaries, released, looked, guessed)
    if outside:
        notes.append(because("canaries-outside"))
    elif low == 0:
        notes.append(because("canaries-unseen", most=high))
    if silent:
        notes.append(because("canaries-silent", updates="; ".join(silent[:4]), count=len(silent), of=len(looked)))
    return CanaryAudit(
        federation=federation.id,
        canaries=canaries.count,
        norm=canaries.norm,
        round=canaries.round,
        updates=len(looked),
        scored=len(scores),
        lost=sum(update.lost for update in looked),
        silent=silent,
        unit="client" if released is None else released.unit,
        delta=delta,
        mu=finite(low),
        mu_seen=finite(seen),
        mu_most=finite(high),
        gaussian=finite(gaussian),
        guesses=guessed.guesses,
        right=guessed.right,
        counted=guessed.epsilon,
        epsilon=guessed.epsilon if gaussian is None or math.isinf(gaussian) else gaussian,
        notes=list(map(str, notes)),
        codes=codes_of(notes),
    )


def _by_guesses(
    federation: AuditedFederation, canaries: Canaries, delta: float, looked: Sequence[_Looked], guessed: Guessed
) -> CanaryAudit:
    """Audit by images, whose scores are no sum of a signal and noise of one deviation: right guesses alone count."""
    notes = [because("canaries-images")]
    if guessed.epsilon == 0:
        notes.append(because("canaries-unseen.images"))
    elif guessed.right == guessed.guesses:
        notes.append(because("canaries-all-right", guesses=guessed.guesses))
    empty = _nothing(federation, canaries, None, Reason(""), looked)
    return empty.model_copy(
        update={
            "scored": sum(len(update.scores) for update in looked), "unit": "image", "delta": delta,
            "guesses": guessed.guesses, "right": guessed.right, "counted": guessed.epsilon, "epsilon": guessed.epsilon,
            "notes": list(map(str, notes)), "codes": codes_of(notes),
        }
    )  # fmt: skip


def _shows_outside(scores: NDArray[np.float64], inside: NDArray[np.bool_]) -> bool:
    """Whether canaries that should be out are in: by their random signs they would score 0 on average."""
    those_out = scores[~inside]
    if len(those_out) < 2:
        return False
    return abs(float(those_out.mean())) > _OUTSIDE * float(those_out.std(ddof=1)) / math.sqrt(len(those_out))


def _of_client(released: Released | None) -> bool:
    """Whether all canaries of an update are one client's, so that they tell it apart together."""
    return released is not None and released.unit == "client"


def _is_silent(update: _Looked, low: float) -> bool:
    """Whether the canaries of one update are out, by 95 % confidence, while those of all updates show."""
    if low == 0 or not len(update.scores):
        return False
    return separation(update.scores, update.inside, zero_outside=True)[2] < _SILENT * low


def _notes(canaries: Canaries, released: Released | None, looked: Sequence[_Looked], guessed: Guessed) -> list[Reason]:
    notes = []
    if released is None or not released.per_step:
        largest = canaries.norm * math.sqrt(max(int(update.inside.sum()) for update in looked))
        if released is not None and largest > released.clip:
            notes.append(because("canaries-clipped.together", norm=largest, clip=released.clip))
    elif canaries.norm > released.clip:
        notes.append(because("canaries-clipped", norm=canaries.norm, clip=released.clip))
    elif canaries.norm < released.clip:
        notes.append(because("canaries-small", norm=canaries.norm, clip=released.clip))
    if released is None and guessed.right == guessed.guesses:
        notes.append(because("canaries-all-right", guesses=guessed.guesses))
    return notes


def _nothing(
    federation: AuditedFederation,
    canaries: Canaries,
    released: Released | None,
    reason: Reason,
    looked: Sequence[_Looked] = (),
) -> CanaryAudit:
    """Canaries that measured nothing: no bound is stated."""
    return CanaryAudit(
        federation=federation.id,
        canaries=canaries.count,
        norm=canaries.norm,
        round=canaries.round,
        updates=len(looked),
        scored=0,
        lost=sum(update.lost for update in looked),
        silent=[],
        unit="client" if released is None else released.unit,
        delta=DELTA if released is None else released.delta,
        mu=None,
        mu_seen=None,
        mu_most=None,
        gaussian=None,
        guesses=0,
        right=0,
        counted=None,
        epsilon=None,
        reason=str(reason),
        codes=list(reason.codes),
    )
