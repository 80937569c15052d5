"""Defences by name: a spec such as ``precode:latent=128+ppp:std=0.01`` to a model and a gradient defence."""

from fl_precode.defences.in_model import ModelDefence
from fl_precode.defences.on_gradients import Batch, GradientDefence
from fl_precode.defences.registry import (
    DEFENCES,
    DefenceEntry,
    apply_defence,
    changes_model,
    check_defence,
    check_gradient_defence,
    gradient_defence,
    register_defence,
)

__all__ = [
    "DEFENCES",
    "Batch",
    "DefenceEntry",
    "GradientDefence",
    "ModelDefence",
    "apply_defence",
    "changes_model",
    "check_defence",
    "check_gradient_defence",
    "gradient_defence",
    "register_defence",
]
