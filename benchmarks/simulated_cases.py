"""The kinds of simulated audits: what clients do, how they are audited, and what is true of them by construction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from benchmarks.simulated_images import ALIKE, Images, draw, sets

Truth = Literal["leaks", "does not", "oracle"]
"""``leaks``: a formula gives the images from these updates. ``does not``: the updates say nothing of the images, or the
image is what one guesses. ``oracle``: nothing follows from the construction; an oracle may show a leak."""

PERCEPTRON = "benchmarks.simulated_models:perceptron"
FROZEN = "benchmarks.simulated_models:partly_frozen"
FORMULAS = ("first-layer", "layerwise-inversion")
SEARCH = "inverting-gradients:iterations=60,restarts=2,learning_rate=0.1,total_variation=1e-4"
MATCHED = "defence-matched:iterations=60,restarts=2,learning_rate=0.1,total_variation=1e-4"
ENOUGH = 64
"""Updates of an audit that may say "held": 61 different images are needed."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One simulated audit.

    Attributes:
        kind: Name of its kind.
        number: Among all audits; with the seed it draws everything.
        images: The set that the clients share out.
        source: Name of the image set.
        settings: Settings of the federation, by field.
        alter: What is done to the updates, as `simulated_tapes.ALTERED`.
        truth: What is true by construction.
        attacks: Specs; None plans them.
        victims: Updates to attack.
        labels: Whether the attacker is given the labels.
        may_hold: Whether there are enough different images of different updates to say "held" at all.
    """

    kind: str
    number: int
    images: Images = field(repr=False)
    source: str
    settings: Mapping[str, str | int | float]
    truth: Truth
    alter: str = ""
    attacks: tuple[str, ...] | None = None
    victims: int = 2
    labels: bool = False
    may_hold: bool = True


Draw = Callable[[np.random.Generator, bool], dict[str, object]]
"""Draws what is particular to a kind; told whether ../shared/data is there."""


def case(kind: str, number: int, seed: int, *, shared: bool) -> Case:
    """Audit ``number`` of a seed, which is of this kind."""
    generator = np.random.default_rng((seed, number))
    return Case(kind=kind, number=number, **KINDS[kind](generator, shared))  # type: ignore[arg-type]


def _one(generator: np.random.Generator, *choices: str) -> str:
    return str(choices[int(generator.integers(len(choices)))])


def _set(
    generator: np.random.Generator, shared: bool, *, classes: int | tuple[int, ...] = 0, name: str = "", most: int = 160
) -> dict[str, object]:
    source = name or _one(generator, *sorted(sets(shared=shared)))
    return {"source": source, "images": draw(source, generator, classes=classes, most=most)}


def _settings(generator: np.random.Generator, **more: str | int | float) -> dict[str, object]:
    usual = {"num_clients": 3, "num_server_rounds": 1, "model": PERCEPTRON, "seed": int(generator.integers(1, 10_000))}
    return {"settings": {**usual, **more}}


def _small_model(generator: np.random.Generator) -> str:
    wide = f"{PERCEPTRON}(hidden={_one(generator, '32', '64')})"
    return _one(generator, PERCEPTRON, wide, "lenet", "lenet:init=uniform", "lenet:activation=relu")


def _how(generator: np.random.Generator) -> dict[str, object]:
    """Planned, or by named attacks."""
    if generator.integers(4):
        return {"attacks": (*FORMULAS, SEARCH), "victims": 3, "labels": bool(generator.integers(2))}
    return {"attacks": None, "victims": 2}


def _chosen(generator: np.random.Generator, *adaptive: str) -> tuple[str, ...]:
    """A plain search and one or more that know a part of the defence, with a weight of the prior that may be wrong."""
    weight, starts = _one(generator, "1e-6", "1e-4", "1e-2"), _one(generator, "1", "2")
    kept = adaptive if generator.integers(2) else (_one(generator, *adaptive),)
    options = f"iterations=60,restarts={starts},learning_rate=0.1,total_variation={weight}"
    return ("first-layer", *(f"{name}:{options}" for name in ("inverting-gradients", *kept)))


def _altered(alter: str) -> Draw:
    def made(generator: np.random.Generator, shared: bool) -> dict[str, object]:
        defence = _one(generator, "none", "none", "clip:max_norm=1", "prune:share=0.5", "noise:std=0.01")
        own = _settings(generator, model=_small_model(generator), defence=defence)
        return {**_set(generator, shared), **own, **_how(generator), "alter": alter, "truth": "does not"}

    return made


def _altered_many(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Altered updates of many clients, attacked by formulas and a short search: chance has many tries."""
    own = _settings(generator, model=f"{PERCEPTRON}(hidden=32)", num_clients=ENOUGH)
    alter = _one(generator, "noise", "permuted", "swapped")
    source = _set(generator, shared, name=ALIKE[shared][0], classes=ALIKE[shared][1], most=ENOUGH + 30)
    return {**source, **own, "alter": alter, "truth": "does not", "victims": ENOUGH, "attacks": (*FORMULAS, SEARCH)}


