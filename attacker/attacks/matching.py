"""Gradient matching of one piece: starts, search, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attacker.attacks.attack import Outcome, Reconstruction
from attacker.attacks.joined_noise import JoinedNoise, NoisyObjective
from attacker.attacks.joint_labels import JointCandidates, JointObjective, SoftlyLabelled
from attacker.attacks.piece import Piece
from attacker.attacks.replaying import replayed_products
from attacker.engine import (
    DISTANCES,
    LBFGS,
    BatchStatistics,
    BottleneckNoise,
    Companions,
    Descent,
    FeatureTarget,
    GradientObjective,
    GroupConsistency,
    ImageNorm,
    Matched,
    Objective,
    Prior,
    Replay,
    TotalVariation,
    first_candidates,
)
from attacker.victim import Victim

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching

PieceProgress = Callable[[float, float | None], None]


def attack_piece(settings: GradientMatching, piece: Piece, progress: PieceProgress | None) -> list[Reconstruction]:
    """Attack observations together, one result each, in order."""
    began = time.perf_counter()
    victims, restarts = piece.draws.axes
    batch, inputs = piece.batch_size, piece.victim.inputs
    start = first_candidates(settings.start, inputs, batch, draws=piece.draws, like=piece.like)
    noise: Sequence[Tensor] = ()
    if piece.labels is not None:
        assumed = torch.stack(list(piece.labels)).to(start.device).unsqueeze(1)
        objective = _objective(settings, piece, piece.victim, assumed)
        matched, noise = _with_noise(settings, piece, objective, start, progress)
        used = assumed.expand(victims, restarts, batch)
    else:
        joint = JointCandidates(SoftlyLabelled(**_fields(piece.victim)), batch)
        no_labels = torch.zeros(victims, 1, batch, dtype=torch.long, device=start.device)
        joint_objective = JointObjective(joint=joint, images=_objective(settings, piece, joint.victim, no_labels))
        joined = joint.join(start, piece.draws.normal(batch, inputs.classes, like=start))
        matched = _search(settings, piece, joint_objective, joined, progress)
        images, logits = joint.split(matched.candidates)
        matched, used = replace(matched, candidates=images), logits.argmax(dim=-1)
    seconds = (time.perf_counter() - began) / victims
    return [_result(settings, matched, index, used[index], seconds, noise) for index in range(victims)]


def _with_noise(
    settings: GradientMatching,
    piece: Piece,
    objective: GradientObjective,
    start: Tensor,
    progress: PieceProgress | None,
) -> tuple[Matched, Sequence[Tensor]]:
    """What the search found, and the noise that belongs to it, (victims, restarts, batch, ...) each; () for none."""
    joined = JoinedNoise.of(piece)
    known = objective.noise
    if piece.noise.rate and joined.places:
        noisy = NoisyObjective(joined=joined, images=objective, mask_penalty=piece.noise.mask_penalty)
        first = joined.start(start, piece)
        matched = _search(settings, piece, noisy, first, progress, joined=joined)
        images, found = joined.split(matched.candidates)
        own = dict(zip(joined.places, found, strict=True))
        every = [own[place] if place in own else known.of_layer(place, images) for place in range(len(known.latents))]
        return replace(matched, candidates=images), every
    matched = _search(settings, piece, objective, start, progress)
    certain = known.latents and not joined.places
    return matched, [known.of_layer(place, start) for place in range(len(known.latents))] if certain else ()


def _objective(settings: GradientMatching, piece: Piece, victim: Victim, labels: Tensor) -> GradientObjective:
    noise = BottleneckNoise(
        draws=piece.draws,
        batch=piece.batch_size,
        latents=piece.seen.latents,
        average=piece.noise.draws,
        known=_stacked_noise(piece),
    )
    # A line search must see the same loss when it looks twice, Adam is given fresh noise at each step.
    return GradientObjective(
        products=replayed_products(settings, piece, victim),
        measure=DISTANCES[settings.distance],
        labels=labels,
        noise=noise.drawn_once(piece.like) if settings.optimiser == "l-bfgs" else noise,
        weighted_priors=_priors(settings, piece),
    )


def _stacked_noise(piece: Piece) -> list[Tensor | None]:
    """Known noise of all victims, (victims, batch, ...) for each random layer, None where it is not known."""
    columns = zip(*(one.noise for one in piece.knowledge), strict=True)
    return [
        None
        if any(value is None for value in column)
        else torch.stack([value for value in column if value is not None])
        for column in columns
    ]


def _priors(settings: GradientMatching, piece: Piece) -> list[tuple[float, Prior]]:
    found: list[tuple[float, Prior]] = []
    if settings.total_variation:
        found.append((settings.total_variation, TotalVariation()))
    if settings.image_norm:
        found.append((settings.image_norm, ImageNorm()))
    if settings.group_consistency:
        found.append((settings.group_consistency, GroupConsistency(registered=settings.group_mean == "registered")))
    if piece.noise.feature_weight and piece.knowledge[0].features:
        found.append((piece.noise.feature_weight, _features(piece)))
    if settings.batch_norm:
        one = piece.sent[0]
        shared = Replay(piece.known, one.parameters, one.buffers)
        replays = [
            shared if other.parameters is one.parameters else Replay(piece.known, other.parameters, other.buffers)
            for other in piece.sent
        ]
        found.append((settings.batch_norm, BatchStatistics(replays, latents=piece.seen.latents)))
    return found


def _features(piece: Piece) -> FeatureTarget:
    one = piece.observations[0]
    shared = Replay(piece.victim, one.parameters, one.buffers)
    replays = [
        shared if other.parameters is one.parameters else Replay(piece.victim, other.parameters, other.buffers)
        for other in piece.observations
    ]
    targets = {
        name: torch.stack([own.features[name] for own in piece.knowledge]) for name in piece.knowledge[0].features
    }
    before = takewhile(lambda value: value is not None, _stacked_noise(piece))
    return FeatureTarget(replays, targets, [value for value in before if value is not None])


def _search(
    settings: GradientMatching,
    piece: Piece,
    objective: Objective,
    start: Tensor,
    progress: PieceProgress | None,
    joined: JoinedNoise | None = None,
) -> Matched:
    if settings.optimiser == "l-bfgs":
        lines = LBFGS(
            iterations=settings.iterations,
            learning_rate=settings.learning_rate,
            history=settings.history,
            stop_below=settings.stop_below,
            plateau=settings.plateau,
        )
        return lines.run(objective, start, progress=progress)
    descent = Descent(
        iterations=settings.iterations,
        learning_rate=settings.learning_rate,
        signed=settings.signed,
        sign_softness=settings.sign_softness,
        schedule=settings.schedule,
        warmup=settings.warmup,
        langevin=settings.langevin,
        stop_below=settings.stop_below,
        plateau=settings.plateau,
        halving=settings.halving,
        iterate=settings.iterate,
    )
    project: Callable[[Tensor], Tensor] | None = piece.victim.inputs.clamp if settings.boxed else None
    companions = None
    if joined is not None:
        companions = Companions(first=joined.pixels, learning_rate=piece.noise.rate)
        project = partial(joined.within_bounds, piece=piece, boxed=settings.boxed)
    return descent.run(objective, start, project=project, draws=piece.draws, companions=companions, progress=progress)


def _result(
    settings: GradientMatching,
    matched: Matched,
    index: int,
    labels: Tensor,
    seconds: float,
    noise: Sequence[Tensor],
) -> Reconstruction:
    restart = int(matched.best_restart()[index])
    distance = float(matched.distances[index, restart])
    measured = distance < float("inf")
    outcome = Outcome.CONVERGED if distance < settings.converged_below else Outcome.ITERATION_LIMIT
    reason = ""
    if bool(matched.diverged[index, restart]):
        outcome = Outcome.DIVERGED
        kept = "the best iterate before that is kept" if measured else "it was finite at no iterate"
        reason = f"the gradient distance became non-finite in all of {settings.restarts} restart(s); {kept}"
    steps = int(matched.iterations[index].max())
    cut = matched.cut and outcome is not Outcome.CONVERGED
    if cut:
        early = f"its time ended after {steps} of {settings.iterations} iterations, and the best until then is kept"
        reason = "; ".join(part for part in (reason, early) if part)
    return Reconstruction(
        inputs=matched.candidates[index, restart] if measured else None,
        labels=labels[restart],
        outcome=outcome,
        reason=reason,
        matching_loss=max(0.0, distance) if measured else None,  # rounding may end below zero
        seconds=seconds,
        iterations=steps,
        starting_loss=_measured(matched.starts[index, restart]),
        late_fall=_measured(matched.late_falls[index, restart]) if measured else None,
        starts=matched.distances.shape[1],
        noise=tuple(one[index, restart] for one in noise) if measured else (),
        cut=cut,
    )


def _measured(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _fields(victim: Victim) -> dict[str, Any]:
    return {"model": victim.model, "inputs": victim.inputs, "name": victim.name, "form": victim.form}
