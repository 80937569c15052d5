"""Other people's models, by import path: ``package.module:factory``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from fl_precode.models.input_spec import InputSpec
from fl_precode.seeding import undisturbed_rng

Factory = Callable[..., Any]

_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def looks_like_factory(text: str, names: Collection[str]) -> bool:
    """Whether the spec is an import path and not one of our own ``names`` with options."""
    return _PATH.fullmatch(text) is not None and text.partition(":")[0] not in names


def load_factory(text: str) -> Factory:
    """Import what ``package.module:factory`` names.

    Raises:
        ValueError: If the module or the attribute is missing, the import fails, or it is nothing to call.
    """
    path, _, attribute = text.partition(":")
    try:
        # The first import may build layers; it must not shift anyone's random numbers, and only the first one would.
        with undisturbed_rng():
            found: Any = importlib.import_module(path)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{path}.".startswith(f"{error.name}.")
        why = "there is no such module" if missing else f"importing it failed: {type(error).__name__}: {error}"
        raise ValueError(
            f"model {text!r}: cannot import {path!r}, {why}. It must be installed, or PYTHONPATH must hold its folder"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = ", ".join(word for word in dir(found) if not word.startswith("_")) or "nothing public"
            raise ValueError(f"model {text!r}: {path!r} has no {attribute!r}; it has {public}")
        found = getattr(found, name)
    if isinstance(found, nn.Module) or not callable(found):
        raise ValueError(
            f"model {text!r}: expected a class or function that builds a model, got a {type(found).__name__}; "
            "every run needs a model of its own"
        )
    factory: Factory = found
    return factory


def call_factory(text: str, factory: Factory, inputs: InputSpec) -> nn.Module:
    """Build the model, giving the input domain to a factory that asks for it.

    A factory asks by one positional argument without a default, or by a first one called ``inputs``.

    Raises:
        ValueError: If it asks for more, raises, or returns no model.
    """
    arguments = [inputs] if _wants_inputs(text, factory) else []
    try:
        model = factory(*arguments)
    except Exception as error:
        raise ValueError(
            f"model {text!r}: building it {'from the InputSpec' if arguments else 'without arguments'} failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model {text!r}: expected the factory to return a torch.nn.Module, got {type(model).__name__}"
        )
    return model


def _wants_inputs(text: str, factory: Factory) -> bool:
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except (TypeError, ValueError):  # some C callables have no signature
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > 1 or keywords:
        raise ValueError(
            f"model {text!r}: the factory needs {', '.join(required)}; expected it to need at most one argument, "
            "the InputSpec. Write a function that fills in the others and name that"
        )
    return bool(required) or bool(positional and positional[0].name == "inputs")
