"""Models by name, or by the import path of anyone's own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import nn

from fl_precode.models.convnet import build_convnet
from fl_precode.models.factory import load_factory, looks_like_factory, settings_hint
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.lenet import Activation, build_lenet, init_uniform
from fl_precode.models.mlp import build_mlp
from fl_precode.models.outputs import class_scores, describe_output, is_plain, output_tensors
from fl_precode.models.resnet import build_resnet20
from fl_precode.models.vit import build_vit
from fl_precode.randomness.seeding import seeded
from fl_precode.spec import Spec, parse_spec

__all__ = ["MODELS", "InputSpec", "ModelEntry", "build_model", "check_model"]


@dataclass(frozen=True)
class WordOption:
    """An option that is one of several words, the first by default."""

    words: tuple[str, ...]

    def read(self, spec: Spec, key: str) -> str:
        """The value; a ValueError teaches the words."""
        return spec.choice(key, self.words, self.words[0])


@dataclass(frozen=True)
class Whole:
    """An option that is a whole number of 1 or more."""

    default: int

    def read(self, spec: Spec, key: str) -> int:
        """The value; a ValueError teaches the range."""
        value = spec.integer(key)
        if value is not None and value < 1:
            raise ValueError(f"{spec.text!r}: expected {key} to be at least 1, got {value}")
        return self.default if value is None else value


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be named.

    Attributes:
        description: One line.
        build: Makes it from the input domain and the values of its options, by name.
        options: The options that the spec may carry, by name.
    """

    description: str
    build: Callable[..., nn.Module] = field(repr=False)
    options: Mapping[str, WordOption | Whole] = field(default_factory=dict)


def _mlp(inputs: InputSpec, *, init: str) -> nn.Module:
    return _initialised(build_mlp(inputs), init)


def _lenet(inputs: InputSpec, *, activation: Activation, init: str) -> nn.Module:
    return _initialised(build_lenet(inputs, activation=activation), init)


def _initialised(model: nn.Module, init: str) -> nn.Module:
    if init == "uniform":
        init_uniform(model)
    return model


_INIT = WordOption(("default", "uniform"))

MODELS: Mapping[str, ModelEntry] = MappingProxyType(
    {
        "mlp": ModelEntry(
            "Flatten, two hidden layers of 1024 with ReLU; init=default|uniform",
            _mlp,
            MappingProxyType({"init": _INIT}),
        ),
        "lenet": ModelEntry(
            "Three 5x5 convolutions of 12 channels and a Linear; activation=sigmoid|relu, init=default|uniform",
            _lenet,
            MappingProxyType({"activation": WordOption(("sigmoid", "relu")), "init": _INIT}),
        ),
        "convnet": ModelEntry(
            "Eight 3x3 convolutions, two max-pools and a Linear; width=64, norm=batch|group|none",
            build_convnet,
            MappingProxyType({"width": Whole(64), "norm": WordOption(("batch", "group", "none"))}),
        ),
        "resnet20": ModelEntry(
            "ResNet20 for small images; width=1 (4 is the literature's ResNet20-4), norm=batch|group",
            build_resnet20,
            MappingProxyType({"width": Whole(1), "norm": WordOption(("batch", "group"))}),
        ),
        "vit": ModelEntry(
            "Small vision transformer, class token, learned positions; patch=16, width=256, depth=4",
            build_vit,
            MappingProxyType({"patch": Whole(16), "width": Whole(256), "depth": Whole(4)}),
        ),
    }
)


def check_model(spec: str) -> None:
    """Refuse a model spec that cannot be built, before anything is; imports the module of ``package.module:factory``.

    Raises:
        ValueError: Saying what was expected.
    """
    _builder(spec)


