"""Defences that the search tries: each alone and together, in several places, with larger batches and more steps."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.scales import Scale
from fl_precode.defences.registry import apply_defence
from fl_precode.models import build_model

NOISES = ("0.0001", "0.001", "0.01", "0.1")
PPP_GRADIENTS = 9
"""PPP measures which gradients a bottleneck leaves deterministic on eight more of them."""


@dataclass(frozen=True, kw_only=True)
class CandidateDefence:
    """A way of working that might protect.

    Attributes:
        defence: Spec.
        batch_size: Images of one step.
        local_steps: Of a client under FedAvg.
        payload_bytes: That a client sends in a round.
        gradients: Gradients of single images that a client computes in a round.
    """

    defence: str
    batch_size: int
    local_steps: int
    payload_bytes: int
    gradients: int

    @property
    def cost(self) -> tuple[int, int]:
        """Cheaper is smaller: first by what is sent, then by what is computed."""
        return self.payload_bytes, self.gradients


def candidates(experiment: Experiment, data: str, model: str, *, at_most: int) -> list[CandidateDefence]:
    """Candidates by rising cost; of equal cost weaker perturbations first.

    Where there are more than ``at_most``, a seeded choice of them.

    Raises:
        ValueError: If the model does not fit the images.
    """
    loaded = images(data, experiment.data_root)
    plain = build_model(model, loaded.inputs, seed=experiment.seed)
    possible = []
    for defence in _defences(plain):
        try:
            with _no_warnings():
                defended = apply_defence(defence, plain, loaded.inputs, seed=experiment.seed)
        except ValueError:  # this model has no such place
            continue
        sent = sum(value.numel() * value.element_size() for value in defended.state_dict().values())
        for batch_size, local_steps in _work(experiment.scale):
            if defence == "none" and batch_size * local_steps == 1:
                continue
            each = batch_size * local_steps * (PPP_GRADIENTS if "ppp" in defence else 1)
            possible.append(
                CandidateDefence(
                    defence=defence, batch_size=batch_size, local_steps=local_steps, payload_bytes=sent, gradients=each
                )
            )
    if len(possible) > at_most:
        possible = sorted(possible, key=lambda candidate: _draw(experiment.seed, candidate))[:at_most]
        possible.sort(key=lambda candidate: list(_defences(plain)).index(candidate.defence))
    return sorted(possible, key=lambda candidate: candidate.cost)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """What there is to warn of is said when a candidate is tried, not of all that could be."""
    logger = logging.getLogger("fl_precode")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _draw(seed: int, candidate: CandidateDefence) -> bytes:
    return hashlib.sha256(f"{seed} {candidate}".encode()).digest()


def _work(scale: Scale) -> list[tuple[int, int]]:
    """Batch sizes and local steps, as far as there are victims for one client."""
    return [(b, k) for b, k in ((1, 1), (4, 1), (1, 4), (8, 1), (8, 4)) if b * k <= scale.victims]


def _defences(model: nn.Module) -> Iterator[str]:
    """Specs, weaker perturbations before stronger ones. None at all may do where many images are in one update."""
    yield "none"
    yield from (f"noise:std={std}" for std in NOISES)
    yield from ("prune:share=0.9", "prune:share=0.99", "prune:share=0.9+noise:std=0.01")
    yield "clip:max_norm=0.1+noise:std=0.01"
    yield from ("dp:max_norm=1,noise_multiplier=0.1", "dp:max_norm=1,noise_multiplier=1.1")
    for bottleneck in _bottlenecks(model):
        yield bottleneck
        yield from (f"{bottleneck}+noise:std={std}" for std in NOISES[1:])
        yield from (f"{bottleneck}+ppp:std={std}" for std in NOISES[2:])


def _bottlenecks(model: nn.Module) -> Iterator[str]:
    """PRECODE and CVB in their usual places, then before every other Linear or convolution."""
    yield from ("precode", "cvb")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    yield from (f"precode:before={name}" for name in linear[:-1])
    yield from (f"cvb:before={name}" for name in convolutions[2:])
