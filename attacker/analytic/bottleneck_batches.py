"""The features of a batch in the gradient of PRECODE's bottleneck, told apart by its own KL term.

The bottleneck's encoder gets ``dW = deltas.T @ h`` and ``db = deltas.T @ 1``, of rank B for a batch of B. Any
factorisation ``left @ right`` has ``deltas.T = left @ Q`` and ``h = Q^-1 @ right`` with one unknown matrix Q.

The half of deltas that belongs to mu is ``g + (beta / B) mu``: g comes through decoder and classifier, hence from a
space of as many dimensions as there are classes, which is public; beta too. Outside of that space only the KL term is
left, and ``mu = h @ W.T + b`` is linear in h: ``P left_mu Q = (beta / B) P mu.T`` with P the projection. Multiplied by
``Q.T`` from the right, with ``Q Q.T = S`` and ``Q 1 = t`` from db, it is linear in S:

    P left_mu S = (beta / B) P (W right.T + b t.T).

So S, and with it Q up to a rotation that keeps one vector, is the solution of a linear least-squares problem. No
rotation is left for two images. For more, the other half of deltas, ``(g eps + (beta / B)(sigma - 1/sigma))
sigmoid(s)``, and the decoder's gradient, ``E.T @ z`` in the space of classes, hold for the right rotation only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from attacker.analytic.low_rank import LowRank, factorise
from attacker.gradients.observed import observed_gradient, why_not_one_step, why_scale_unknown
from attacker.gradients.trace import Trace
from attacker.optim.deadline import time_is_up
from attacker.optim.least_squares import least_squares
from attacker.reasons import Reason, because
from fl_precode.defences.precode import VariationalBottleneck
from fl_precode.observation import Observation

SOLVED = 2e-2
"""Relative residual below which a rotation counts as found: wrong ones leave 0.1 and more, rounding to float32 up to
0.01 was measured."""

_ANGLE = 1e-5
_LARGEST_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class BottleneckGradient:
    """What is public about a bottleneck right before a classifier, and its gradient, all float64.

    Attributes:
        encoder: (2 latent, features) weight.
        encoder_bias: (2 latent,).
        decoder: (features, latent) weight.
        classifier: (classes, features) weight of the layer behind the decoder.
        beta: Weight of the KL term per nat.
        batch: Images of the batch.
        factors: Factors of the encoder's weight gradient.
        encoder_bias_gradient: (2 latent,).
        decoder_gradient: (features, latent).
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    classifier: Tensor
    beta: float
    batch: int
    factors: LowRank
    encoder_bias_gradient: Tensor
    decoder_gradient: Tensor

    @property
    def latent(self) -> int:
        """Length of z."""
        return self.encoder.shape[0] // 2

    @property
    def through(self) -> Tensor:
        """(latent, classes): how gradients at the logits reach z."""
        return (self.classifier @ self.decoder).T


@dataclass(frozen=True, kw_only=True)
class BatchFeatures:
    """What entered a bottleneck, for each image.

    Attributes:
        features: (batch, features).
        deltas: (batch, 2 latent), the gradient at the encoder's output.
        noise: (batch, latent), the client's eps.
        residual: Relative error of the equations that only the right rotation fulfils; 0 is perfect.
    """

    features: Tensor
    deltas: Tensor
    noise: Tensor
    residual: float


