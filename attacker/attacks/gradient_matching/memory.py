"""Gradient matching within a memory budget: pieces that fit, smaller ones when memory runs out all the same."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace

import torch

from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.gradient_matching.batch import Piece
from attacker.attacks.gradient_matching.parts import PieceProgress
from attacker.attacks.gradient_matching.search import Search
from attacker.gradients.memory_budget import GIB, default_budget, evaluation_memory, is_out_of_memory
from attacker.reasons import because

logger = logging.getLogger(__name__)


def pieces_within_budget(search: Search, piece: Piece) -> list[Piece]:
    """The piece in parts whose candidates fit into the budget, as one evaluation of one victim shows."""
    if piece.draws.axes == (1, 1):  # nothing to divide
        return piece.within(1)
    candidate = piece.like.new_zeros(piece.batch_size, *piece.victim.inputs.shape)
    budget = int(search.memory * GIB) or default_budget(candidate.device)
    first = piece.part(range(min(2, piece.draws.axes[0])) if piece.own_weights else range(1), range(1))
    try:
        products = search.products(first, piece.victim)
        needed = evaluation_memory(
            products.keep([0]), candidate, piece.seen.latents, history=search.optimiser.remembered
        )
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return piece.within(1, whole_victims=search.compares_restarts)
    if piece.own_weights:  # stacked, and once more in the order in which they are multiplied
        weights = sum(value.numel() * value.element_size() for value in piece.observations[0].parameters.values())
        needed = replace(needed, per_victim=2 * weights)
    count = piece.noise.draws
    needed = replace(needed, per_candidate=count * needed.per_candidate)
    fits = needed.candidates_within(
        budget, images=count * piece.batch_size, restarts=piece.draws.axes[1], device=candidate.device
    )
    logger.debug("%d candidates at once: %s, budget %d bytes", fits, needed, budget)
    return piece.within(fits, whole_victims=search.compares_restarts)


def attack_bounded(
    search: Search, piece: Piece, progress: PieceProgress | None
) -> Iterator[tuple[int, Reconstruction]]:
    """Attack a piece, by halves when memory runs out.

    Yields:
        Observation and result; an observation comes more than once where its restarts were split.
    """
    try:
        results = search.reconstruct(piece, progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        results = None
    if results is not None:
        yield from zip(piece.indices, results, strict=True)
        return
    gc.collect()  # the failed attempt's graph, before the halves need its memory
    if piece.like.device.type == "cuda":
        torch.cuda.empty_cache()
    victims, restarts = piece.draws.axes
    together = restarts if search.compares_restarts else 1
    if victims * restarts == together:
        many = "one candidate" if together == 1 else f"the {together} restarts that are compared as they go, each"
        reason = because("out-of-memory", what=many, images=piece.batch_size)
        yield piece.indices[0], Reconstruction.not_applicable(reason)
        return
    logger.warning("out of memory with %d candidates; going on with halves", victims * restarts)
    halves = piece.within((victims * restarts + 1) // 2, whole_victims=search.compares_restarts)
    for number, half in enumerate(halves):
        yield from attack_bounded(search, half, share(progress, number, len(halves)))


def share(progress: PieceProgress | None, number: int, pieces: int) -> PieceProgress | None:
    """Progress of one piece as progress of the whole."""
    if progress is None:
        return None
    report = progress
    return lambda done, best: report((number + done) / pieces, best)


def better(earlier: Reconstruction | None, other: Reconstruction) -> Reconstruction:
    """The better match of two results for the same observation; a diverged one loses to one that is not."""
    if earlier is None:
        return other

    def rank(result: Reconstruction) -> tuple[bool, bool, float]:
        loss = result.matching_loss
        return result.outcome is Outcome.DIVERGED, loss is None, loss or 0.0

    best = min(earlier, other, key=rank)
    return replace(
        best,
        seconds=earlier.seconds + other.seconds,
        starts=earlier.starts + other.starts,
        cut=earlier.cut or other.cut,
    )
