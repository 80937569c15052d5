"""The options of gradient matching in specs: one flat list of names that fills the parts of a search, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from attacker.attacks.gradient_matching.parts import (
    LBFGS,
    Adam,
    BNStatistics,
    GroupConsistency,
    ImageNorm,
    Optimiser,
    Prior,
    RacedTotalVariation,
    Restarts,
    TotalVariation,
    distance_named,
)
from attacker.attacks.gradient_matching.search import Search
from attacker.optim.first_order import SoftSign
from attacker.optim.initialisation import start_named
from attacker.optim.setting_ranges import check_choice, check_flag, check_weight, check_whole

Option = int | float | bool | str
SomeSearch = TypeVar("SomeSearch", bound=Search)

OPTIMISERS = ("adam", "l-bfgs")
LABELS = ("recovered", "joint")
GROUP_MEANS = ("mean", "registered")

OPTIONS: Mapping[str, Option] = MappingProxyType(
    {
        "iterations": 24_000,
        "learning_rate": 0.1,
        "total_variation": 1e-4,
        "total_variations": "",
        "restarts": 1,
        "signed": True,
        "boxed": True,
        "converged_below": 0.01,
        "distance": "cosine",
        "optimiser": "adam",
        "history": 0,
        "labels": "recovered",
        "memory": 0.0,
        "start": "normal",
        "schedule": "step",
        "warmup": 0,
        "sign_softness": 0.0,
        "langevin": 0.0,
        "stop_below": 0.0,
        "plateau": 0,
        "halving": 0,
        "image_norm": 0.0,
        "batch_norm": 0.0,
        "batch_norm_of": "running",
        "group_consistency": 0.0,
        "group_mean": "mean",
        "local_training": "auto",
        "normalise_by": "batch",
        "layers": "",
        "iterate": "last",
    }
)
"""All options with their values in Inverting Gradients."""

_OF_ADAM: Mapping[str, tuple[Option, str]] = MappingProxyType(
    {
        "signed": (False, "its curvature estimate needs the gradient itself, not signs"),
        "boxed": (False, "a projection would break its line search"),
        "schedule": ("constant", "its line search finds the step"),
        "warmup": (0, "its line search finds the step"),
        "langevin": (0, "a line search must see the same loss when it looks twice"),
        "iterate": ("last", "its steps only go down: the last is the best"),
    }
)
"""What L-BFGS does not have: the value that says so, and why."""


def with_options(search: SomeSearch, **options: Option) -> SomeSearch:
    """The search with some options in place of what its parts say.

    Raises:
        TypeError: If an option does not exist.
        ValueError: If a value is out of its range, or contradicts another.

    >>> with_options(Search(), restarts=4, halving=2).restarts
    Restarts(count=4, halving=2)
    """
    unknown = sorted(options.keys() - OPTIONS.keys())
    if unknown:
        raise TypeError(f"gradient matching has no option {', '.join(unknown)}; it has {', '.join(OPTIONS)}")
    return replace(search, **_parts({**options_of(search), **options}))


def options_of(search: Search) -> dict[str, Option]:
    """The options that give a search; where weights of total variation are raced, its one weight is the usual one.

    Raises:
        TypeError: If the optimiser is none that specs know.
    """
    optimiser, distance = search.optimiser, search.distance
    weights = {prior.option: prior.weight for prior in search.priors}
    raced = search.raced
    options: dict[str, Option] = {
        **OPTIONS,
        "iterations": optimiser.iterations,
        "plateau": optimiser.plateau,
        "total_variation": weights.get("total_variation", 0.0 if raced is None else OPTIONS["total_variation"]),
        "total_variations": "" if raced is None else raced.text,
        "image_norm": weights.get("image_norm", 0.0),
        "batch_norm": weights.get("batch_norm", 0.0),
        "batch_norm_of": next((prior.of for prior in search.priors if isinstance(prior, BNStatistics)), "running"),
        "group_consistency": weights.get("group_consistency", 0.0),
        "group_mean": GROUP_MEANS[
            any(isinstance(prior, GroupConsistency) and prior.registered for prior in search.priors)
        ],
        "restarts": search.restarts.count,
        "halving": search.restarts.halving,
        "converged_below": distance.converged_below,
        "stop_below": distance.stop_below,
        "distance": distance.name,
        "memory": search.memory,
        "start": search.init.name,
        "local_training": search.replay.value,
        "normalise_by": search.normalise_by,
        "layers": search.layers,
    }
    return {**options, **_of_optimiser(optimiser)}


def _of_optimiser(optimiser: Optimiser) -> dict[str, Option]:
    if isinstance(optimiser, Adam):
        soft = optimiser.signed.softness if isinstance(optimiser.signed, SoftSign) else 0.0
        names = ("learning_rate", "boxed", "schedule", "warmup", "langevin", "iterate")
        settings = {name: getattr(optimiser, name) for name in names}
        return {**settings, "optimiser": "adam", "signed": bool(optimiser.signed), "sign_softness": soft}
    if isinstance(optimiser, LBFGS):
        without = {name: value for name, (value, _) in _OF_ADAM.items()}
        settings = {"learning_rate": optimiser.learning_rate, "history": optimiser.history}
        return {**without, **settings, "optimiser": "l-bfgs", "labels": LABELS[optimiser.joint_labels]}
    raise TypeError(f"specs know the optimisers Adam and LBFGS, got {type(optimiser).__name__}")


def _parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a search, by the names of its fields."""
    check_choice("optimiser", options["optimiser"], OPTIMISERS)
    check_choice("labels", options["labels"], LABELS)
    check_whole("history", options["history"], least=0)
    check_weight("sign_softness", options["sign_softness"])
    return {
        "distance": distance_named(
            options["distance"], converged_below=options["converged_below"], stop_below=options["stop_below"]
        ),
        "optimiser": _adam(options) if options["optimiser"] == "adam" else _l_bfgs(options),
        "priors": _priors(options),
        "init": start_named(options["start"]),
        "restarts": Restarts(options["restarts"], halving=options["halving"]),
        "replay": options["local_training"],
        "normalise_by": options["normalise_by"],
        "layers": options["layers"],
        "memory": options["memory"],
    }


