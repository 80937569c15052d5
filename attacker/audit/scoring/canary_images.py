"""Looks for canary images in an update. Evaluation only."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from attacker.audit.inputs.tape_source import Subject
from fl_precode.observation import Observation
from fl_precode.privacy.canaries import Canaries
from fl_precode.privacy.canary_images import canary_images, image_scores
from fl_precode.privacy.released import released_by


def scores_of_images(subject: Subject, observation: Observation, canaries: Canaries) -> NDArray[np.float64]:
    """How much each canary image is in an update: (count,), of mean 0 and deviation 1.

    Args:
        subject: Subject of the audit.
        observation: The update.
        canaries: Those of its client and round.

    Raises:
        ValueError: If they are too many for a model of this size, or no trained tensor was returned.
    """
    victim = subject.victim
    model = copy.deepcopy(victim.model).cpu()
    state = {name: value.detach().cpu() for name, value in observation.parameters.items() if value is not None}
    model.load_state_dict(state, strict=False)
    sign = -1 if observation.kind == "weights" else 1  # training goes against the gradient
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    came = {name: sign * value for name in trained if (value := observation.update.get(name)) is not None}
    if not came:
        raise ValueError("no trained tensor was returned")
    released = released_by(subject.defence)
    images = canary_images(canaries, victim.inputs)
    if released is None or not released.per_step:
        return image_scores(model, came, images)
    return image_scores(model, came, images, clip=released.clip, noise=released.clip / released.mu)
