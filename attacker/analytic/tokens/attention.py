"""Softmax attention over all tokens of an image, found among the layers between two norms by what it computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

_AGREES: Final = 1e-5


@dataclass(frozen=True, kw_only=True)
class Projection:
    """A Linear map with its bias.

    Attributes:
        weight: (outputs, inputs).
        bias: (outputs,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """(..., outputs)."""
        return x @ self.weight.T + self.bias


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Scaled dot-product attention with a projection behind it.

    Attributes:
        query: Query of the tokens behind the norm.
        key: Likewise.
        value: Likewise.
        out: Behind the heads, side by side.
        out_weight: Name of ``out.weight`` in the model.
        heads: Number of heads.
        scale: (width,), what the result is multiplied by before it is added (layer scale), ones without.
    """

    query: Projection
    key: Projection
    value: Projection
    out: Projection
    out_weight: str
    heads: int
    scale: Tensor

    def by_heads(self, x: Tensor) -> Tensor:
        """(..., tokens, width) as (..., heads, tokens, width of a head)."""
        parts: Tensor = x.reshape(*x.shape[:-1], self.heads, -1).transpose(-3, -2)
        return parts

    def mixed(self, queries: Tensor, others: Tensor) -> Tensor:
        """What tokens attend to in others, heads side by side, before the projection.

        Args:
            queries: (..., n, width), normalised tokens that ask.
            others: (..., tokens, width), normalised tokens that answer.
        """
        q, k, v = (
            self.by_heads(part(x)) for part, x in ((self.query, queries), (self.key, others), (self.value, others))
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        return (weights @ v).transpose(-3, -2).flatten(-2)

    def added(self, mixed: Tensor) -> Tensor:
        """What is added to the tokens."""
        return self.out(mixed) * self.scale


def find_attention(modules: Sequence[tuple[str, nn.Module]], tokens: Tensor, added: Tensor) -> Attention | None:
    """The attention that adds what was added, among the layers that ran in between; None where none does.

    Args:
        modules: Names and modules, in order of execution, whose weights are to be used.
        tokens: (images, tokens, width) behind the norm.
        added: (images, tokens, width), what the tokens grew by.
    """
    names = [name for name, _ in modules]
    several = [(name, module) for name, module in modules if isinstance(module, nn.MultiheadAttention)]
    inside = tuple(f"{name}." for name, _ in several)
    linear = [(name, one) for name, one in modules if isinstance(one, nn.Linear) and not name.startswith(inside or ".")]
    assert len(names) == len(modules)
    for candidate in itertools.chain(_of_torch(several), _fused(linear), _separate(linear)):
        if candidate.query.weight.shape[1] != tokens.shape[-1] or len(candidate.out.weight) != added.shape[-1]:
            continue
        if (found := _scaled(candidate, tokens, added)) is not None:
            return found
    return None


def _scaled(candidate: Attention, tokens: Tensor, added: Tensor) -> Attention | None:
    """The candidate with the scale that makes it agree, where one does."""
    value = candidate.added(candidate.mixed(tokens, tokens)).flatten(0, -2)
    wanted = added.flatten(0, -2)
    scale = (value * wanted).sum(dim=0) / value.square().sum(dim=0).clamp_min(1e-300)
    if not bool((value * scale - wanted).abs().max() <= _AGREES * wanted.abs().max()):
        return None
    plain = bool((scale - 1).abs().max() <= _AGREES)
    return replace(candidate, scale=torch.ones_like(scale) if plain else scale)


def _of_torch(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[Attention]:
    for name, module in modules:
        assert isinstance(module, nn.MultiheadAttention)
        width = module.embed_dim
        if module._qkv_same_embed_dim:
            weights: Sequence[Tensor] = module.in_proj_weight.detach().chunk(3)
        else:
            weights = [one.detach() for one in (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)]
        biases = weights[0].new_zeros(3 * width) if module.in_proj_bias is None else module.in_proj_bias.detach()
        query, key, value = (Projection(weight=w, bias=b) for w, b in zip(weights, biases.chunk(3), strict=True))
        yield Attention(
            query=query,
            key=key,
            value=value,
            out=_projection(module.out_proj),
            out_weight=f"{name}.out_proj.weight",
            heads=module.num_heads,
            scale=weights[0].new_ones(width),
        )


def _fused(linear: Sequence[tuple[str, nn.Linear]]) -> Iterator[Attention]:
    """One layer for query, key and value, and one behind the heads."""
    for (_, first), (name, last) in itertools.permutations(linear, 2):
        if first.out_features == 3 * last.in_features:
            whole = _projection(first)
            parts = [
                Projection(weight=w, bias=b) for w, b in zip(whole.weight.chunk(3), whole.bias.chunk(3), strict=True)
            ]
            yield from _with_heads(parts, name, last)


def _separate(linear: Sequence[tuple[str, nn.Linear]]) -> Iterator[Attention]:
    """Three layers for query, key and value in any order, and one behind the heads."""
    for *first, (name, last) in itertools.permutations(linear, 4) if len(linear) <= 5 else ():
        if all(one.out_features == last.in_features for _, one in first):
            yield from _with_heads([_projection(one) for _, one in first], name, last)


def _with_heads(parts: Sequence[Projection], name: str, last: nn.Linear) -> Iterator[Attention]:
    query, key, value = parts
    out = _projection(last)
    width = len(value.weight)
    for heads in (heads for heads in range(1, width + 1) if width % heads == 0):
        yield Attention(
            query=query,
            key=key,
            value=value,
            out=out,
            out_weight=f"{name}.weight",
            heads=heads,
            scale=out.weight.new_ones(len(out.weight)),
        )


def _projection(layer: nn.Linear) -> Projection:
    weight = layer.weight.detach()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
    return Projection(weight=weight, bias=bias)
