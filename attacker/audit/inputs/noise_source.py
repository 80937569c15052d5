"""Source of a federation's noise, and the worth of its epsilon: noise from the server's seed protects nothing.

Nothing about single images: only what the run's settings and its ``result.json`` say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from attacker.audit.record.flag_sentences import Found, raised_flag
from attacker.audit.record.schema import PrivacySpent
from attacker.audit.record.view import FederationView
from fl_precode.randomness.entropy import NOISE_FROM_A_SEED

_logger = logging.getLogger(__name__)

_DRAWING = {
    "precode", "precode-reference", "cvb", "cvb-reference", "dropout", "noise", "laplace", "ppp", "dp", "quantise",
    "local-dp", "svt",
}  # fmt: skip
"""Defences that protect by what they draw."""

_SETTING = "seeded-noise"
_REFERENCE = "dirichlet-alpha"
"""A setting that only the reference federation has: before it could choose, its noise came from the seed."""


def noise_from_a_seed(defence: str, settings: Mapping[str, Any]) -> bool:
    """Whether the defence's noise can be drawn again by whoever has the run configuration.

    Args:
        defence: Spec.
        settings: From the tape's header.

    >>> noise_from_a_seed("noise:std=1", {"seeded-noise": True}), noise_from_a_seed("prune:share=0.9", {})
    (True, False)
    """
    drawn = {part.partition(":")[0].strip() for part in defence.split("+")} & _DRAWING
    return bool(drawn) and bool(settings.get(_SETTING, _REFERENCE in settings))


def privacy_of(defence: str, settings: Mapping[str, Any], result: Mapping[str, Any]) -> PrivacySpent | None:
    """What the run's DP-SGD has spent, by its ``result.json``; without an epsilon where the noise came from a seed."""
    spent = result.get("privacy")
    if not isinstance(spent, Mapping):
        return None
    try:
        privacy = PrivacySpent(epsilon=spent["epsilon"], delta=spent["delta"], note=spent["note"])
    except (KeyError, ValidationError) as error:
        _logger.warning("what result.json says of epsilon is not used: %s", error)
        return None
    if privacy.epsilon is None or not noise_from_a_seed(defence, settings):
        return privacy
    return privacy.model_copy(update={"epsilon": None, "note": NOISE_FROM_A_SEED})


def from_a_seed(view: FederationView) -> Iterator[Found]:
    """The flag of a federation whose noise the server can take away."""
    if view.federation.noise_from_seed:
        yield raised_flag("noise-from-a-seed")
