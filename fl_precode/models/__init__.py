"""Models by name, or by the import path of anyone's own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from fl_precode.models.factory import call_factory, load_factory, looks_like_factory
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.lenet import Activation, build_lenet, init_uniform
from fl_precode.models.mlp import build_mlp
from fl_precode.seeding import seeded
from fl_precode.spec import Spec, parse_spec

__all__ = ["MODELS", "InputSpec", "ModelEntry", "build_model", "check_model"]

_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"activation": ("sigmoid", "relu"), "init": ("default", "uniform")}  # the first is the default
)


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be named.

    Attributes:
        description: One line.
        build: Makes it from the input domain and the checked spec.
        options: Names of the options that the spec may carry.
    """

    description: str
    build: Callable[[InputSpec, Spec], nn.Module] = field(repr=False)
    options: Collection[str] = ()


def _option(spec: Spec, key: str) -> str:
    allowed = _OPTIONS[key]
    return spec.choice(key, allowed, allowed[0])


def _initialised(model: nn.Module, spec: Spec) -> nn.Module:
    if _option(spec, "init") == "uniform":
        init_uniform(model)
    return model


def _mlp(inputs: InputSpec, spec: Spec) -> nn.Module:
    return _initialised(build_mlp(inputs), spec)


def _lenet(inputs: InputSpec, spec: Spec) -> nn.Module:
    activation = cast(Activation, _option(spec, "activation"))
    return _initialised(build_lenet(inputs, activation=activation), spec)


MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "mlp": ModelEntry("Flatten, two hidden layers of 1024 with ReLU; init=default|uniform", _mlp, ("init",)),
        "lenet": ModelEntry(
            "Three 5x5 convolutions of 12 channels and a Linear; activation=sigmoid|relu, init=default|uniform",
            _lenet,
            ("activation", "init"),
        ),
    }
)


def check_model(spec: str) -> None:
    """Refuse a model spec that cannot be built, before anything is; imports the module of ``package.module:factory``.

    Raises:
        ValueError: Saying what was expected.
    """
    _builder(spec)


def build_model(spec: str, inputs: InputSpec, *, seed: int) -> nn.Module:
    """Build a model and try it on an empty image.

    Args:
        spec: ``mlp``, ``lenet``, ``lenet:activation=relu,init=uniform`` or ``package.module:factory``. A factory is
            called with ``inputs`` when it needs one argument or its first is called so, otherwise with nothing.
        inputs: Input domain and number of classes.
        seed: Of the initialisation. Torch's global generators are left as they were.

    Returns:
        The model in training mode (a factory's model in the mode that the factory gave it), on the CPU unless a factory
        put it elsewhere.

    Raises:
        ValueError: If the spec is unknown, or the model does not take (batch, channels, height, width) of ``inputs``
            to (batch, classes).
    """
    build = _builder(spec)
    with seeded(seed):
        model = build(inputs)
        _try(spec, model, inputs)
    return model


def _builder(text: str) -> Callable[[InputSpec], nn.Module]:
    if looks_like_factory(text, MODELS):
        factory = load_factory(text)
        return lambda inputs: call_factory(text, factory, inputs)
    spec = parse_spec(text)
    if spec.name not in MODELS:
        raise ValueError(
            f"there is no model {spec.name!r}; expected one of {', '.join(MODELS)}, "
            "or package.module:factory for your own"
        )
    entry = MODELS[spec.name]
    spec.check_options(entry.options)
    for key in entry.options:
        _option(spec, key)
    return lambda inputs: entry.build(inputs, spec)


def _try(spec: str, model: nn.Module, inputs: InputSpec) -> None:
    """Run two empty images through the model in evaluation mode; modes are restored, lazy layers get their sizes."""
    modes = {module: module.training for module in model.modules()}
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    model.eval()
    try:
        with torch.no_grad():
            out = model(torch.zeros(2, *inputs.shape, device=device))
    except Exception as error:
        sizes = "x".join(map(str, inputs.shape))
        raise ValueError(
            f"model {spec!r} cannot take the images of this data set, {sizes} (channels x height x width): {error}. "
            f"Choose a data set that fits the model, or a model built for {inputs.channels} channel(s)"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(out, Tensor) or tuple(out.shape) != (2, inputs.classes):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"expected model {spec!r} to return (batch, classes) = (2, {inputs.classes}) for two images, got {got}; "
            f"this data set has {inputs.classes} classes"
        )
