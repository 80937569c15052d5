"""The first block of a transformer at the weights of an update: its layers, and how tokens come from pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from attacker.analytic.patches.patch_layer import Arrived, PatchLayer, patch_layer
from attacker.analytic.spans.stacked_layers import StackedLayers, linear_runs
from attacker.analytic.spans.token_batch import perceptron_of_block
from attacker.analytic.tokens.attention import Attention, find_attention
from attacker.analytic.tokens.embedding import TokenEmbedding, find_embedding
from attacker.analytic.tokens.layer_norm import LayerNorm, layer_norm_between
from attacker.gradients.trace import Trace
from attacker.gradients.uncompared_parameters import constants_of
from attacker.model_copy import own_copy
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.randomness.random_layers import sample_noise

_PROBES: Final = 3
_AGREES: Final = 1e-5
_DRAWS: Final = 8
"""Passes in training mode that have to give what one in evaluation mode does."""


@dataclass(frozen=True, kw_only=True)
class FirstBlock:
    """``z2 = z + attention(entry(z))``, ``z3 = z2 + mlp_scale * perceptron(norm(z2))``.

    Attributes:
        layers: The perceptron's two layers.
        entry: Norm before the attention.
        norm: Norm before the perceptron.
        attention: Over all tokens of an image.
        mlp_scale: (width,), what the perceptron's result is multiplied by (layer scale).
        embedding: How tokens come from pixels.
        patches: The layer that sees the pixels.
    """

    layers: StackedLayers
    entry: LayerNorm
    norm: LayerNorm
    attention: Attention
    mlp_scale: Tensor
    embedding: TokenEmbedding
    patches: PatchLayer

    @property
    def width(self) -> int:
        """Numbers of a token."""
        return len(self.mlp_scale)

    def attended(self, tokens: Tensor) -> Tensor:
        """What the attention adds to each token, (images, tokens, width)."""
        hidden = self.entry(tokens)
        return self.attention.added(self.attention.mixed(hidden, hidden))


@dataclass(frozen=True)
class _Run:
    name: str
    module: nn.Module
    received: Tensor
    returned: Tensor


def first_block(victim: Victim, model_trace: Trace, observation: Observation) -> FirstBlock | Reason:
    """The first block by structure, or why the model has none that tokens can be followed through.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
        observation: Brings the weights.
    """
    pair = perceptron_of_block(victim, model_trace)
    if isinstance(pair, Reason):
        return pair
    patches = patch_layer(victim, model_trace)
    if isinstance(patches, Reason):
        return patches
    model = _at_weights(victim, {**observation.buffers, **observation.parameters})
    probe = torch.randn(_PROBES, *victim.inputs.shape, generator=torch.Generator().manual_seed(0)).double()
    probe = probe.to(next(iter(observation.parameters.values())).device)
    runs = _observed(model, probe, pair.second)
    found = _followed(runs, pair)
    if isinstance(found, Reason):
        return _frozen_before(victim, model_trace, pair) or found
    entry, norm, attention, mlp_scale, tokens = found
    embedding = find_embedding(model, patches, probe, tokens)
    if embedding is None:
        return _frozen_before(victim, model_trace, pair) or because("token-block-unlike.embedding", name=patches.name)
    if _draws(model, probe, pair):
        return because("token-block-random", name=pair.second)
    return FirstBlock(
        layers=pair,
        entry=entry,
        norm=norm,
        attention=attention,
        mlp_scale=mlp_scale,
        embedding=embedding,
        patches=patches,
    )


def _frozen_before(victim: Victim, model_trace: Trace, pair: StackedLayers) -> Reason | None:
    """That a Linear layer over tokens before the pair is frozen, which is then not the first block's; None if none."""
    for run in linear_runs(victim, model_trace):
        if run.name == pair.first:
            break
        if isinstance(run.module, nn.Linear) and run.received.dim() == 3 and "weight" in constants_of(run.module):
            return because("token-block-frozen", name=run.name)
    return None


