"""Canaries that a client of the reference federation puts into its update, or among its images."""

from __future__ import annotations

from collections.abc import Sequence

from fl_precode.defences.on_gradients import Batch
from fl_precode.federation.config import Settings
from fl_precode.models.input_spec import InputSpec
from fl_precode.privacy.canaries import Canaries, Inserted, included, secret_of_seed
from fl_precode.privacy.canary_images import with_canary_images


def canaries_of(settings: Settings, node: str, server_round: int) -> Inserted | None:
    """The canaries for the update of a client in a round; None where the run has none of this kind, or not now.

    Args:
        settings: Settings of the federation, whose seed is the secret.
        node: Flower's id of the client.
        server_round: Round of the federation.
    """
    found = _now(settings, node, server_round)
    return None if found is None or found.canaries.kind != "gradients" else found


def batches_with_canaries(
    batches: Sequence[Batch], settings: Settings, node: str, server_round: int, inputs: InputSpec
) -> list[Batch]:
    """The batches of a client in a round, each with the canary images that are in; as they are where there are none.

    Args:
        batches: Normalised images and labels.
        settings: As of `canaries_of`.
        node: As of `canaries_of`.
        server_round: As of `canaries_of`.
        inputs: Inputs of the federation's images.
    """
    found = _now(settings, node, server_round)
    if found is None or found.canaries.kind != "images":
        return list(batches)
    return [with_canary_images(batch, found.canaries, found.inside, inputs) for batch in batches]


def _now(settings: Settings, node: str, server_round: int) -> Inserted | None:
    if not settings.canaries:
        return None
    known = Canaries.parse(settings.canaries)
    if not known.enter(server_round):
        return None
    inside = included(secret_of_seed(settings.seed), node, server_round, known.count)
    return Inserted(canaries=known.of(node, server_round), inside=inside)
