"""What must come out the same on every device: attacks, products, label recovery, with generators on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from attacker.attacks import ATTACKS, Attack, GradientMatching, Reconstruction, build_attack
from attacker.attacks.adaptive.base import AdaptiveMatching
from attacker.attacks.gradient_matching.options import options_of
from attacker.audit.execution.device import on_processor, placed
from attacker.gradients.base import GradientProducts
from attacker.gradients.double_backward import LoopProducts
from attacker.gradients.ghost.ghost import FactoredProducts, why_not_factored
from attacker.gradients.observed import observed_gradient
from attacker.gradients.one_step import DenseProducts, gradient_products
from attacker.gradients.replay import Replay
from attacker.gradients.trace import trace
from attacker.labels import LABEL_RECOVERY, recover_labels
from attacker.victim import Victim
from fl_precode.observation import Observation, Protocol
from tests.attacker import tiny

SPEC = tiny.inputs()


def normalised_convnet() -> nn.Module:
    """With batch normalisation, whose statistics some attacks match."""
    convolution, *rest = tiny.convnet(SPEC)
    return nn.Sequential(convolution, nn.BatchNorm2d(3), *rest)


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": lambda: tiny.mlp(SPEC),
    "mlp with a bottleneck": lambda: tiny.mlp(SPEC, bottleneck=True),
    "convnet": lambda: tiny.convnet(SPEC),
    "convnet with dropout": lambda: nn.Sequential(
        *list(tiny.convnet(SPEC))[:3], nn.Dropout(0.5), list(tiny.convnet(SPEC))[3]
    ),
    "normalised convnet": normalised_convnet,
}


ANNOUNCED = Protocol(name="fedsgd", batch_norm="buffers", defence="prune:share=0.5")
"""One defence that an attack adapts to; the updates are whole all the same."""


def elsewhere(observation: Observation, device: str) -> Observation:
    """The observation on another device."""
    moved = {
        name: {key: value.to(device) for key, value in getattr(observation, name).items()}
        for name in ("parameters", "buffers", "update")
    }
    return replace(observation, **moved)


def federation(model: str, batch: int) -> tuple[Victim, list[Observation]]:
    """Two clients with different images, in float64 on the CPU."""
    torch.manual_seed(0)
    victim = tiny.victim(MODELS[model](), SPEC)
    labels = [[(client + image) % SPEC.classes for image in range(batch)] for client in range(2)]
    buffers = {name: value.clone() for name, value in victim.model.named_buffers()}
    return victim, [
        tiny.observe(victim, tiny.images(SPEC, batch, seed=n), y, buffers=buffers, protocol=ANNOUNCED)
        for n, y in enumerate(labels)
    ]


def moved(victim: Victim, device: str) -> Victim:
    return Victim(model=copy.deepcopy(victim.model).to(device), inputs=SPEC)


def quick(name: str) -> Attack:
    """The attack with few iterations and two restarts, so that rounding has no time to grow."""
    attack = build_attack(name)
    if name == "portfolio" or isinstance(attack, AdaptiveMatching):
        return build_attack(f"{name}:iterations=4,restarts=2")
    if isinstance(attack, GradientMatching):
        warmup = 1 if options_of(attack)["warmup"] else 0
        return attack.with_options(iterations=4, restarts=2, warmup=warmup)
    names = {one.name for one in fields(attack)}  # type: ignore[arg-type]
    return replace(attack, iterations=4) if "iterations" in names else attack  # type: ignore[type-var]


def compare(here: list[Reconstruction], there: list[Reconstruction], device: str) -> None:
    for one, other in zip(here, there, strict=True):
        assert other.outcome is one.outcome, f"{one.outcome} on the CPU, {other.outcome}: {other.reason}"
        if one.inputs is None:
            continue
        assert other.inputs is not None
        assert other.inputs.device.type == device
        torch.testing.assert_close(other.inputs.cpu(), one.inputs, atol=1e-7, rtol=0)
        if one.matching_loss is not None:
            assert abs((other.matching_loss or 0.0) - one.matching_loss) <= 1e-7 * max(1.0, one.matching_loss)


def attack_agrees(device: str, name: str, model: str, batch: int = 1) -> None:
    """The same reconstructions; labels granted where a batch needs them, and granted on the CPU."""
    victim, seen = federation(model, batch)
    labels = None if batch == 1 else [torch.arange(batch) % SPEC.classes] * 2
    here, there = (
        quick(name)(one, observations, generator=torch.Generator().manual_seed(3), labels=labels)
        for one, observations in ((victim, seen), (moved(victim, device), [elsewhere(one, device) for one in seen]))
    )
    compare(here, there, device)


def audit_agrees(device: str) -> None:
    """An audit's attack on the device: its tensors are placed there, and what it finds is moved to the processor."""
    victim, seen = federation("normalised convnet", 1)
    attack = quick("inverting-gradients")
    there, sent = placed(victim, seen, torch.device(device))
    moved_tensors = [*there.model.parameters(), *sent[0].parameters.values(), *sent[0].update.values()]
    assert {value.device.type for value in (*moved_tensors, *sent[0].buffers.values())} == {device}
    assert next(victim.model.parameters()).device.type == "cpu"
    here = attack(victim, seen, generator=torch.Generator().manual_seed(3))
    found = attack(there, sent, generator=torch.Generator().manual_seed(3))
    compare(here, [on_processor(one) for one in found], "cpu")
    assert all(one.labels is not None and one.labels.device.type == "cpu" for one in map(on_processor, found))


