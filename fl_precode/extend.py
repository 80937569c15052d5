"""Put PRECODE's variational bottleneck into any model."""

from __future__ import annotations

import copy
import difflib
import math
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fl_precode import insertion
from fl_precode.bottleneck import VariationalBottleneck, track_kl
from fl_precode.seeding import undisturbed_rng

# The reference code counts KL in bits, so that its beta of 1e-3 weighs a nat by 1e-3 / ln 2.
PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {"precode-reference": MappingProxyType({"latent": 256, "beta": 1e-3 / math.log(2)})}
)


def extend(
    model: nn.Module,
    example_input: Tensor,
    *,
    latent: int | None = None,
    beta: float | None = None,
    before: str | None = None,
    preset: str | None = None,
) -> nn.Module:
    """Return a copy of a model defended by PRECODE (WACV 2022): a variational bottleneck before its last Linear layer.

    The layer, say ``fc``, becomes a Sequential of ``fc.bottleneck`` and ``fc.layer``; everything else keeps its name
    and its values. Train the model with the KL term in its loss: see `track_kl`. The bottleneck is initialised from
    torch's global generator, as any new layer; nothing else is drawn from it.

    Args:
        model: Any module that takes one tensor and returns one. Left untouched.
        example_input: A batch as in training, (batch, ...); the values do not matter.
        latent: Length of the latent vector, 256 by default.
        beta: Weight of the KL term per nat, 1e-3 by default.
        before: Dotted name of the module to put the bottleneck in front of, instead of the last Linear layer. Its input
            must be one tensor (batch, ...).
        preset: ``precode-reference`` for the latent and beta of the reference code, in its units; excludes both.

    Returns:
        The defended copy, in the mode (training or evaluation), dtype and device of the model.

    Raises:
        ValueError: If there is no Linear layer, the place is ambiguous, unknown or taken, or an argument does not fit.

    >>> net = nn.Sequential(OrderedDict(body=nn.Linear(4, 8), act=nn.ReLU(), head=nn.Linear(8, 2)))
    >>> defended = extend(net, torch.zeros(1, 4), latent=3)
    >>> [name for name, _ in defended.head.named_children()]
    ['bottleneck', 'layer']
    """
    latent, beta = _settings(latent, beta, preset)
    insertion.check_model(model)
    place = insertion.find(model, example_input, before)
    defended = copy.deepcopy(model)
    target = defended.get_submodule(place.name)
    bottleneck = VariationalBottleneck(place.features, latent, beta).to(device=place.device, dtype=place.dtype)
    guarded = nn.Sequential(OrderedDict(bottleneck=bottleneck, layer=target))
    for module in (guarded, *bottleneck.modules()):  # one by one: `train` would reach into the target
        module.training = target.training
    if target is defended:
        defended = guarded
    _replace(defended, target, guarded)
    _check(defended, example_input, place)
    return defended


def _settings(latent: int | None, beta: float | None, preset: str | None) -> tuple[int, float]:
    if preset is None:
        return 256 if latent is None else latent, 1e-3 if beta is None else beta
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS)
        raise ValueError(f"there is no preset {preset!r}; expected one of {', '.join(PRESETS)}{_meant(near)}")
    if latent is not None or beta is not None:
        raise ValueError(f"the preset {preset!r} sets latent and beta; give either the preset or the values")
    return int(PRESETS[preset]["latent"]), PRESETS[preset]["beta"]


def _meant(near: list[str]) -> str:
    return f" (did you mean {near[0]!r}?)" if near else ""


def _replace(model: nn.Module, target: nn.Module, guarded: nn.Module) -> None:
    """Put ``guarded`` wherever ``target`` is registered: a tied module may have several names."""
    for parent in list(model.modules()):
        # Not named_children: it passes over the second name of a module.
        for child, module in list(parent._modules.items()):
            if module is target and parent is not guarded:
                setattr(parent, child, guarded)


def _check(defended: nn.Module, example_input: Tensor, place: insertion.Place) -> None:
    """Run the defended model once, in a copy: the bottleneck must be passed, and the output keep its shape."""
    trial = copy.deepcopy(defended).eval()
    try:
        with undisturbed_rng(), torch.no_grad(), track_kl() as kl:
            out = trial(example_input)
    except Exception as error:
        raise ValueError(
            f"the model does not run with a bottleneck before {place.name!r}: {type(error).__name__}: {error}. "
            "Probably its code reaches into that module by attribute; name another place with before="
        ) from error
    if len(kl) != place.bottlenecks + place.calls:
        raise ValueError(
            f"the model runs {place.name!r} through a reference that extend cannot replace (a list or an attribute of "
            "another object), so the bottleneck would be passed by; register the module, or name another with before="
        )
    if not isinstance(out, Tensor) or out.shape != place.output_shape:
        raise ValueError(
            f"the bottleneck before {place.name!r} changed the output; expected {tuple(place.output_shape)}"
        )