def bottleneck_gradient(trace: Trace, observation: Observation) -> BottleneckGradient | Reason:
    """What an update says of the bottleneck before the classifier, or why the equations do not hold for it."""
    runs = [run for run in trace.bottlenecks if isinstance(run.module, VariationalBottleneck)]
    last = trace.last_linear()
    if len(trace.bottlenecks) != 1 or not runs or last is None or not isinstance(last.module, nn.Linear):
        return because("bottleneck-not-one")
    run, module = runs[0], runs[0].module
    assert isinstance(module, VariationalBottleneck)
    prefix = f"{run.name}." if run.name else ""
    if [layer.name for layer in trace.layers[-3:]] != [f"{prefix}encoder", f"{prefix}decoder", last.name]:
        return because("bottleneck-not-last", name=run.name, classifier=last.name)
    needed = {f"{prefix}{name}" for name in ("encoder.weight", "encoder.bias", "decoder.weight")}
    if still := sorted(needed - observation.update.keys()):
        return because("bottleneck-did-not-move.gradient", name=still[0])
    why_not = why_not_one_step(observation) or why_scale_unknown(observation)
    if why_not is not None:
        return because("scale-needed.bottleneck", why=why_not)
    if not module.beta:
        return because("bottleneck-without-kl", name=run.name)
    gradient = {name: value.double() for name, value in observed_gradient(observation).items()}
    weight = f"{prefix}encoder.weight"
    factors = factorise(gradient[weight], _LARGEST_BATCH, name=weight, expected=observation.batch_size)
    if isinstance(factors, Reason):
        return factors
    if observation.batch_size not in (None, factors.rank):
        return because("rank-too-high.not-that", name=weight, rank=factors.rank, size=observation.batch_size)
    classes = last.module.out_features
    if factors.rank >= classes:
        return because("too-many-images.classes", images=factors.rank, classes=classes)
    weights = {**observation.buffers, **observation.parameters}
    return BottleneckGradient(
        encoder=weights[f"{prefix}encoder.weight"].double(),
        encoder_bias=weights[f"{prefix}encoder.bias"].double(),
        decoder=weights[f"{prefix}decoder.weight"].double(),
        classifier=weights[f"{last.name}.weight"].double(),
        beta=module.beta,
        batch=factors.rank,
        factors=factors,
        encoder_bias_gradient=gradient[f"{prefix}encoder.bias"],
        decoder_gradient=gradient[f"{prefix}decoder.weight"],
    )


def mixing_gram(bottleneck: BottleneckGradient) -> tuple[Tensor, Tensor]:
    """``S = Q Q.T`` (batch, batch), symmetric, and ``t = Q 1`` (batch,)."""
    left, right, latent = bottleneck.factors.left, bottleneck.factors.right, bottleneck.latent
    ones = least_squares(left, bottleneck.encoder_bias_gradient)
    classes = torch.linalg.qr(bottleneck.through).Q

    def outside(matrix: Tensor) -> Tensor:
        outer: Tensor = matrix - classes @ (classes.T @ matrix)
        return outer

    mixed_mu = bottleneck.encoder[:latent] @ right.T + torch.outer(bottleneck.encoder_bias[:latent], ones)
    gram = least_squares(outside(left[:latent]), bottleneck.beta / bottleneck.batch * outside(mixed_mu))
    return (gram + gram.T) / 2, ones


def features_of_batch(
    bottleneck: BottleneckGradient, generator: Generator, *, starts: int = 64, steps: int = 60
) -> BatchFeatures | Reason:
    """Features, gradients and noise of every image, or why they are not found.

    Args:
        bottleneck: The bottleneck.
        generator: Source of the first rotations.
        starts: Rotations from which Levenberg-Marquardt starts, at most; one is enough for one or two images.
        steps: Steps of each search.
    """
    gram, ones = mixing_gram(bottleneck)
    values, vectors = torch.linalg.eigh(gram)
    if float(values[0]) <= 0:
        return because("mixing-not-solved")
    root = vectors @ (values.sqrt()[:, None] * vectors.T)
    image = torch.linalg.solve(root, ones)  # where the rotation takes the vector of ones
    before, after = _frame(image), _frame(torch.ones_like(image))
    size = len(image) - 1

    def mixing(turn: Tensor) -> Tensor:
        inner = torch.eye(size + 1, dtype=turn.dtype, device=turn.device)
        inner[1:, 1:] = turn
        mixed: Tensor = root @ before @ inner @ after.T
        return mixed

    best, least = _misfit(bottleneck, mixing(torch.eye(size).to(root)))[1], math.inf
    tried = 0
    for _ in range(starts if size > 1 else 1):
        tried += 1
        draw = torch.randn(size, size, generator=generator, dtype=torch.float64).to(root)
        turn = torch.linalg.qr(draw).Q
        if size > 1:
            turn = _descend(lambda rotation: _misfit(bottleneck, mixing(rotation))[0], turn, steps)
        misfit, recovered = _misfit(bottleneck, mixing(turn))
        value = float(misfit.square().sum().sqrt())
        if value < least:
            best, least = recovered, value
        if least < SOLVED or time_is_up():
            break
    if least >= SOLVED:
        return because("mixing-not-solved.rotations", tried=tried, least=least, solved=SOLVED)
    features, deltas, noise = best
    return BatchFeatures(features=features, deltas=deltas, noise=noise, residual=least)


