"""Which canaries a client of the reference federation puts into its update."""

from __future__ import annotations

from fl_precode.federation.config import Settings
from fl_precode.privacy.canaries import Canaries, Inserted, included, secret_of_seed


def canaries_of(settings: Settings, node: str, server_round: int) -> Inserted | None:
    """The canaries of a client and round; None where the run has none, or not in this round.

    Args:
        settings: Of the federation, whose seed is the secret.
        node: Flower's id of the client.
        server_round: Of the federation.
    """
    if not settings.canaries:
        return None
    known = Canaries.parse(settings.canaries)
    if not known.enter(server_round):
        return None
    inside = included(secret_of_seed(settings.seed), node, server_round, known.count)
    return Inserted(canaries=known.of(node, server_round), inside=inside)
