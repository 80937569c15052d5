"""The registry of attacks, and specs such as ``inverting-gradients:iterations=600,restarts=2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType

from attacker.attacks.attack import Attack
from attacker.attacks.first_layer import FirstLayerInversion
from attacker.attacks.gradient_matching import GradientMatching
from attacker.attacks.hybrid import Hybrid
from attacker.attacks.layerwise import LayerwiseInversion
from attacker.attacks.portfolio import Member, Portfolio, standard_members
from attacker.attacks.presets import PRESETS
from attacker.attacks.then_refine import ThenRefine
from attacker.attacks.through_bottleneck import ThroughBottleneck
from fl_precode.spec import Spec, parse_spec

_TRUE_OR_FALSE = ("true", "false")


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """An attack that can be named.

    Attributes:
        description: One line.
        source: The paper that it follows.
        build: Makes it from the checked spec.
        options: Names of the options that the spec may carry.
        adaptive: Whether it takes the defence into account; the verdict says so when no such attack was run.
    """

    description: str
    source: str
    build: Callable[[Spec], Attack] = field(repr=False)
    options: tuple[str, ...] = ()
    adaptive: bool = False


def _first_layer(spec: Spec) -> Attack:
    del spec
    return FirstLayerInversion()


def _gradient_matching(spec: Spec) -> Attack:
    preset = PRESETS[spec.choice("preset", tuple(PRESETS), "inverting-gradients")]
    return _with_options(preset, spec)


def _with_options(preset: GradientMatching, spec: Spec) -> Attack:
    settings: dict[str, int | float | bool | str] = {}
    for option in fields(GradientMatching):
        if option.name not in spec.options:
            continue
        initial = getattr(preset, option.name)
        if isinstance(initial, str):
            settings[option.name] = spec.options[option.name]
        elif isinstance(initial, bool):
            settings[option.name] = spec.choice(option.name, _TRUE_OR_FALSE, "true") == "true"
        else:
            value = spec.integer(option.name) if isinstance(initial, int) else spec.number(option.name)
            assert value is not None
            settings[option.name] = value
    try:
        return replace(preset, **settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


def _numbers(spec: Spec, names: tuple[str, ...]) -> dict[str, int]:
    """The whole numbers that the spec carries."""
    found = {name: spec.integer(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _then_refine(spec: Spec) -> Attack:
    try:
        return ThenRefine(**_numbers(spec, _THEN_REFINE))
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


def _hybrid(spec: Spec) -> Attack:
    try:
        return Hybrid(**_numbers(spec, _HYBRID))
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


_THEN_REFINE = ("steps", "inner", "iterations")
_HYBRID = ("steps", "inner")
_PORTFOLIO_BUDGET = {"iterations": 2_000, "restarts": 1, "plateau": 200}


def _portfolio(spec: Spec) -> Attack:
    weights = spec.options.get("total_variations", "1e-6|1e-4|1e-2").split("|")
    try:
        total_variations = [float(weight) for weight in weights]
    except ValueError:
        raise ValueError(
            f"{spec.text!r}: expected total_variations to be numbers separated by |, got {'|'.join(weights)!r}"
        ) from None
    budget = {name: spec.integer(name) for name in _PORTFOLIO_BUDGET}
    given = {name: value for name, value in budget.items() if value is not None}
    methods = standard_members(**{**_PORTFOLIO_BUDGET, **given}, total_variations=total_variations)
    try:
        return Portfolio(members=tuple(Member(method=method, attack=build_attack(method)) for method in methods))
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


_SETTINGS = tuple(option.name for option in fields(GradientMatching) if option.name != "method")
# What makes DLG and iDLG the methods they are is not for the spec to change.
_DLG_SETTINGS = (
    "iterations",
    "learning_rate",
    "restarts",
    "history",
    "converged_below",
    "start",
    "stop_below",
    "plateau",
    "image_norm",
)
_FIXED_BY_SEE_THROUGH = ("optimiser", "history", "labels")

ATTACKS: Mapping[str, AttackEntry] = MappingProxyType(
    {
        "first-layer": AttackEntry(
            description="division in the first layer: exact for one image when that layer is Linear with a bias",
            source="Phong et al., TIFS 2018",
            build=_first_layer,
        ),
        "layerwise-inversion": AttackEntry(
            description="one linear system for each layer: exact for one image where their equations suffice",
            source="Zhu, Blaschko, ICLR 2021; Chen, Campbell, arXiv 2111.10178",
            build=lambda _spec: LayerwiseInversion(),
        ),
        "through-bottleneck": AttackEntry(
            description="layer-wise inversion from PRECODE's encoder down: whatever the noise was, one image",
            source="this project; Zhu, Blaschko, ICLR 2021",
            build=lambda _spec: ThroughBottleneck(),
            adaptive=True,
        ),
        "hybrid": AttackEntry(
            description="layer-wise inversion; where equations fall short, the smoothest image that gives the update",
            source="after Chen, Campbell, arXiv 2111.10178",
            build=_hybrid,
            options=_HYBRID,
            adaptive=True,
        ),
        "then-refine": AttackEntry(
            description="layer-wise inversion, then least squares on all gradients from there: noise and rounding",
            source="this project; Zhu, Blaschko, ICLR 2021",
            build=_then_refine,
            options=_THEN_REFINE,
            adaptive=True,
        ),
        "inverting-gradients": AttackEntry(
            description="cosine gradient matching by signed Adam with total variation, any model",
            source="Geiping et al., NeurIPS 2020",
            build=_gradient_matching,
            options=("preset", *_SETTINGS),
        ),
        "see-through-gradients": AttackEntry(
            description="squared-distance matching with BatchNorm statistics and agreement of restarts as priors",
            source="Yin et al., CVPR 2021",
            build=lambda spec: _with_options(PRESETS["see-through-gradients"], spec),
            options=tuple(name for name in _SETTINGS if name not in _FIXED_BY_SEE_THROUGH),
        ),
        "dlg": AttackEntry(
            description="squared-distance gradient matching by L-BFGS, labels optimised with the images, smooth models",
            source="Zhu, Liu, Han, NeurIPS 2019",
            build=lambda spec: _with_options(PRESETS["dlg"], spec),
            options=_DLG_SETTINGS,
        ),
        "idlg": AttackEntry(
            description="as DLG with labels granted or recovered first, smooth models",
            source="Zhao, Mopuri, Bilen, arXiv 2001.02610",
            build=lambda spec: _with_options(PRESETS["idlg"], spec),
            options=_DLG_SETTINGS,
        ),
        "portfolio": AttackEntry(
            description="first-layer, DLG and Inverting Gradients at several weights of its prior: the best match",
            source="Phong et al., Zhu et al., Geiping et al.",
            build=_portfolio,
            options=(*_PORTFOLIO_BUDGET, "total_variations"),
        ),
    }
)
"""Attacks by name."""


def build_attack(spec: str) -> Attack:
    """The attack that a spec names, with its settings.

    Args:
        spec: ``name`` or ``name:key=value,key=value``. ``inverting-gradients`` takes the fields of `GradientMatching`
            and ``preset``, one of `PRESETS`, whose values the other options replace.

    Raises:
        ValueError: If the attack or an option does not exist (the message lists those that do), or a value is out of
            its range.

    >>> build_attack("inverting-gradients:preset=precode-paper,restarts=2").iterations
    7000
    """
    parsed = parse_spec(spec)
    if parsed.name not in ATTACKS:
        raise ValueError(f"unknown attack {parsed.name!r}; there are {', '.join(ATTACKS)}")
    entry = ATTACKS[parsed.name]
    parsed.check_options(entry.options)
    return entry.build(parsed)
