"""Which replay of the client's work the candidates are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacker.attacks.layers import matched_parameters
from attacker.attacks.piece import Piece
from attacker.engine import ELEMENTWISE, GradientProducts, Replay, elementwise_products, gradient_products
from attacker.victim import Victim

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching


def replayed_products(settings: GradientMatching, piece: Piece, victim: Victim) -> GradientProducts:
    """Products of candidates' updates with the observed ones.

    Args:
        settings: Of the attack.
        piece: What is attacked.
        victim: Whose loss is replayed: the piece's own, or one that takes soft labels.
    """
    one = piece.observations[0]
    replay = Replay(victim, one.parameters, one.buffers)
    matched = matched_parameters(settings.layers, one.parameters) if settings.layers else None
    if settings.distance in ELEMENTWISE:
        return elementwise_products(
            replay,
            piece.targets,
            piece.seen,
            batch_size=piece.batch_size,
            kept=ELEMENTWISE[settings.distance],
            matched=matched,
        )
    return gradient_products(replay, piece.targets, piece.seen, batch_size=piece.batch_size, matched=matched)