def build_model(spec: str, inputs: InputSpec, *, seed: int, strict: bool = True) -> nn.Module:
    """Build a model and try it on an empty image.

    Args:
        spec: ``mlp``, ``lenet:activation=relu,init=uniform``, ``resnet20:width=4``, ``package.module:factory`` or
            ``package.module:factory(depth=3)``; see `fl_precode.models.factory` for how a factory is called.
        inputs: Input domain and number of classes.
        seed: Seed of the initialisation. Torch's global generators are left as they were.
        strict: Whether the model must return (batch, classes) and nothing else, as the reference app trains it.
            Otherwise class scores may stand in a tuple, a dict or an object, one logit is enough for two classes, and
            a model may return something else than class scores, such as images.

    Returns:
        The model in training mode (a factory's model in the mode that the factory gave it), on the CPU unless a factory
        put it elsewhere.

    Raises:
        ValueError: If the spec is unknown, the images are too small, or the model does not take (batch, channels,
            height, width) of ``inputs`` to what is expected of it.
    """
    build = _builder(spec)
    with seeded(seed):
        model = build(inputs)
        _check_output(spec, _try(spec, model, inputs), inputs, strict=strict)
    return model


def _builder(text: str) -> Callable[[InputSpec], nn.Module]:
    if looks_like_factory(text, MODELS):
        return load_factory(text).build
    _teach_settings(text)
    spec = parse_spec(text)
    if spec.name not in MODELS:
        raise ValueError(
            f"there is no model {spec.name!r}; expected one of {', '.join(MODELS)}, "
            "or package.module:factory for your own"
        )
    entry = MODELS[spec.name]
    spec.check_options(entry.options.keys())
    values = {key: option.read(spec, key) for key, option in entry.options.items()}
    return lambda inputs: entry.build(inputs, **values)


def _teach_settings(text: str) -> None:
    """Refuse settings of a factory that stand behind a colon, as those of our own models do."""
    path, _, settings = text.rpartition(":")
    if "=" in settings and looks_like_factory(path, MODELS):
        raise ValueError(
            f"model {text!r}: settings of a factory stand in parentheses: {settings_hint(path, settings)!r}"
        )


def _try(spec: str, model: nn.Module, inputs: InputSpec) -> object:
    """What the model makes of two empty images in evaluation mode; modes are restored, lazy layers get their sizes."""
    modes = {module: module.training for module in model.modules()}
    # The images' own type and place: a model may be in double precision, and whole numbers may be its first parameter.
    like = next((one for one in model.parameters() if one.is_floating_point()), torch.zeros(()))
    model.eval()
    try:
        with torch.no_grad():
            out: object = model(torch.zeros(2, *inputs.shape, dtype=like.dtype, device=like.device))
    except Exception as error:
        sizes = "x".join(map(str, inputs.shape))
        raise ValueError(
            f"model {spec!r} cannot take the images of this data set, {sizes} (channels x height x width): {error}. "
            f"Choose a data set that fits the model, or a model built for {inputs.channels} channel(s)"
        ) from error
    finally:
        for module, training in modes.items():
            module.training = training
    return out


def _check_output(spec: str, out: object, inputs: InputSpec, *, strict: bool) -> None:
    """Refuse what cannot be right for the number of classes."""
    classes, got = inputs.classes, describe_output(out)
    if strict:
        scores = class_scores(out, classes)
        if not is_plain(out) or scores is None or tuple(scores.shape) != (2, classes):
            raise ValueError(
                f"expected model {spec!r} to return (batch, classes) = (2, {classes}) for two images, got {got}; "
                f"this data set has {classes} classes"
            )
        return
    tensors = list(output_tensors(out))
    if not tensors:
        raise ValueError(
            f"expected model {spec!r} to return a tensor, or tensors in a tuple, a dict or an object, got {got}"
        )
    if class_scores(out, classes) is not None or any(_flat(tuple(one.shape), inputs) for one in tensors):
        return
    first = tensors[0]
    if first.dim() in (1, 2):
        found = first.shape[1] if first.dim() == 2 else 1
        wanted = "2 (one logit decides between two)" if found == 1 else str(found)
        hint = settings_hint(spec, f"num_classes={classes}") if ":" in spec else ""
        raise ValueError(
            f"expected model {spec!r} to return scores of {classes} classes for each image, got {got} for two images. "
            f"If these are its scores, the number of classes is {wanted}; if the model should have {classes}, give it "
            f"as a setting that it knows{f', such as {hint!r}' if hint else ''}"
        )


def _flat(shape: tuple[int, ...], inputs: InputSpec) -> bool:
    """Whether a tensor is a flattened image for each image, as a fully connected autoencoder returns it."""
    return len(shape) == 2 and shape[1] == math.prod(inputs.shape)
