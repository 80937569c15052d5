"""Other people's models, by import path: ``package.module:factory``, or with settings ``package.module:Net(depth=3)``.

A factory is anything that can be called and returns a `torch.nn.Module`. An argument that it needs is filled in by its
name, from what is known of the images (`ARGUMENTS` lists the names); an argument annotated as `InputSpec`, or called
``inputs``, gets all of that. Settings stand in parentheses as in Python, by keyword, and are literals: numbers, text in
quotes, True, False, None, lists, tuples, dicts. What has a default keeps it, unless a setting says otherwise.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from torch import nn

from fl_precode.import_path import is_import_path, load, split_path
from fl_precode.models.input_spec import InputSpec


def _side(inputs: InputSpec) -> int:
    if inputs.height != inputs.width:
        raise ValueError(f"one number was asked for the image's size, and it is {inputs.height} x {inputs.width}")
    return inputs.height


_SPEC = ("inputs", "input_spec", "spec")
_MEANINGS: Mapping[str, tuple[Callable[[InputSpec], object], tuple[str, ...]]] = MappingProxyType(
    {
        "the InputSpec": (lambda inputs: inputs, _SPEC),
        "the number of classes": (
            lambda inputs: inputs.classes,
            (
                "classes", "num_classes", "n_classes", "nb_classes", "num_class", "n_class", "nclasses", "class_num",
                "number_of_classes", "num_labels", "n_labels", "out_features", "num_outputs", "n_outputs",
                "output_dim", "out_dim", "output_size", "numclasses",
            ),
        ),
        "the number of channels": (
            lambda inputs: inputs.channels,
            (
                "channels", "in_channels", "num_channels", "n_channels", "in_chans", "input_channels", "in_channel",
                "image_channels", "img_channels", "num_input_channels", "nchannels", "channel",
            ),
        ),
        "the height of the images": (_side, ("image_size", "img_size", "input_resolution", "resolution", "image_dim")),
        "the number of pixels": (
            lambda inputs: math.prod(inputs.shape),
            ("in_features", "input_dim", "in_dim", "input_features", "num_inputs", "n_inputs"),
        ),
        "the shape of the images": (
            lambda inputs: inputs.shape,
            ("input_shape", "in_shape", "image_shape", "img_shape"),
        ),
    }
)  # fmt: skip

ARGUMENTS: Mapping[str, Callable[[InputSpec], object]] = MappingProxyType(
    {name: value for value, names in _MEANINGS.values() for name in names}
)
"""What fills in an argument that a factory needs, by the argument's name."""


@dataclass(frozen=True, kw_only=True)
class Factory:
    """A factory and how it is called.

    Attributes:
        text: The spec, for messages.
        call: What is called.
        known: Arguments that are filled in from the images, by name, in the factory's order.
        positional: Those of them that can be given by position only.
        settings: Keyword arguments from the spec.
    """

    text: str
    call: Callable[..., object] = field(repr=False)
    known: Mapping[str, Callable[[InputSpec], object]]
    positional: frozenset[str]
    settings: Mapping[str, object]

    def build(self, inputs: InputSpec) -> nn.Module:
        """Call it.

        Raises:
            ValueError: If it raises, or returns no model.
        """
        by_place: list[object] = []
        by_name = dict(self.settings)
        given = "without arguments"
        try:
            for name, value in self.known.items():
                if name in self.positional:
                    by_place.append(value(inputs))
                else:
                    by_name[name] = value(inputs)
            words = [*map(_word, by_place), *(f"{name}={_word(value)}" for name, value in by_name.items())]
            given = f"by {_name(self.text)}({', '.join(words)})" if words else given
            model = self.call(*by_place, **by_name)
        except Exception as error:
            raise ValueError(
                f"model {self.text!r}: building it {given} failed: {type(error).__name__}: {error}. "
                "Settings can be given in parentheses, or a function without arguments can be named that builds it "
                "as the clients do"
            ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"model {self.text!r}: expected the factory to return a torch.nn.Module, got {_kinds(model)}; "
                "name a class, or a function that returns the model and nothing else"
            )
        return model


def looks_like_factory(text: str, names: Collection[str]) -> bool:
    """Whether the spec is an import path and not one of our own ``names`` with options."""
    return is_import_path(text) and text.partition(":")[0] not in names


def load_factory(text: str) -> Factory:
    """Import what ``package.module:factory`` names, and find out how it is called.

    Raises:
        ValueError: If the module or the attribute is missing, the import fails, it is nothing to call, a setting is no
            keyword with a literal, or it needs an argument that nobody gives.
    """
    _, _, settings = split_path(text, "model")
    found = load(text, "model")
    if isinstance(found, nn.Module) or not callable(found):
        raise ValueError(
            f"model {text!r}: expected a class or function that builds a model, got a {type(found).__name__}; "
            "every run needs a model of its own, so name the class, or write a function that returns a new one"
        )
    known, positional = _arguments(text, found, settings)
    return Factory(text=text, call=found, known=known, positional=positional, settings=settings)


def settings_hint(text: str, setting: str) -> str:
    """How a setting is written for a factory, ``pkg.mod:Net(depth=3)``; with a setting that may be there replaced.

    >>> settings_hint("my_app.task:Net", "num_classes=4")
    'my_app.task:Net(num_classes=4)'
    """
    return f"{text.partition('(')[0].strip()}({setting})"


_Known = tuple[dict[str, Callable[[InputSpec], object]], frozenset[str]]


def _arguments(text: str, factory: Callable[..., object], settings: Mapping[str, object]) -> _Known:
    """Arguments to fill in, and which of them go by position."""
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some C callables have no signature
        return {}, frozenset()
    _refuse_unknown(text, parameters, settings)
    known: dict[str, Callable[[InputSpec], object]] = {}
    missing = []
    for one in parameters:
        needed = one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        spec = _wants_spec(one) or (one is parameters[0] and one.name == "inputs")
        if one.name in settings or not (needed or spec):
            continue
        value = ARGUMENTS["inputs"] if spec else ARGUMENTS.get(one.name.lower())
        if value is None:
            missing.append(one.name)
        else:
            known[one.name] = value
    if missing:
        example = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"model {text!r}: it needs {', '.join(missing)}, and nothing known of the images is called so. Give "
            f"{'it' if len(missing) == 1 else 'them'} as a setting, {settings_hint(text, example)!r}, or name a "
            "function without arguments that builds the model as the clients do"
        )
    return known, frozenset(one.name for one in parameters if one.kind is one.POSITIONAL_ONLY and one.name in known)


def _refuse_unknown(text: str, parameters: list[inspect.Parameter], settings: Mapping[str, object]) -> None:
    by_name = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return
    odd = [name for name in settings if name not in by_name]
    if odd:
        raise ValueError(
            f"model {text!r}: it has no argument {odd[0]!r}; it takes {', '.join(by_name) or 'none'} by name"
        )


def _wants_spec(parameter: inspect.Parameter) -> bool:
    """Whether the argument is annotated as an input domain, in code or as text."""
    annotation = parameter.annotation
    words = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return annotation is InputSpec or re.search(r"\bInputSpec\b", words) is not None


def _name(text: str) -> str:
    return text.partition("(")[0].partition(":")[2].strip()


def _word(value: object) -> str:
    return "InputSpec" if isinstance(value, InputSpec) else repr(value)


def _kinds(found: object) -> str:
    """What was returned, for people: of a tuple its members as well."""
    kind = type(found).__name__
    if isinstance(found, tuple | list) and found:
        return f"a {kind} of {', '.join(type(one).__name__ for one in found)}"
    return kind