def _alike(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Images that resemble each other, under noise beside which the gradient is nothing, or updates that are noise."""
    name, classes = ALIKE[shared]
    kept = int(generator.integers(1, len(classes) + 1))
    source = _set(generator, shared, name=name, classes=tuple(classes[:kept]))
    huge = bool(generator.integers(2))
    own = _settings(generator, model=_small_model(generator), defence="noise:std=1000" if huge else "none")
    return {**source, **own, **_how(generator), "alter": "" if huge else "swapped", "truth": "does not"}


def _constant(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Images of one grey each: who guesses the grey has the image."""
    del shared
    levels = generator.integers(0, 256, 60)
    images = np.broadcast_to(levels[:, None, None], (60, 12, 12)).astype(np.uint8)
    labels = np.unique(levels // 86, return_inverse=True)[1]
    own = _settings(generator, model=_small_model(generator))
    drawn = {"source": "constant", "images": (np.ascontiguousarray(images), labels.astype(np.int64))}
    return {**drawn, **own, **_how(generator), "truth": "does not"}


def _one_class(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Clients that hold one class each; half of them send noise."""
    alter = _one(generator, "", "noise")
    own = _settings(generator, model=_small_model(generator), partition="pathological", classes_per_client=1)
    drawn = {**_set(generator, shared, classes=3), **own, **_how(generator), "alter": alter}
    return {**drawn, "truth": "does not" if alter else _by_model(own)}


def _by_model(own: Mapping[str, object]) -> Truth:
    """Single undefended gradients of a model whose first layer is Linear leak by one division."""
    settings = own["settings"]
    assert isinstance(settings, dict)
    return "leaks" if str(settings["model"]).startswith((PERCEPTRON, "mlp")) else "oracle"


def _repeated(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """64 updates of few images: nothing can be said to have held."""
    images, labels = draw(_one(generator, *sorted(sets(shared=shared))), generator, classes=2, most=8)
    own = _settings(
        generator,
        model=f"{PERCEPTRON}(hidden=32)",
        num_clients=ENOUGH,
        defence=_one(generator, "noise:std=30", "noise:std=1000", "dropout:p=0.5+noise:std=100"),
    )
    times = 90 // len(labels)
    drawn = {
        "source": "repeated",
        "images": (np.tile(images, (times,) + (1,) * (images.ndim - 1)), np.tile(labels, times)),
    }
    attacks = ("first-layer", MATCHED)
    return {
        **drawn,
        **own,
        "truth": "does not",
        "victims": ENOUGH,
        "attacks": attacks,
        "may_hold": False,
        "labels": True,
    }


def _frozen(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Frozen first layers, or all but the last, whose updates still give the images."""
    model = _one(
        generator,
        f"{PERCEPTRON}(hidden=1024,frozen=1)",
        f"{PERCEPTRON}(hidden=1024,depth=1,frozen=1)",
        f"{FROZEN}(first=2)",
        f"{FROZEN}(model='lenet:init=uniform',first=2)",
    )
    own = _settings(generator, model=model, protocol="fedavg", local_steps=1)
    source = _set(generator, shared, name=_one(generator, *sorted(set(sets(shared=shared)) - {"photos", "cifar10"})))
    return {**source, **own, **_how(generator), "truth": "leaks" if "frozen=1" in model else "oracle"}


def _frozen_noise(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """The same with updates that are noise, and a residual network of which the last layer trains."""
    model = _one(
        generator, f"{PERCEPTRON}(hidden=64,frozen=1)", f"{FROZEN}(first=2)", f"{FROZEN}(model='resnet20',first=-2)"
    )
    own = _settings(generator, model=model, protocol="fedavg", local_steps=1, num_clients=2)
    how = {"attacks": ("layerwise-inversion", SEARCH.replace("60", "20")), "victims": 2}
    return {**_set(generator, shared), **own, **how, "alter": "noise", "truth": "does not"}


def _undefended(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    own = _settings(generator, model=_one(generator, PERCEPTRON, "mlp", "lenet", "lenet:init=uniform"))
    return {**_set(generator, shared), **own, **_how(generator), "truth": _by_model(own)}


def _behind(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Defences that sit behind a first Linear layer, or only scale its gradient."""
    defence = _one(
        generator,
        "precode:latent=32",
        "dropout:p=0.5",
        "clip:max_norm=0.1",
        "soteria:share=0.6",
        "precode:latent=32+clip:max_norm=1",
    )
    own = _settings(generator, model=PERCEPTRON, defence=defence)
    return {**_set(generator, shared), **own, **_how(generator), "truth": "leaks"}


def _mixed(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Several defences at once, many updates: each attack that answers one of them is named."""
    defence = _one(
        generator,
        "dropout:p=0.8+prune:share=0.9",
        "clip:max_norm=1+noise:std=0.01",
        "prune:share=0.9+quantise:bits=3",
        "precode:latent=32+noise:std=0.01",
        "clip:max_norm=1+quantise:bits=2",
        "dropout:p=0.5+noise:std=0.03",
    )
    answer = {"dropout": "dropout-inversion", "precode": "noise-restoring"}.get(defence.partition(":")[0])
    adaptive = ("defence-matched",) if answer is None else ("defence-matched", answer)
    own = _settings(generator, model=f"{PERCEPTRON}(hidden=32)", defence=defence, num_clients=ENOUGH)
    source = _set(generator, shared, name=_one(generator, "digits", "faces", *(["medical"] if shared else [])))
    return {
        **source,
        **own,
        "truth": "oracle",
        "victims": ENOUGH,
        "attacks": _chosen(generator, *adaptive),
        "labels": True,
    }


def _single(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """One defence of the update, from weak to strong, many updates of a small LeNet or a perceptron."""
    defence = _one(
        generator,
        "noise:std=0.001",
        "noise:std=0.1",
        "prune:share=0.97",
        "prune:share=0.8",
        "quantise:bits=2",
        "sign",
        "laplace:std=0.01",
        "dp:max_norm=1,noise_multiplier=0.01",
        "clip:max_norm=0.01",
    )
    own = _settings(
        generator, model=_one(generator, "lenet", f"{PERCEPTRON}(hidden=32)"), defence=defence, num_clients=ENOUGH
    )
    return {
        **_set(generator, shared, name="digits"), **own, "truth": "oracle", "victims": ENOUGH,
        "attacks": _chosen(generator, "defence-matched"), "labels": True,
    }  # fmt: skip


def _two_classes(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Two classes and a pruned update, whose labels no bias gives."""
    defence = _one(generator, "prune:share=0.9", "prune:share=0.99", "none", "clip:max_norm=1")
    own = _settings(generator, model=_one(generator, PERCEPTRON, "lenet"), defence=defence)
    return {
        **_set(generator, shared, classes=2), **own, **_how(generator),
        "truth": _by_model(own) if defence in ("none", "clip:max_norm=1") else "oracle",
    }  # fmt: skip


def _several_steps(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Clients with one image and two or three local steps: the first layer's weights still move along the image."""
    steps = int(generator.integers(2, 4))
    source = _set(generator, shared, most=40)
    images = source["images"]
    assert isinstance(images, tuple)
    own = _settings(generator, protocol="fedavg", local_steps=steps, num_clients=len(images[1]), learning_rate=0.05)
    return {**source, **own, "attacks": None, "victims": 2, "truth": "leaks"}


def _huge_noise(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """Noise beside which the gradient is nothing, enough updates: here "held" is right."""
    own = _settings(
        generator,
        model=f"{PERCEPTRON}(hidden=32)",
        defence=_one(generator, "noise:std=1000", "laplace:std=300", "clip:max_norm=1+noise:std=100"),
        num_clients=ENOUGH,
    )
    attacks = ("first-layer", SEARCH, MATCHED)
    return {
        **_set(generator, shared),
        **own,
        "truth": "does not",
        "victims": ENOUGH,
        "attacks": attacks,
        "labels": True,
    }


def _pruned(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """A hundredth of the numbers or fewer are left."""
    own = _settings(generator, model=PERCEPTRON, defence=_one(generator, "prune:share=0.99", "prune:share=0.999"))
    return {**_set(generator, shared), **own, **_how(generator), "truth": "oracle"}


def _big_batch(generator: np.random.Generator, shared: bool) -> dict[str, object]:
    """One update of many images: 64 images of it are one draw of the noise, and no ground for "held"."""
    alter = _one(generator, "", "noise", "permuted")
    size = int(_one(generator, "8", "16", "64"))
    own = _settings(
        generator,
        model=f"{PERCEPTRON}(hidden=32)",
        num_clients=2,
        batch_size=size,
        defence="none" if alter else _one(generator, "noise:std=100", "noise:std=1"),
    )
    attacks = (SEARCH.replace("60", "40"), MATCHED.replace("60", "40"))
    drawn = {**_set(generator, shared), **own, "attacks": attacks, "victims": 1, "labels": True, "may_hold": False}
    return {**drawn, "alter": alter, "truth": "does not" if alter else "oracle"}


KINDS: Mapping[str, Draw] = {
    "noise instead of updates": _altered("noise"),
    "shuffled updates": _altered("permuted"),
    "another client's updates": _altered("swapped"),
    "64 altered updates": _altered_many,
    "images that are alike": _alike,
    "constant images": _constant,
    "one-class clients": _one_class,
    "repeated images": _repeated,
    "frozen layers": _frozen,
    "frozen layers, noise": _frozen_noise,
    "undefended": _undefended,
    "defences behind a Linear layer": _behind,
    "mixed defences": _mixed,
    "one defence": _single,
    "two classes": _two_classes,
    "several local steps": _several_steps,
    "huge noise": _huge_noise,
    "heavy pruning": _pruned,
    "one update of many images": _big_batch,
}
"""What draws each kind, by its name in the table."""
