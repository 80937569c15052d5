"""Gradient matching of one piece: starts, search, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attacker.attacks.attack import Outcome, Reconstruction
from attacker.attacks.joint_labels import JointCandidates, SoftlyLabelled
from attacker.attacks.piece import Piece
from attacker.attacks.replaying import replayed_products
from attacker.engine import DISTANCES, LBFGS, Descent, Matched
from attacker.victim import Victim

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching

PieceProgress = Callable[[float, float | None], None]


def attack_piece(settings: GradientMatching, piece: Piece, progress: PieceProgress | None) -> list[Reconstruction]:
    """Attack observations together, one result each, in order."""
    began = time.perf_counter()
    victims, restarts = piece.draws.axes
    like, batch, victim = piece.like, piece.batch_size, piece.victim
    soft = None if piece.labels is not None else JointCandidates(SoftlyLabelled(**_fields(victim)), batch)
    products = replayed_products(settings, piece, soft.victim if soft else victim)
    measure = DISTANCES[settings.distance]
    start = piece.draws.normal(batch, *victim.inputs.shape, like=like)

    def noise() -> list[Tensor]:
        return [piece.draws.normal(batch, latent, like=like) for latent in piece.seen.latents]

    # A line search must see the same loss when it looks twice, Adam is given fresh noise at each step.
    fixed = noise() if settings.optimiser == "l-bfgs" else None

    def distance(candidates: Tensor, assumed: Tensor) -> Tensor:
        return measure(products(candidates, assumed, noise() if fixed is None else fixed))

    if piece.labels is not None:
        assumed = torch.stack(list(piece.labels)).to(like.device).unsqueeze(1)
        matched = _search(settings, lambda x: distance(x, assumed), start, victim, progress)
        used = assumed.expand(victims, restarts, batch)
    else:
        assert soft is not None
        joined = soft.join(start, piece.draws.normal(batch, victim.inputs.classes, like=like))
        matched = _search(settings, soft.distance(distance), joined, victim, progress)
        images, logits = soft.split(matched.candidates)
        matched, used = replace(matched, candidates=images), logits.argmax(dim=-1)
    seconds = (time.perf_counter() - began) / victims
    return [_result(settings, matched, index, used[index], seconds) for index in range(victims)]


def _search(
    settings: GradientMatching,
    distance: Callable[[Tensor], Tensor],
    start: Tensor,
    victim: Victim,
    progress: PieceProgress | None,
) -> Matched:
    if settings.optimiser == "l-bfgs":
        search = LBFGS(iterations=settings.iterations, learning_rate=settings.learning_rate, history=settings.history)
        return search.run(distance, start, progress=progress)
    descent = Descent(
        iterations=settings.iterations,
        learning_rate=settings.learning_rate,
        total_variation=settings.total_variation,
        signed=settings.signed,
    )
    project = victim.inputs.clamp if settings.boxed else None
    return descent.run(distance, start, project=project, progress=progress)


def _result(settings: GradientMatching, matched: Matched, index: int, labels: Tensor, seconds: float) -> Reconstruction:
    restart = int(matched.best_restart()[index])
    distance = float(matched.distances[index, restart])
    measured = distance < float("inf")
    outcome = Outcome.CONVERGED if distance < settings.converged_below else Outcome.ITERATION_LIMIT
    reason = ""
    if bool(matched.diverged[index, restart]):
        outcome = Outcome.DIVERGED
        kept = "the best iterate before that is kept" if measured else "it was finite at no iterate"
        reason = f"the gradient distance became non-finite in all of {settings.restarts} restart(s); {kept}"
    return Reconstruction(
        inputs=matched.candidates[index, restart] if measured else None,
        labels=labels[restart],
        outcome=outcome,
        reason=reason,
        matching_loss=max(0.0, distance) if measured else None,  # rounding may end below zero
        seconds=seconds,
        iterations=matched.iterations,
    )


def _fields(victim: Victim) -> dict[str, Any]:
    return {"model": victim.model, "inputs": victim.inputs, "name": victim.name}