def budget_agrees(device: str) -> None:
    """A budget that holds one candidate at a time."""
    victim, seen = federation("mlp", 1)
    attack = GradientMatching().with_options(iterations=4, restarts=2, memory=1e-9)
    here = attack(victim, seen, generator=torch.Generator().manual_seed(3))
    there = attack(
        moved(victim, device), [elsewhere(one, device) for one in seen], generator=torch.Generator().manual_seed(3)
    )
    compare(here, there, device)


def products_agree(device: str, model: str) -> None:
    """Every implementation, in value and in gradient, against plain double backward on the CPU."""
    victim, seen = federation(model, 2)
    latents = trace(victim).latents
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(2, 3, 2, *SPEC.shape, generator=generator, dtype=torch.float64)
    noise = [torch.randn(2, 3, 2, *latent, generator=generator, dtype=torch.float64) for latent in latents]
    labels = torch.randint(SPEC.classes, (2, 3, 2), generator=generator)

    def measured(products: GradientProducts, where: str) -> tuple[Tensor, Tensor]:
        x = start.to(where).requires_grad_(True)
        found = products(x, labels.to(where), [one.to(where) for one in noise])
        distance = found.square - 2 * found.inner + found.target.unsqueeze(1)
        return distance.detach().cpu(), torch.autograd.grad(distance.sum(), x)[0].cpu()

    replay = Replay(victim, seen[0].parameters, seen[0].buffers)
    expected = measured(LoopProducts(replay, [observed_gradient(one) for one in seen]), "cpu")
    there, sent = moved(victim, device), [elsewhere(one, device) for one in seen]
    targets, traced = [observed_gradient(one) for one in sent], trace(there)
    shared = Replay(there, sent[0].parameters, sent[0].buffers)
    own = [Replay(there, dict(one.parameters), one.buffers) for one in sent]
    products: list[GradientProducts] = [LoopProducts(shared, targets), DenseProducts(shared, targets)]
    if why_not_factored(there.model, traced) is None:
        products.append(FactoredProducts(shared, targets, traced, batch_size=2))
        products.append(FactoredProducts(own, targets, traced, batch_size=2))
    for found in (*products, gradient_products(shared, targets, traced, batch_size=2)):
        for value, wanted in zip(measured(found, device), expected, strict=True):
            torch.testing.assert_close(value, wanted, atol=1e-8, rtol=1e-8)


def labels_agree(device: str, method: str) -> None:
    """The same labels of a batch, or the same reason why not."""
    victim, (seen, _) = federation("mlp", 3)

    def found(one: Victim, observation: Observation) -> object:
        try:
            labels = recover_labels(method, one, observation, generator=torch.Generator().manual_seed(0), probes=16)
        except ValueError as error:
            return str(error)
        return None if labels is None else labels.tolist()

    here = found(victim, seen)
    there = found(moved(victim, device), elsewhere(seen, device))
    assert here == there or (isinstance(here, str) and isinstance(there, str)), (here, there)


CASES: dict[str, Callable[[str], None]] = {
    **{f"{name} on {model}": lambda d, n=name, m=model: attack_agrees(d, n, m) for name in ATTACKS for model in MODELS},
    **{f"{name}, a batch": lambda d, n=name: attack_agrees(d, n, "mlp", 3) for name in ATTACKS},
    **{f"products of {model}": lambda d, m=model: products_agree(d, m) for model in MODELS},
    **{f"labels by {method}": lambda d, m=method: labels_agree(d, m) for method in LABEL_RECOVERY},
    "memory budget": budget_agrees,
    "audit": audit_agrees,
}