def _frame(first: Tensor) -> Tensor:
    """An orthonormal basis whose first vector points along the one given."""
    rest = torch.eye(len(first), dtype=first.dtype, device=first.device)
    basis = torch.linalg.qr(torch.cat([first[:, None], rest[:, : len(first) - 1]], dim=1)).Q
    signed: Tensor = basis * torch.sign(basis[:, 0] @ first)
    return signed


def _misfit(bottleneck: BottleneckGradient, mixing: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Relative residuals of the equations in s, flat, and (features, deltas, noise) for a mixing."""
    latent, share = bottleneck.latent, bottleneck.beta / bottleneck.batch
    features = torch.linalg.solve(mixing, bottleneck.factors.right)
    deltas = (bottleneck.factors.left @ mixing).T
    stat = features @ bottleneck.encoder.T + bottleneck.encoder_bias
    mu, s = stat[:, :latent], stat[:, latent:]
    sigma = F.softplus(s)
    through_classes = deltas[:, :latent] - share * mu  # g
    logits = least_squares(bottleneck.through, through_classes.T)  # (classes, batch)
    sampled = least_squares(bottleneck.classifier.T, bottleneck.decoder_gradient)  # (classes, latent)
    z = torch.linalg.pinv(logits) @ sampled
    noise = (z - mu) / sigma
    expected = (through_classes * noise + share * (sigma - 1 / sigma)) * torch.sigmoid(s)
    scale = torch.linalg.vector_norm(bottleneck.factors.left[latent:] @ mixing)
    return ((expected - deltas[:, latent:]) / scale).flatten(), (features, deltas, noise)


def _descend(function: Callable[[Tensor], Tensor], turn: Tensor, steps: int) -> Tensor:
    """Levenberg-Marquardt over rotations, from one, with central differences."""
    axes = _planes(turn)
    damping, value = 1e-2, function(turn)
    loss = float(value.square().sum())
    for _ in range(steps):
        sides = [
            function(turn @ torch.linalg.matrix_exp(sign * _ANGLE * axis)) for axis in axes for sign in (1.0, -1.0)
        ]
        jacobian = torch.stack([(up - down) / (2 * _ANGLE) for up, down in zip(sides[::2], sides[1::2], strict=True)])
        normal, slope = jacobian @ jacobian.T, jacobian @ value
        for _ in range(6):
            angles = -torch.linalg.solve(normal + damping * torch.diag(normal.diagonal()), slope)
            trial = turn @ torch.linalg.matrix_exp((angles[:, None, None] * axes).sum(dim=0))
            new = function(trial)
            if float(new.square().sum()) < loss:
                break
            damping *= 4
        else:
            return turn
        before, turn, value, damping = loss, trial, new, damping / 5
        loss = float(new.square().sum())
        if loss > (1 - 1e-6) * before:
            break
    return turn


def _planes(like: Tensor) -> Tensor:
    """(planes, size, size): the infinitesimal rotations."""
    size = len(like)
    rows, columns = torch.triu_indices(size, size, 1).to(like.device)
    axes = like.new_zeros(len(rows), size, size)
    axes[torch.arange(len(rows)), rows, columns] = 1.0
    return axes - axes.transpose(1, 2)
