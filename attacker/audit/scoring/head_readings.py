"""Images that the features of a head's gradient name: the nearest ones among all known true images."""

from __future__ import annotations

from typing import Final

import torch
from torch import Generator, Tensor

from attacker.attacks.closed_form.feature_inversion import FeatureInversion, ReadFeatures
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.schema import HeadReading, finite
from attacker.audit.settings import AuditSettings
from attacker.gradients.replay import Replay
from attacker.objectives.feature_prior import received_by
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason
from fl_precode.tape import TapeEntry

_MOST_UPDATES: Final = 2


def head_readings(federation: AuditedFederation, settings: AuditSettings) -> list[HeadReading]:
    """What the first attacked updates of clients that train a head alone say of each image; fewer at a deadline.

    Args:
        federation: The federation.
        settings: Say what the attacker knows.
    """
    found: list[HeadReading] = []
    for entry in federation.entries[:_MOST_UPDATES]:
        if time_is_up():
            break
        observation = settings.knowledge.of(federation.subject.tape.load(entry), federation.subject.defence)
        generator = Generator().manual_seed(settings.seed)
        read = FeatureInversion().features(federation.subject.victim, observation, generator)
        if isinstance(read, Reason):
            break
        candidates, identified = _identified(federation, entry, read)
        found.append(
            HeadReading(
                round=observation.round,
                node=observation.node,
                layer=read.layer,
                images=read.images,
                known=read.found.determined,
                residual=finite(read.found.residual),
                labels=0 if read.found.labels is None else len(read.found.labels),
                candidates=candidates,
                identified=identified,
            )
        )
    return found


def _identified(federation: AuditedFederation, entry: TapeEntry, read: ReadFeatures) -> tuple[int, int]:
    """True images at hand, and how many of the update's own are the nearest to features that were found."""
    truths = {one.file: federation.truth(one) for one in federation.entries}
    own = truths.get(entry.file)
    if own is None or not len(read.found.features):
        return 0, 0
    batches = [own.images, *(truth.images for file, truth in truths.items() if truth and file != entry.file)]
    images = torch.cat([batch.flatten(1) for batch in batches])
    features = torch.cat([_features_of(batch, read) for batch in batches])
    # Clients may share images: an image counts once, wherever it is.
    _, same = torch.unique(images, dim=0, return_inverse=True)
    first = [int((same == number).nonzero()[0]) for number in range(int(same.max()) + 1)]
    nearest = _distances(read, features[first]).argmin(dim=1)
    mine = {int(same[place]) for place in range(len(own.images))}
    return len(first), len(mine & set(nearest.tolist()))


def _features_of(images: Tensor, read: ReadFeatures) -> Tensor:
    replay = Replay(read.victim, read.observation.parameters, read.observation.buffers)
    like = next(iter(read.observation.parameters.values()))
    inputs = read.victim.inputs.normalise(images).to(like)
    with torch.no_grad():
        received = received_by(replay, inputs, (), batch=len(inputs), layers=[read.layer])[read.layer]
    return received.flatten(1).to(read.found.features)


def _distances(read: ReadFeatures, features: Tensor) -> Tensor:
    """(found, candidates); where features are known up to a factor, by the angle to them."""
    if read.found.direction_only:
        return 1 - torch.cosine_similarity(read.found.features[:, None], features[None], dim=2).abs()
    return torch.cdist(read.found.features, features)
