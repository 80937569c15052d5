"""Which replay of the client's work the candidates are compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attacker.attacks.piece import Piece
from attacker.engine import GradientProducts, Replay, gradient_products
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
    del settings
    one = piece.observations[0]
    replay = Replay(victim, one.parameters, one.buffers)
    return gradient_products(replay, piece.targets, piece.seen, batch_size=piece.batch_size)
