"""Losses as apps have them, and some that cannot be replayed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTED = nn.CrossEntropyLoss(weight=torch.linspace(0.2, 2.0, 10))
NOT_A_LOSS = 3


def by_hand(scores: Tensor, labels: Tensor) -> Tensor:
    return -scores.log_softmax(dim=1).gather(1, labels[:, None]).mean()


def smoothed(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, label_smoothing=0.2)


def weighted(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, weight=torch.linspace(0.2, 2.0, scores.shape[1]).to(scores))


def focal(scores: Tensor, labels: Tensor) -> Tensor:
    """Lin et al., ICCV 2017, gamma 2."""
    each = F.cross_entropy(scores, labels, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).mean()


def one_against_all(scores: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, F.one_hot(labels, scores.shape[1]).to(scores))


def single_precision(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, weight=WEIGHTED.weight)


def summed(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, reduction="sum")


def linear(scores: Tensor, labels: Tensor) -> Tensor:
    return -scores.gather(1, labels[:, None]).mean()


def for_each_image(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, reduction="none")


def a_number(scores: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(scores, labels))


def not_finite(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.mean().log() + scores.mean().neg().log()


def random(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores + torch.randn_like(scores), labels)


def detached(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores.detach(), labels)


def flat(scores: Tensor, labels: Tensor) -> Tensor:
    return 0 * scores.sum() + 1


def of_three(scores: Tensor, labels: Tensor, features: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels) + features.mean()


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        ctx.save_for_backward(scores)
        return scores.square().mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        return gradient * 2 * scores / scores.numel()


class _Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:
        ctx.kept = scores.detach().clone()
        return scores.square().mean()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * ctx.kept / ctx.kept.numel()


def once(scores: Tensor, labels: Tensor) -> Tensor:
    return _Once.apply(scores)


def hidden_backward(scores: Tensor, labels: Tensor) -> Tensor:
    return _Hidden.apply(scores)