def _adam(options: Mapping[str, Any]) -> Adam:
    if options["history"]:
        raise ValueError(f"adam remembers no steps: expected history=0, got {options['history']}")
    if options["labels"] == "joint":
        raise ValueError("labels='joint' needs optimiser='l-bfgs', which has no box and no prior on the labels")
    softness = options["sign_softness"]
    _check_softness(options)
    return Adam(
        iterations=options["iterations"],
        learning_rate=options["learning_rate"],
        signed=SoftSign(softness) if softness else options["signed"],
        schedule=options["schedule"],
        warmup=options["warmup"],
        langevin=options["langevin"],
        plateau=options["plateau"],
        iterate=options["iterate"],
        boxed=options["boxed"],
    )


def _l_bfgs(options: Mapping[str, Any]) -> LBFGS:
    optimiser = LBFGS(
        iterations=options["iterations"],
        learning_rate=options["learning_rate"],
        history=options["history"],
        plateau=options["plateau"],
        joint_labels=options["labels"] == "joint",
    )
    for name, (without, why) in _OF_ADAM.items():
        if options[name] != without:
            raise ValueError(f"optimiser='l-bfgs' does not fit {name}: {why}; set {name} to {without}")
    _check_softness(options)
    return optimiser


def _check_softness(options: Mapping[str, Any]) -> None:
    check_flag("signed", options["signed"])
    if options["sign_softness"] and not options["signed"]:
        raise ValueError("sign_softness softens the sign of the gradient; set signed to True, or sign_softness to 0")


def _priors(options: Mapping[str, Any]) -> list[Prior]:
    check_choice("group_mean", options["group_mean"], GROUP_MEANS)
    registered = options["group_mean"] == "registered"
    if registered and not options["group_consistency"]:
        raise ValueError("group_mean says what group_consistency compares with; set group_consistency above 0")
    if options["batch_norm_of"] != "running" and not options["batch_norm"]:
        raise ValueError("batch_norm_of says which statistics batch_norm compares with; set batch_norm above 0")
    text = options["total_variations"]
    plain = TotalVariation(options["total_variation"])
    raced = [RacedTotalVariation(_weights(text), text=text)] if text else []
    priors: list[Prior] = [
        plain,
        ImageNorm(options["image_norm"]),
        GroupConsistency(options["group_consistency"], registered=registered),
        BNStatistics(options["batch_norm"], of=options["batch_norm_of"]),
    ]
    return [*raced, *(prior for prior in priors if prior.weight and not (raced and prior is plain))]


def _weights(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(weight) for weight in text.split("|"))
    except ValueError:
        return ()
