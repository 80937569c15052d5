"""Victims, members and measures for tests of the portfolio."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from attacker.attacks import Attack, Member, Portfolio, build_attack
from attacker.attacks.base import Reconstruction
from attacker.attacks.portfolio import standard_members
from attacker.gradients.distances import cosine_distance
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.observed import observed_gradient
from attacker.gradients.replay import Replay
from attacker.metrics.similarity import mse
from tests.attacker import tiny

SPEC = tiny.inputs()


def members(*methods):
    return tuple(Member(method=method, attack=build_attack(method)) for method in methods)


EQUATIONS = ("layerwise-inversion", "through-bottleneck", "spear")
"""Members that solve the small models of these tests at once, and leave nothing to the others."""


def portfolio(iterations=60, *, equations=False, **options):
    specs = standard_members(
        iterations=iterations, total_variations=(1e-6, 1e-2), **{"restarts": 1, "plateau": 0, **options}
    )
    return Portfolio(members=members(*(spec for spec in specs if equations or spec not in EQUATIONS)))


def victim_of(build=tiny.mlp, **options):
    torch.manual_seed(0)
    model = build(SPEC, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.5, 0.5)
    return tiny.victim(model, SPEC)


def relu_convnet(spec):
    return nn.Sequential(
        nn.Conv2d(spec.channels, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, spec.classes)
    )


def convolutions(spec):
    return nn.Sequential(nn.Conv2d(spec.channels, 3, 3), nn.Sigmoid(), nn.Conv2d(3, spec.classes, 4), nn.Flatten())


def observations(victim, count=1):
    truths = [tiny.images(SPEC, 1, seed=index) for index in range(count)]
    return truths, [tiny.observe(victim, x, [index % 4], node=str(index)) for index, x in enumerate(truths)]


def run(attack, victim, seen, seed=0, labels=None, progress=None):
    return attack(victim, seen, generator=torch.Generator().manual_seed(seed), labels=labels, progress=progress)


def measured(victim, observation, result, noise=(), matched=None):
    replay = Replay(victim, observation.parameters, {})
    products = LoopProducts(replay, [observed_gradient(observation)], matched=matched)
    with torch.no_grad():
        return float(cosine_distance(products(result.inputs[None, None], result.labels[None, None], noise)))


def error(result, x):
    return float(mse(SPEC.denormalise(result.inputs), SPEC.denormalise(x)))


@dataclass(frozen=True, kw_only=True)
class Raises(Attack):
    """An attack with a defect."""

    on_refusal: bool = False

    @property
    def name(self):
        return "raises"

    def refuses(self, victim, observation):
        if self.on_refusal:
            raise RuntimeError("no memory for a reason")

    def run(self, victim, observations, labels, generators, progress):
        raise RuntimeError("out of memory")


@dataclass(frozen=True, kw_only=True)
class Answers(Attack):
    """Gives what it was told."""

    result: Reconstruction

    @property
    def name(self):
        return "answers"

    def refuses(self, victim, observation):
        return None

    def run(self, victim, observations, labels, generators, progress):
        return [self.result] * len(observations)
