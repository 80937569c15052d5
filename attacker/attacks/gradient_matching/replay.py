"""Replay of the client's work by which candidates are compared."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from attacker.attacks.gradient_matching.batch import Piece
from attacker.attacks.gradient_matching.distances import Distance
from attacker.attacks.gradient_matching.parameter_filter import matched_in
from attacker.attacks.side_information import SideInformation
from attacker.gradients.base import GradientProducts
from attacker.gradients.batch_norm import running_buffers
from attacker.gradients.distances import Elements
from attacker.gradients.fedavg.local_training import why_not_unrolled
from attacker.gradients.fedavg.surrogate import LEARNING_RATE, surrogate_products
from attacker.gradients.fedavg.unrolled_sgd import local_training_products
from attacker.gradients.observed import kept_gradient, steps_behind, why_not_one_step, why_scale_unknown
from attacker.gradients.one_step import elementwise_products, gradient_products, weights_pay
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation

UNROLLED_STEPS = 16
"""Local steps up to which "auto" unrolls; a step costs about as much as one gradient (benchmarks/federated_averaging).
"""


class ReplayMode(StrEnum):
    """Replay of weights after several local steps.

    ``UNROLLED`` replays SGD steps (the protocol must announce steps or epochs, images of a step and learning rate),
    ``SURROGATE`` takes one gradient at weights between those sent and received, ``ONE_GRADIENT`` one gradient of all
    images at the weights sent. ``AUTO`` takes one gradient for one step, unrolls up to 16 steps where enough is
    announced, and takes the surrogate otherwise.
    """

    AUTO = "auto"
    ONE_GRADIENT = "one-gradient"
    UNROLLED = "unrolled"
    SURROGATE = "surrogate"


def chosen_replay(mode: ReplayMode, observation: Observation) -> ReplayMode:
    """What a mode means for an observation: never ``AUTO``."""
    if mode is not ReplayMode.AUTO:
        return mode
    if why_not_one_step(observation) is None:
        return ReplayMode.ONE_GRADIENT
    few = (steps_behind(observation) or 0) <= UNROLLED_STEPS
    return ReplayMode.UNROLLED if few and why_not_unrolled(observation) is None else ReplayMode.SURROGATE


def why_not_replayed(mode: ReplayMode, distance: Distance, observation: Observation) -> Reason | None:
    """Why candidates cannot be compared with the update in the chosen way, or None when they can."""
    replay = chosen_replay(mode, observation)
    if replay is ReplayMode.SURROGATE and observation.kind == "gradient":
        return because("one-gradient.surrogate")
    if replay is ReplayMode.UNROLLED:
        return why_not_unrolled(observation)
    reason = why_scale_unknown(observation) if distance.needs_scale else None
    return reason and because("scale-needed", why=reason, distance=distance.name)


def replayed_products(
    piece: Piece, victim: Victim, *, mode: ReplayMode, distance: Distance, layers: str, measures_twice: bool
) -> GradientProducts:
    """Products of candidates' updates with the observed ones.

    Args:
        piece: What is attacked.
        victim: Whose loss is replayed: the piece's own, or one that takes soft labels.
        mode: How local training is replayed.
        distance: That the products are for.
        layers: Patterns of the parameters that count.
        measures_twice: Whether the same must be found whenever the same is looked at.
    """
    first = piece.observations[0]
    replay = Replay(victim, first.parameters, first.buffers)
    replays = [Replay(victim, other.parameters, other.buffers) for other in piece.observations]
    matched = matched_in(victim.model, layers, first.parameters) if layers else None
    if piece.knowledge[0].matched is not None:
        matched = piece.knowledge[0].matched & (piece.knowledge[0].matched if matched is None else matched)
    elements = distance.elements
    units = [known.units for known in piece.knowledge] if piece.knowledge[0].units else None
    chosen = chosen_replay(mode, first)
    if chosen is ReplayMode.UNROLLED:
        return local_training_products(
            replay, piece.observations, piece.seen, matched=matched, elements=elements, units=units
        )
    if chosen is ReplayMode.SURROGATE:
        return surrogate_products(
            replay,
            piece.observations,
            piece.seen,
            learning_rate=0.0 if measures_twice else LEARNING_RATE,
            matched=matched,
            elements=elements,
            units=units,
        )
    if elements is not None or units is not None:
        elements = elements or Elements()
        return elementwise_products(
            replay,
            [kept_gradient(observation) for observation in piece.observations] if elements.kept else piece.targets,
            piece.seen,
            batch_size=piece.batch_size,
            elements=elements,
            matched=matched,
            units=units,
        )
    return gradient_products(
        replays if piece.own_weights else replay,
        piece.targets,
        piece.seen,
        batch_size=piece.batch_size,
        matched=matched,
    )


def weights_may_differ(
    mode: ReplayMode,
    distance: Distance,
    victim: Victim,
    model_trace: Trace,
    observations: Sequence[Observation],
    knowledge: Sequence[SideInformation],
) -> frozenset[str] | None:
    """Buffers that may differ among victims that are attacked together with their weights, or None when none may.

    Only where it is faster, and where one gradient is replayed: other replays start from weights that all share.
    """
    several = any(chosen_replay(mode, observation) is not ReplayMode.ONE_GRADIENT for observation in observations)
    single = distance.elements is not None or any(known.units for known in knowledge)
    if several or single or not weights_pay(victim.model, model_trace):
        return None
    return running_buffers(victim.model)
