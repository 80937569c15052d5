"""A portfolio: several attacks on each update, of which the best result by one measure counts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Generator, Tensor

from attacker.attacks.base import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.best_match import Contest
from attacker.attacks.defence_names import BOTTLENECKS
from attacker.attacks.known_labels import known_labels
from attacker.attacks.randomness import derived
from attacker.attacks.registration import ATTACKS, register_attack
from attacker.attacks.registry import build_attack
from attacker.gradients.trace import trace
from attacker.reasons import Reason, because, coded, joined, raised
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.spec import Spec, spec_name

_logger = logging.getLogger(__name__)

_BUDGET: Final = {"iterations": 2_000, "restarts": 1, "plateau": 200}
_WEIGHT: Final = "total_variation"

Drawn = tuple[Generator, ...]
"""A member's generators, one for each observation."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One attack of a portfolio.

    Attributes:
        method: Its spec, by which results name it.
        attack: The attack itself.
    """

    method: str
    attack: Attack


def _from_spec(kind: type[Attack], spec: Spec) -> Attack:
    """Make the usual members, with the budget and the weights of a spec."""
    del kind
    weights = spec.options.get("total_variations", "1e-6|1e-4|1e-2").split("|")
    try:
        total_variations = [float(weight) for weight in weights]
    except ValueError:
        raise ValueError(
            f"{spec.text!r}: expected total_variations to be numbers separated by |, got {'|'.join(weights)!r}"
        ) from None
    budget = {name: spec.integer(name) for name in _BUDGET}
    given = {name: value for name, value in budget.items() if value is not None}
    methods = standard_members(**{**_BUDGET, **given}, total_variations=total_variations)
    try:
        return Portfolio(members=tuple(Member(method=method, attack=build_attack(method)) for method in methods))
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


@register_attack(
    "portfolio",
    title="portfolio of attacks",
    description="what is exact, DLG, Inverting Gradients and what answers a bottleneck: the best match",
    source="Phong et al., Zhu et al., Geiping et al., Scheliga et al.",
    build=_from_spec,
    options=lambda _kind: (*_BUDGET, "total_variations"),
    # Only what its members answer on every model.
    answers=BOTTLENECKS,
    needs=frozenset({"batch-size", "defence"}),
    rank=120,
    made_of_others=True,
)
@dataclass(frozen=True, kw_only=True)
class Portfolio(Attack):
    """The worst case for the client among several attacks, as far as the attacker can tell without the truth.

    Formulas attack first, then the others, each in order, and an observation leaves as soon as an analytic member (one
    without iterations) has its exact image; see `Contest` for the measure that all results are compared by, and for
    models with noise of their own. A member that raises costs its own result only: the reason of the observation's
    result names it.

    Labels that were not granted are recovered once for all members, by `attacker.labels.best_labels`; where that fails
    each member finds its own way, such as DLG's joint optimisation.

    Randomness: label recovery and each member have a generator of their own for each observation, seeded by as many
    draws of the observation's, in order (`derived`). With the same labels and generators a member finds the same alone.

    Attributes:
        members: In the order of their draws; those that are registered as exact attack first, to save the time of the
            others.

    Raises:
        ValueError: If there is no member, or two have the same method.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        methods = [member.method for member in self.members]
        if not methods or len(set(methods)) != len(methods):
            raise ValueError(f"expected one or more members of different methods, got {', '.join(methods) or 'none'}")

    @property
    def name(self) -> str:
        """Name in the registry."""
        return "portfolio"

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why no member can fit the observation, or None when one can."""
        reasons = []
        for member in self.members:
            try:
                reason = member.attack.refuses(victim, observation)
            except Exception:  # is named when it is run
                return None
            if reason is None:
                return None
            reasons.append(because("member", method=member.method, why=coded(reason)))
        return joined(reasons)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Let the members attack one after another, each all observations that are left."""
        if not observations:
            return []
        model_trace = trace(victim)
        first, *rest = zip(*(derived(generator, 1 + len(self.members)) for generator in generators), strict=True)
        known = [guess for guess, _ in known_labels(victim, observations, labels, first)]
        contests = [Contest(victim, model_trace, observation) for observation in observations]
        for number, (member, sources) in enumerate(_formulas_first(list(zip(self.members, rest, strict=True)))):
            left = [index for index, contest in enumerate(contests) if not contest.decided]
            if not left:
                break
            share = _share(progress, number, len(self.members), contests)
            results = _attack(
                member,
                victim,
                [observations[index] for index in left],
                [known[index] for index in left],
                [sources[index] for index in left],
                share,
            )
            for index, result in zip(left, results, strict=True):
                contests[index].consider(member.method, result)
        if progress is not None:
            progress(1.0, _smallest(contests))
        return [contest.result() for contest in contests]


def _formulas_first(members: Sequence[tuple[Member, Drawn]]) -> list[tuple[Member, Drawn]]:
    return sorted(members, key=lambda one: not _is_formula(one[0].method))


def _is_formula(method: str) -> bool:
    entry = ATTACKS.get(spec_name(method))
    return entry is not None and entry.exact


def standard_members(
    *, iterations: int, restarts: int, plateau: int, total_variations: Sequence[float]
) -> tuple[str, ...]:
    """Specs of the usual members: what is exact where it fits, what finds smooth models, and all others.

    Some of these answer a bottleneck and refuse models without one. Which attacks they are, each says at its class
    (`attacker.attacks.registration.AttackEntry.portfolio`).

    Args:
        iterations: Iterations of each search.
        restarts: Restarts of each search.
        plateau: Iterations without gain after which a search goes on with a smaller step or is done; 0 for never.
        total_variations: Weights of the prior, one search by Inverting Gradients for each.

    Raises:
        ValueError: If there is no weight.
    """
    if not total_variations:
        raise ValueError("expected one or more weights of total variation, such as 1e-6|1e-4|1e-2, got none")
    budget = f"iterations={iterations},restarts={restarts},plateau={plateau}"
    places = {name: entry.portfolio for name, entry in ATTACKS.items() if entry.portfolio is not None}
    specs: list[str] = []
    for name in sorted(places, key=places.__getitem__):
        options = ATTACKS[name].options
        if "iterations" not in options:
            specs.append(name)
        elif _WEIGHT not in options:
            specs.append(f"{name}:{budget}")
        else:
            specs += [f"{name}:{budget},{_WEIGHT}={weight:g}" for weight in total_variations]
    return tuple(specs)


def _attack(
    member: Member,
    victim: Victim,
    observations: Sequence[Observation],
    labels: Sequence[Tensor | None],
    generators: Sequence[Generator],
    progress: Progress | None,
) -> list[Reconstruction]:
    try:
        return member.attack(victim, observations, generator=generators, labels=labels, progress=progress)
    except Exception as error:
        # One member's defect must not cost the results of the others; the results name it.
        _logger.exception("%s failed as a member of a portfolio", member.method)
        failed = Reconstruction(
            inputs=None,
            labels=None,
            outcome=Outcome.FAILED,
            reason=raised(error),
        )
        return [replace(failed) for _ in observations]


def _share(progress: Progress | None, number: int, members: int, contests: Sequence[Contest]) -> Progress | None:
    """Progress of one member as progress of the whole; what members call best is measured in units of their own."""
    if progress is None:
        return None
    report, best = progress, _smallest(contests)
    return lambda done, _best: report((number + min(max(done, 0.0), 1.0)) / members, best)


def _smallest(contests: Sequence[Contest]) -> float | None:
    distances = [contest.distance for contest in contests if contest.distance is not None]
    return min(distances, default=None)
