"""Local training as announced in a Flower app's settings, under whatever names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from fl_precode.import_path import is_import_path
from fl_precode.observation import CROSS_ENTROPY

_WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "lr": "learning_rate",
        "learning-rate": "learning_rate",
        "learningrate": "learning_rate",
        "epochs": "local_epochs",
        "epoch": "local_epochs",
        "steps": "local_steps",
        "iterations": "local_steps",
        "iters": "local_steps",
        "updates": "local_steps",
        "batch-size": "batch_size",
        "batchsize": "batch_size",
        "bs": "batch_size",
        "momentum": "momentum",
        "weight-decay": "weight_decay",
        "wd": "weight_decay",
        "optimiser": "optimiser",
        "optimizer": "optimiser",
        "optim": "optimiser",
        "loss": "loss",
        "loss-fn": "loss",
        "loss-function": "loss",
        "loss-name": "loss",
        "criterion": "loss",
    }
)
"""Field of `fl_precode.observation.Protocol` by the word that is left when what does not matter was taken away."""

_LIKE_ADAM: Final = frozenset({"adam", "adamw", "nadam", "radam", "adamax", "amsgrad", "rmsprop", "adagrad"})
"""Optimisers that divide every entry by its own size, so that the update is no sum of gradients."""

_CROSS_ENTROPY: Final = frozenset(
    {"ce", "crossentropy", "crossentropyloss", "categoricalcrossentropy", "sparsecategoricalcrossentropy"}
    | {"softmaxcrossentropy", "nll", "nllloss"}
)
"""What cross-entropy of class scores is called; a negative log likelihood takes their logarithms from the model."""

_OF_CLIENTS: Final = frozenset(
    {
        "client",
        "clients",
        "local",
        "num",
        "number",
        "of",
        "n",
        "train",
        "training",
        "fit",
        "inner",
        "per",
        "round",
        "max",
    }
)
"""Words that say whose setting it is, or nothing. Those of servers and of tests are not here."""

_COUNTS: Final = frozenset({"local_epochs", "local_steps", "batch_size"})
_RATES: Final = frozenset({"learning_rate", "momentum", "weight_decay"})

_EXAMPLES: Final = frozenset(
    {
        "num-examples", "num-samples", "n-examples", "n-samples", "examples", "samples", "number-of-examples",
        "number-of-samples", "num-train-examples", "num-train-samples", "num-training-examples", "train-size",
        "trainset-size", "dataset-size", "data-size", "num-data", "n-train", "num-train", "num-images", "images",
        "num-datapoints",
    }
)  # fmt: skip
"""What apps call the number of examples behind an update, when it is not Flower's own word."""


@dataclass(frozen=True)
class Announced:
    """What settings say.

    Attributes:
        fields: Field of `Protocol` to its value.
        keys: Field to the setting's own key.
        refused: Setting's key to why its value was not understood.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


def announced_settings(settings: Mapping[str, Any]) -> Announced:
    """What settings say about local training, whatever the spelling; zeros and empty texts say nothing.

    Underscores, capitals and tables before the key do not matter, nor does the word ``client``, ``local`` or ``train``;
    numbers may be text. Of two keys for one thing the one that names clients or training goes first.

    >>> dict(announced_settings({"fit.lr": "0.1", "local_epochs": 1, "server-lr": 1.0}).fields)
    {'learning_rate': 0.1, 'local_epochs': 1}
    >>> announced_settings({"criterion": "CrossEntropyLoss", "label-smoothing": 0.1}).fields["loss"]
    'torch.nn:CrossEntropyLoss(label_smoothing=0.1)'
    """
    fields: dict[str, Any] = {}
    keys: dict[str, str] = {}
    refused: dict[str, str] = {}
    for key in sorted(settings, key=lambda one: not _OF_CLIENTS & set(_parts(one))):
        name = _WORDS.get("-".join(part for part in _parts(key)[-3:] if part not in _OF_CLIENTS))
        if name is None or name in fields or _of_others(key):
            continue
        try:
            value = _value(name, settings[key])
        except ValueError as error:
            refused[key] = str(error)
            continue
        if value is not None:
            fields[name], keys[name] = value, key
    for key, value in settings.items():
        if _parts(key)[-2:] == ["label", "smoothing"] and isinstance(value, int | float) and value > 0:
            fields["loss"], keys["loss"] = _smoothed(fields.get("loss"), value), key
    return Announced(fields, keys, refused)


def examples_of(records: Mapping[str, Mapping[str, Any]], weighted_by: str = "num-examples") -> int | None:
    """The number of examples that a reply names, under the strategy's own key or a usual one; None without one.

    >>> examples_of({"metrics": {"num-examples": 8.0}}), examples_of({"fitres": {"num_samples": 3, "loss": 2.0}})
    (8, 3)
    """
    entries = [(_spelled(key), value) for record in records.values() for key, value in record.items()]
    for wanted in ({_spelled(weighted_by)}, {"num-examples"}, _EXAMPLES):
        for key, value in entries:
            if key in wanted and (count := _count(value)) is not None:
                return count
    return None


def is_examples(key: str, weighted_by: str = "num-examples") -> bool:
    """Whether a reply's number of this name is one that `examples_of` takes.

    >>> is_examples("num_samples"), is_examples("train-loss"), is_examples("weight", "weight")
    (True, False, True)
    """
    return _spelled(key) in {_spelled(weighted_by), *_EXAMPLES}


def _spelled(key: str) -> str:
    return re.sub(r"[_\s]+", "-", re.split(r"[./]", key)[-1].strip().lower())


def _parts(key: str) -> list[str]:
    camel = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", key)
    return [part for part in re.split(r"[-_./\s]+", camel.lower()) if part]


def _of_others(key: str) -> bool:
    return bool({"server", "test", "val", "valid", "validation", "eval", "evaluate", "evaluation"} & set(_parts(key)))


def _value(name: str, value: Any) -> Any:
    """The value as `Protocol` has it; None when it says nothing.

    Raises:
        ValueError: If it cannot be understood.
    """
    if isinstance(value, str) and not value.strip():
        return None
    if name == "optimiser":
        word = str(value).strip().lower().rpartition(".")[2]
        return "sgd" if word == "sgd" else "adam" if word in _LIKE_ADAM else None
    if name == "loss":
        return _loss(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"expected a number, got {value!r}") from None
    if isinstance(value, bool) or not math.isfinite(number) or number < 0:
        raise ValueError(f"expected a number that is not negative, got {value!r}")
    if number == 0:
        return None
    if name in _RATES:
        return number
    if number != int(number):
        raise ValueError(f"expected a whole number, got {value!r}")
    return int(number)


def _loss(value: Any) -> str | None:
    """The name of a loss; None for its value, which clients report under the same word."""
    if not isinstance(value, str):
        return None
    if is_import_path(value.strip()):
        return value.strip()
    word = value.strip().rpartition(".")[2]
    try:
        float(word)
    except ValueError:
        return CROSS_ENTROPY if re.sub(r"[^a-z]", "", word.lower()) in _CROSS_ENTROPY else word
    return None


def _smoothed(loss: str | None, share: float) -> str:
    """The loss with smoothed labels: of cross-entropy a name that can be imported, of others words."""
    if loss in (None, CROSS_ENTROPY):
        return f"torch.nn:CrossEntropyLoss(label_smoothing={share:g})"
    return f"{loss} with label smoothing of {share:g}"


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return int(value) if value >= 1 and value == int(value) else None