def _at_weights(victim: Victim, weights: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the model at these weights, in float64."""
    model = own_copy(victim.model)
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in weights.items():
            if name in own:
                own[name].copy_(value)
    return model.double().eval()


def _observed(model: nn.Module, probe: Tensor, last: str) -> list[_Run]:
    """Every run until a layer behind the last one of the perceptron has weights of its own."""
    runs: list[_Run] = []
    passed: list[bool] = []

    def keep(name: str, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        returned = output[0] if isinstance(output, tuple) and output else output
        if arguments and isinstance(arguments[0], Tensor) and isinstance(returned, Tensor):
            runs.append(_Run(name, module, arguments[0].detach().clone(), returned.detach().clone()))
        if name == last:
            passed.append(True)
        elif passed and any(True for _ in module.parameters(recurse=False)):
            raise Arrived

    handles = [
        module.register_forward_hook(
            lambda own, arguments, kwargs, output, name=name: keep(
                name, own, arguments or tuple(kwargs.values()), output
            ),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
    ]
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(probe.device).manual_seed(0)):
            model(probe)
    except Arrived:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [_Run(run.name, run.module, _batched(run.received), _batched(run.returned)) for run in runs]


def _batched(values: Tensor) -> Tensor:
    """With images first, where tokens were."""
    if values.dim() == 3 and len(values) != _PROBES and values.shape[1] == _PROBES:
        return values.transpose(0, 1)
    return values


_Parts = tuple[LayerNorm, LayerNorm, Attention, Tensor, Tensor]


def _followed(runs: list[_Run], pair: StackedLayers) -> _Parts | Reason:
    """Both norms, the attention, the perceptron's scale, and what entered the block."""
    place = next(i for i, run in enumerate(runs) if run.name == pair.first)
    after = next(i for i, run in enumerate(runs) if run.name == pair.second)
    hidden = runs[place].received
    norm, middle = _norm_before(runs[:place], hidden)
    if norm is None:
        return because("token-block-unlike", name=pair.first)
    second = runs[middle].received
    entry, start = _norm_before(runs[:middle], None, like=second)
    if entry is None:
        return because("token-block-unlike", name=pair.first)
    first = runs[start].received
    between = [(run.name, run.module) for run in runs[start + 1 : middle]]
    attention = find_attention(between, runs[start].returned, second - first)
    if attention is None:
        return because("token-block-unlike.attention", name=runs[start].name)
    scale = _scale_behind(runs[after:], second, runs[after].returned)
    if scale is None:
        return because("token-block-unlike.sum", name=pair.second)
    return entry, norm, attention, scale, first


def _norm_before(runs: list[_Run], returned: Tensor | None, like: Tensor | None = None) -> tuple[LayerNorm | None, int]:
    """The last LayerNorm that returned what is given, or that received tokens of a shape; and its place."""
    for place in reversed(range(len(runs))):
        run = runs[place]
        if returned is not None and not (run.returned.shape == returned.shape and torch.equal(run.returned, returned)):
            continue
        if like is not None and run.received.shape != like.shape:
            continue
        eps = getattr(run.module, "eps", getattr(run.module, "variance_epsilon", None))
        norm = layer_norm_between(run.received, run.returned, eps if isinstance(eps, float) else None)
        if norm is not None:
            return norm, place
    return None, -1


def _scale_behind(runs: list[_Run], tokens: Tensor, added: Tensor) -> Tensor | None:
    """(width,), by which what the perceptron gave was multiplied before it was added to the tokens."""
    value = added.flatten(0, -2)
    for run in runs:
        for behind in (run.received, run.returned):
            if behind.shape != tokens.shape:
                continue
            wanted = (behind - tokens).flatten(0, -2)
            scale = (value * wanted).sum(dim=0) / value.square().sum(dim=0).clamp_min(1e-300)
            if bool((scale != 0).all()) and bool((value * scale - wanted).abs().max() <= _AGREES * wanted.abs().max()):
                plain = bool((scale - 1).abs().max() <= _AGREES)
                return torch.ones_like(scale) if plain else scale
    return None


def _draws(model: nn.Module, probe: Tensor, pair: StackedLayers) -> bool:
    """Whether anything up to the perceptron's sum is drawn anew in training mode: dropout, stochastic depth."""
    quiet = _observed(model, probe, pair.second)
    try:
        model.train()
        with torch.random.fork_rng(devices=[probe.device] if probe.device.type == "cuda" else []):
            torch.manual_seed(0)
            for draw in range(_DRAWS):
                before = _random_state(probe)
                if not _alike(_observed(model, probe, pair.second), quiet):
                    return True
                if draw == 0 and torch.equal(_random_state(probe), before):
                    return False  # nothing was drawn
    finally:
        model.eval()
    return False


def _random_state(probe: Tensor) -> Tensor:
    return torch.cuda.get_rng_state(probe.device) if probe.device.type == "cuda" else torch.get_rng_state()


def _alike(one: list[_Run], other: list[_Run]) -> bool:
    return [run.name for run in one] == [run.name for run in other] and all(
        run.returned.shape == same.returned.shape and torch.allclose(run.returned, same.returned)
        for run, same in zip(one, other, strict=True)
    )
