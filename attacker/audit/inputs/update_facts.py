"""Facts about updates besides attacks: randomness of the model, withheld knowledge, identity of the tape."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from attacker.attacks.base import check_observation
from attacker.audit.inputs.loss_assumed import loss_assumed
from attacker.audit.inputs.noise_floor import noise_floors
from attacker.audit.record.schema import AssumptionEntry, TapeIdentity, UpdateFacts
from attacker.gradients.batch_norm import batch_norms
from attacker.gradients.client_mode import as_trained
from attacker.gradients.observed import steps_behind
from attacker.gradients.replay import Replay
from attacker.gradients.uncompared_parameters import settled
from attacker.model_copy import copied
from attacker.victim import Victim, assumptions_of
from fl_precode.assumption import Assumption
from fl_precode.observation import Observation
from fl_precode.tape import Tape

_logger = logging.getLogger(__name__)

_ROUNDING = 1e-5
"""Share by which two gradients of the same images may differ without the model being random."""


def update_facts(victim: Victim, observations: Sequence[Observation]) -> UpdateFacts:
    """What a reader must know about the updates to judge what attacks made of them.

    Args:
        victim: Public knowledge about the model.
        observations: The updates that were attacked.
    """
    steps = [steps_behind(observation) for observation in observations]
    known = [number for number in steps if number is not None]
    return UpdateFacts(
        random=_is_random(victim, observations),
        buffers_withheld=any(_buffers_withheld(victim, observation) for observation in observations),
        steps=max(known) if known and len(known) == len(steps) else None,
        noise_floors=noise_floors(observations),
    )


def common_assumptions(observations: Sequence[Observation], of_all: Sequence[Assumption] = ()) -> list[AssumptionEntry]:
    """What was assumed about updates, each once, with the number of updates that it is assumed about.

    Args:
        observations: The updates, each with what was assumed about it.
        of_all: What is assumed about all of them; not said again where the updates say it.
    """
    counts = Counter(assumption for observation in observations for assumption in observation.assumptions)
    said = {assumption.code for assumption in counts}
    counts.update({assumption: len(observations) for assumption in of_all if assumption.code not in said})
    return [AssumptionEntry(**asdict(assumption), updates=number) for assumption, number in counts.items()]


def assumptions_about(
    victim: Victim, observations: Sequence[Observation], of_all: Sequence[Assumption] = ()
) -> list[AssumptionEntry]:
    """What was assumed about a federation: about each update, about the model, and about what clients minimise.

    Args:
        victim: Public knowledge about the model.
        observations: The updates that are attacked.
        of_all: What else is assumed about all of them.
    """
    losses = [loss_assumed(victim, observation) for observation in observations]
    annotated = [
        observation if loss is None else replace(observation, assumptions=(*observation.assumptions, loss))
        for observation, loss in zip(observations, losses, strict=True)
    ]
    return common_assumptions(annotated, [*assumptions_of(victim), *of_all])


def tape_identity(tape: Tape) -> TapeIdentity:
    """What tells this tape, as far as it is written, from any other.

    Raises:
        TapeError: If it cannot be read.
    """
    sha256, length = tape.fingerprint()
    return TapeIdentity(sha256=sha256, manifest_bytes=length)


def _is_random(victim: Victim, observations: Sequence[Observation]) -> bool | None:
    """Whether the model, as clients train it, gives another gradient when it is asked again; None when it cannot be."""
    if victim.why_no_loss is not None:
        return None
    fitting = next(
        (observation for observation in observations if check_observation(victim, observation) is None), None
    )
    if fitting is None:
        return None
    try:
        victim, fitting = settled(victim, fitting)
        first, second = (_replayed(victim, fitting, seed) for seed in (1, 2))
    except Exception:  # foreign models may raise anything
        _logger.warning("whether the model is random could not be measured", exc_info=True)
        return None
    return bool((first - second).norm() > _ROUNDING * first.norm())


def _replayed(victim: Victim, observation: Observation, seed: int) -> Tensor:
    """The gradient of always the same images, the global generator seeded; one vector."""
    (group,) = as_trained(victim, [observation])
    model = copied(group.victim.model)
    other = replace(victim, model=model)
    model.train()
    for name in batch_norms(model):  # those that are left normalise by buffers
        model.get_submodule(name).eval()
    images = torch.randn(2, *victim.inputs.shape, generator=torch.Generator().manual_seed(0))
    like = next(iter(observation.parameters.values()))
    labels = torch.arange(2, device=like.device) % victim.inputs.classes
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in observation.parameters.items()}
    buffers = {name: value.clone() for name, value in group.observations[0].buffers.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = Replay(other, weights, buffers).loss(weights, images.to(like), labels, ())
    gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def _buffers_withheld(victim: Victim, observation: Observation) -> bool:
    """Whether clients normalise by running statistics, for all that is known, and the tape has not all of them."""
    if observation.protocol.batch_norm == "batch":
        return False
    return any(f"{name}.running_mean" not in observation.buffers for name in batch_norms(victim.model))
