"""Ranges of gradient matching's settings, and which of them contradict each other."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from attacker.attacks.layers import check_patterns
from attacker.attacks.replaying import LOCAL_TRAINING
from attacker.engine import DISTANCES
from attacker.engine.schedule import SHAPES
from attacker.engine.starts import check_start

if TYPE_CHECKING:
    from attacker.attacks.gradient_matching import GradientMatching

OPTIMISERS = ("adam", "l-bfgs")
LABELS = ("recovered", "joint")
GROUP_MEANS = ("mean", "registered")
ITERATES = ("best", "last")

_WEIGHTS = (
    "total_variation",
    "image_norm",
    "batch_norm",
    "group_consistency",
    "langevin",
    "sign_softness",
    "stop_below",
)

# What L-BFGS cannot work with: the setting, the only value that fits, and why.
_L_BFGS_NEEDS: tuple[tuple[str, object, str], ...] = (
    ("signed", False, "its curvature estimate needs the gradient itself, not signs"),
    ("boxed", False, "a projection would break its line search"),
    ("total_variation", 0, "total variation has kinks, and it needs a smooth loss"),
    ("total_variations", "", "total variation has kinks, and it needs a smooth loss"),
    ("batch_norm", 0, "the norms of this prior have a kink where statistics agree, and it needs a smooth loss"),
    ("group_consistency", 0, "the consensus moves, and a line search must see the same loss when it looks twice"),
    ("schedule", "constant", "its line search finds the step"),
    ("warmup", 0, "its line search finds the step"),
    ("langevin", 0, "a line search must see the same loss when it looks twice"),
    ("halving", 0, "its candidates are at different stages of their line searches and cannot be compared in between"),
    ("iterate", "last", "its steps only go down: the last is the best"),
)


def check_settings(settings: GradientMatching) -> None:
    """Check each setting alone, then all together.

    Raises:
        ValueError: If one is out of its range, or two contradict each other.
    """
    for name, least in (
        ("iterations", 1),
        ("restarts", 1),
        ("history", 0),
        ("warmup", 0),
        ("plateau", 0),
        ("halving", 0),
    ):
        _whole(name, getattr(settings, name), least)
    if not 0 < settings.learning_rate < float("inf"):
        raise ValueError(f"expected a positive, finite learning_rate, got {settings.learning_rate!r}")
    if not 0 <= settings.memory < float("inf"):
        raise ValueError(f"expected memory in GiB, 0 (for the default) or more, got {settings.memory!r}")
    for name in _WEIGHTS:
        value = getattr(settings, name)
        if not 0 <= value < float("inf"):
            raise ValueError(f"expected a finite {name} of 0 or more, got {value!r}")
    for name in ("signed", "boxed"):
        if not isinstance(getattr(settings, name), bool):
            raise ValueError(f"expected {name} to be True or False, got {getattr(settings, name)!r}")
    _check_raced(settings)
    _one_of("distance", settings.distance, tuple(DISTANCES))
    _one_of("optimiser", settings.optimiser, OPTIMISERS)
    _one_of("labels", settings.labels, LABELS)
    _one_of("schedule", settings.schedule, SHAPES)
    _one_of("group_mean", settings.group_mean, GROUP_MEANS)
    _one_of("iterate", settings.iterate, ITERATES)
    check_start(settings.start)
    _one_of("local_training", settings.local_training, LOCAL_TRAINING)
    check_patterns(settings.layers)
    if settings.distance.startswith("cosine") and not 0 < settings.converged_below <= 2:
        raise ValueError(f"expected converged_below in (0, 2] for a cosine distance, got {settings.converged_below!r}")
    if not 0 < settings.converged_below < float("inf"):
        raise ValueError(f"expected a positive, finite converged_below, got {settings.converged_below!r}")
    _check_together(settings)


def _check_raced(settings: GradientMatching) -> None:
    if not settings.total_variations:
        return
    try:
        weights = settings.weights
    except ValueError:
        weights = ()
    valid = all(0 <= weight < float("inf") for weight in weights)
    if not valid or len(weights) < 2 or len(set(weights)) < len(weights):
        raise ValueError(
            "expected total_variations to be two or more different weights of 0 or more, separated by |, such as "
            f"1e-6|1e-4|1e-2|1e-1, got {settings.total_variations!r}"
        )


def _check_together(settings: GradientMatching) -> None:
    if settings.optimiser == "adam":
        _check_adam(settings)
    else:
        _check_l_bfgs(settings)
    if settings.sign_softness and not settings.signed:
        raise ValueError("sign_softness softens the sign of the gradient; set signed to True, or sign_softness to 0")
    if settings.stop_below > settings.converged_below:
        raise ValueError(
            f"stop_below={settings.stop_below:g} would end attacks that do not count as converged; expected at most "
            f"converged_below={settings.converged_below:g}"
        )
    _check_restarts(settings)


def _check_adam(settings: GradientMatching) -> None:
    if settings.history:
        raise ValueError(f"adam remembers no steps: expected history=0, got {settings.history}")
    if settings.labels == "joint":
        raise ValueError("labels='joint' needs optimiser='l-bfgs', which has no box and no prior on the labels")
    if settings.warmup >= settings.iterations:
        raise ValueError(
            f"expected warmup to end before the {settings.iterations} iterations do, got {settings.warmup}"
        )


def _check_l_bfgs(settings: GradientMatching) -> None:
    if settings.history < 1:
        raise ValueError("optimiser='l-bfgs' needs a history of 1 or more steps; DLG uses 100")
    for name, fits, why in _L_BFGS_NEEDS:
        if getattr(settings, name) != fits:
            raise ValueError(f"optimiser='l-bfgs' does not fit {name}: {why}; set {name} to {fits}")
    if settings.distance.startswith(("l1", "signs")):
        raise ValueError(
            f"optimiser='l-bfgs' does not fit distance={settings.distance!r}: absolute values have kinks, and it needs "
            "a smooth loss; set distance to cosine or l2"
        )


def _check_restarts(settings: GradientMatching) -> None:
    if settings.halving:
        if settings.restarts < 2**settings.halving:
            raise ValueError(
                f"halving={settings.halving} leaves one of {2**settings.halving} restarts; "
                f"expected at least so many, got restarts={settings.restarts}"
            )
        if settings.iterations < 2 ** (settings.halving + 1) - 1:
            raise ValueError(
                f"halving={settings.halving} needs {2 ** (settings.halving + 1) - 1} iterations or more to compare "
                f"restarts between its rungs, got iterations={settings.iterations}"
            )
    if settings.group_consistency:
        if settings.restarts < 2:
            raise ValueError("group_consistency compares restarts of a victim; set restarts to 2 or more, or it to 0")
        if settings.plateau:
            raise ValueError(
                "plateau lets restarts leave one by one, and group_consistency makes each depend on the others; "
                "set one of them to 0"
            )
    elif settings.group_mean != "mean":
        raise ValueError("group_mean says what group_consistency compares with; set group_consistency above 0")
    if settings.start == "grey" and settings.restarts > 1 and not settings.langevin:
        raise ValueError("start='grey' is one point, from which all restarts go the same way; set restarts to 1")


def _whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"expected {name} to be a whole number of {least} or more, got {value!r}")


def _one_of(name: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
