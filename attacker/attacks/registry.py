"""The registry of attacks, and specs such as ``inverting-gradients:iterations=600,restarts=2``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType

from attacker.attacks.adaptive_specs import builder, follows_announcement, matching_settings, options_of
from attacker.attacks.announced_update import COMPARED
from attacker.attacks.attack import Attack
from attacker.attacks.defence_matched import ANSWERED, DefenceMatched
from attacker.attacks.dropout_inversion import DropoutInversion
from attacker.attacks.first_layer import FirstLayerInversion
from attacker.attacks.hybrid import Hybrid
from attacker.attacks.ignoring import Ignore
from attacker.attacks.layerwise import LayerwiseInversion
from attacker.attacks.noise_recovery import NoiseRecovery
from attacker.attacks.noise_restoring import NoiseRestoring
from attacker.attacks.portfolio import Member, Portfolio, standard_members
from attacker.attacks.presets import PRESETS
from attacker.attacks.search_options import OPTIONS
from attacker.attacks.spear import Spear
from attacker.attacks.then_refine import ThenRefine
from attacker.attacks.through_bottleneck import ThroughBottleneck
from fl_precode.spec import Spec, parse_spec


@dataclass(frozen=True, kw_only=True)
class AttackEntry:
    """An attack that can be named.

    Attributes:
        description: One line.
        source: The paper that it follows.
        build: Makes it from the checked spec.
        options: Names of the options that the spec may carry.
        answers: Names of the defences that it takes into account, or that cannot touch what it works with, where it is
            applicable, in any combination; the verdict says so when no attack that answers the whole announced defence
            was run. Of one spec: `answers_as`.
        inside: Of these the defences in the model of which it needs one: it searches for what they drew, and compares
            updates as other defences ask besides. Empty for attacks that need none.
        oblivious: Whether it answers them only because they cannot touch what it works with: it does the same without.
        needs: Kinds of knowledge without which it is no attack: ``labels``, ``batch-size``, ``buffers``, ``defence``,
            ``learning-rate``, ``auxiliary-data``. What it can recover, or do without, is not here.
    """

    description: str
    source: str
    build: Callable[[Spec], Attack] = field(repr=False)
    options: tuple[str, ...] = ()
    answers: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    oblivious: bool = False
    needs: frozenset[str] = frozenset()

    @property
    def adaptive(self) -> bool:
        """Whether it takes any defence into account."""
        return bool(self.answers)

    def answers_as(self, spec: str) -> frozenset[str]:
        """Names of the defences that the attack answers with a spec's settings.

        >>> "prune" in ATTACKS["ignore"].answers_as("ignore:distance=l2")
        False
        """
        return self.answers if not self.inside or follows_announcement(parse_spec(spec)) else self.answers - COMPARED


def _first_layer(spec: Spec) -> Attack:
    del spec
    return FirstLayerInversion()


def _gradient_matching(spec: Spec) -> Attack:
    preset = PRESETS[spec.choice("preset", tuple(PRESETS), "inverting-gradients")]
    return matching_settings(preset, spec)


def _of_whole_numbers(kind: Callable[..., Attack], names: tuple[str, ...]) -> Callable[[Spec], Attack]:
    """Makes an attack whose options are whole numbers."""

    def build(spec: Spec) -> Attack:
        found = {name: spec.integer(name) for name in names}
        try:
            return kind(**{name: value for name, value in found.items() if value is not None})
        except ValueError as error:
            raise ValueError(f"{spec.text!r}: {error}") from None

    return build


_THEN_REFINE = ("steps", "inner", "iterations")
_HYBRID = ("steps", "inner")
_SPEAR = tuple(option.name for option in fields(Spear))
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


_SETTINGS = tuple(OPTIONS)
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

_SEARCHES = frozenset({"batch-size"})
_ANSWERS = frozenset({"defence"})
_ANSWERING_SEARCHES = _SEARCHES | _ANSWERS

_PRECODE = frozenset({"precode", "precode-reference"})
_BOTTLENECKS = _PRECODE | {"cvb", "cvb-reference"}
_DROPOUT = frozenset({"dropout"})

ATTACKS: Mapping[str, AttackEntry] = MappingProxyType(
    {
        "first-layer": AttackEntry(
            description="division in the first layer: exact for one image when that layer is Linear with a bias",
            source="Phong et al., TIFS 2018",
            build=_first_layer,
            # All of them stand behind the first layer, or scale its gradient as a whole; Soteria may defend that one.
            answers=_BOTTLENECKS | {"dropout", "clip"},
            oblivious=True,
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
            answers=_PRECODE,
            needs=_ANSWERS,
        ),
        "hybrid": AttackEntry(
            description="layer-wise inversion; where equations fall short, the smoothest image that gives the update",
            source="after Chen, Campbell, arXiv 2111.10178",
            build=_of_whole_numbers(Hybrid, _HYBRID),
            options=_HYBRID,
            answers=_PRECODE,
        ),
        "then-refine": AttackEntry(
            description="layer-wise inversion, then least squares on all gradients from there: noise and rounding",
            source="this project; Zhu, Blaschko, ICLR 2021",
            build=_of_whole_numbers(ThenRefine, _THEN_REFINE),
            options=_THEN_REFINE,
            answers=_PRECODE,
        ),
        "inverting-gradients": AttackEntry(
            description="cosine gradient matching by signed Adam with total variation, any model",
            source="Geiping et al., NeurIPS 2020",
            build=_gradient_matching,
            options=("preset", *_SETTINGS),
            needs=_SEARCHES,
        ),
        "see-through-gradients": AttackEntry(
            description="squared-distance matching with BatchNorm statistics and agreement of restarts as priors",
            source="Yin et al., CVPR 2021",
            build=lambda spec: matching_settings(PRESETS["see-through-gradients"], spec),
            options=tuple(name for name in _SETTINGS if name not in _FIXED_BY_SEE_THROUGH),
            needs=_SEARCHES | {"buffers"},
        ),
        "dlg": AttackEntry(
            description="squared-distance gradient matching by L-BFGS, labels optimised with the images, smooth models",
            source="Zhu, Liu, Han, NeurIPS 2019",
            build=lambda spec: matching_settings(PRESETS["dlg"], spec),
            options=_DLG_SETTINGS,
            needs=_SEARCHES,
        ),
        "idlg": AttackEntry(
            description="as DLG with labels granted or recovered first, smooth models",
            source="Zhao, Mopuri, Bilen, arXiv 2001.02610",
            build=lambda spec: matching_settings(PRESETS["idlg"], spec),
            options=_DLG_SETTINGS,
            needs=_SEARCHES,
        ),
        "noise-recovery": AttackEntry(
            description="one image: the noise that PRECODE drew, in closed form; then matching as without PRECODE",
            source="this project",
            build=builder(NoiseRecovery),
            options=options_of(NoiseRecovery),
            answers=_PRECODE | COMPARED,
            inside=_PRECODE,
            needs=_ANSWERING_SEARCHES,
        ),
        "noise-restoring": AttackEntry(
            description="gradient matching that optimises the noise of bottlenecks with the images",
            source="Scheliga et al., arXiv 2208.04767",
            build=builder(NoiseRestoring),
            options=options_of(NoiseRestoring),
            answers=_BOTTLENECKS | COMPARED,
            inside=_BOTTLENECKS,
            needs=_ANSWERING_SEARCHES,
        ),
        "ignore": AttackEntry(
            description="gradient matching without the layers that a bottleneck's noise makes random",
            source="Scheliga et al., arXiv 2208.04767",
            build=builder(Ignore),
            options=options_of(Ignore, without=("layers",)),
            answers=_BOTTLENECKS | COMPARED,
            inside=_BOTTLENECKS,
            needs=_ANSWERING_SEARCHES,
        ),
        "dropout-inversion": AttackEntry(
            description="gradient matching that optimises dropout masks, and bottlenecks' noise, with the images",
            source="Scheliga et al., AAAI 2023",
            build=builder(DropoutInversion),
            options=options_of(DropoutInversion),
            answers=_DROPOUT | _BOTTLENECKS | COMPARED,
            inside=_DROPOUT,
            needs=_ANSWERING_SEARCHES,
        ),
        "defence-matched": AttackEntry(
            description="gradient matching by the distance and the layers that fit the announced defence",
            source="Balunović et al., ICLR 2022",
            build=builder(DefenceMatched),
            options=options_of(DefenceMatched, without=("layers", "distance")),
            answers=ANSWERED,
            needs=_ANSWERING_SEARCHES,
        ),
        "spear": AttackEntry(
            description="exact images of a batch when the first layer is Linear with a bias and a ReLU",
            source="Dimitrov et al., NeurIPS 2024",
            build=_of_whole_numbers(Spear, _SPEAR),
            options=_SPEAR,
            answers=_BOTTLENECKS | {"dropout"},
            oblivious=True,
        ),
        "portfolio": AttackEntry(
            description="first-layer, DLG, Inverting Gradients and what answers a bottleneck: the best match",
            source="Phong et al., Zhu et al., Geiping et al., Scheliga et al.",
            build=_portfolio,
            options=(*_PORTFOLIO_BUDGET, "total_variations"),
            # Only what its members answer on every model.
            answers=_BOTTLENECKS,
            needs=_ANSWERING_SEARCHES,
        ),
    }
)
"""Attacks by name."""


def entry_of(attack: str) -> AttackEntry:
    """The entry of an attack, by name or spec.

    Raises:
        KeyError: If there is none; see `build_attack` for an error that teaches.
    """
    return ATTACKS[attack.partition(":")[0]]


def build_attack(spec: str) -> Attack:
    """The attack that a spec names, with its settings.

    Args:
        spec: ``name`` or ``name:key=value,key=value``. ``inverting-gradients`` takes `OPTIONS` of gradient
            matching and ``preset``, one of `PRESETS`, whose values the other options replace.

    Raises:
        ValueError: If the attack or an option does not exist (the message lists those that do), or a value is out of
            its range.

    >>> build_attack("inverting-gradients:preset=precode-paper,restarts=2").restarts
    Restarts(count=2, halving=0)
    """
    parsed = parse_spec(spec)
    if parsed.name not in ATTACKS:
        raise ValueError(f"unknown attack {parsed.name!r}; there are {', '.join(ATTACKS)}")
    entry = ATTACKS[parsed.name]
    parsed.check_options(entry.options)
    return entry.build(parsed)
