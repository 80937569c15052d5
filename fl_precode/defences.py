"""Defences by name: a spec such as ``precode:latent=128`` to a defended model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from fl_precode.bottleneck import check_settings
from fl_precode.extend import extend
from fl_precode.models.input_spec import InputSpec
from fl_precode.seeding import seeded
from fl_precode.spec import Spec, parse_spec


@dataclass(frozen=True)
class DefenceEntry:
    """A defence that can be named.

    Attributes:
        description: One line.
        apply: Makes the defended copy of a model, from an example input and the checked spec.
        options: Names of the options that the spec may carry.
    """

    description: str
    apply: Callable[[nn.Module, torch.Tensor, Spec], nn.Module] = field(repr=False)
    options: Collection[str] = ()


def _none(model: nn.Module, _example: torch.Tensor, _spec: Spec) -> nn.Module:
    return copy.deepcopy(model)


def _precode(model: nn.Module, example: torch.Tensor, spec: Spec) -> nn.Module:
    return extend(
        model, example, latent=spec.integer("latent"), beta=spec.number("beta"), before=spec.options.get("before")
    )


def _precode_reference(model: nn.Module, example: torch.Tensor, spec: Spec) -> nn.Module:
    return extend(model, example, preset="precode-reference", before=spec.options.get("before"))


DEFENCES: Mapping[str, DefenceEntry] = MappingProxyType(
    {
        "none": DefenceEntry("No defence: the model as it is", _none),
        "precode": DefenceEntry(
            "PRECODE, a variational bottleneck before the classifier; latent=256, beta=0.001 per nat, before=module",
            _precode,
            ("latent", "beta", "before"),
        ),
        "precode-reference": DefenceEntry(
            "PRECODE with the reference code's units: latent 256, beta 1e-3 per bit; before=module",
            _precode_reference,
            ("before",),
        ),
    }
)


def check_defence(spec: str) -> None:
    """Refuse a defence spec that no model could have, before anything is built.

    Raises:
        ValueError: If the name, an option or a value is not one that exists; the message lists those that do.
    """
    _parse(spec)


def _parse(text: str) -> Spec:
    spec = parse_spec(text)
    if spec.name not in DEFENCES:
        raise ValueError(f"there is no defence {spec.name!r}; expected one of {', '.join(DEFENCES)}")
    spec.check_options(DEFENCES[spec.name].options)
    latent, beta = spec.integer("latent"), spec.number("beta")
    try:
        check_settings(1 if latent is None else latent, 0.0 if beta is None else beta)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    return spec


def apply_defence(spec: str, model: nn.Module, inputs: InputSpec, *, seed: int = 0) -> nn.Module:
    """Return a defended copy of a model; the model itself is left untouched.

    Args:
        spec: ``none``, ``precode``, ``precode:latent=128,beta=0.01,before=classifier``, ``precode-reference``.
        model: Takes (batch, channels, height, width) of ``inputs``.
        inputs: Input domain.
        seed: Of the defence's own layers; torch's global generators are left as they were.

    Raises:
        ValueError: If the spec is unknown or the model cannot carry the defence (see `fl_precode.extend`).
    """
    parsed = _parse(spec)
    like = next(model.parameters(), torch.empty(0))
    example = torch.zeros(1, *inputs.shape, dtype=like.dtype, device=like.device)
    # Not the model's own stream: with equal seeds the bottleneck would repeat the first layer's random numbers.
    digest = hashlib.sha256(f"defence {seed}".encode()).digest()
    with seeded(int.from_bytes(digest[:7], "big")):
        return DEFENCES[parsed.name].apply(model, example, parsed)
