"""The plan of an audit: every attack, whether it runs and why, with how many iterations and how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from attacker.attacks.registry import build_attack, entry_of
from attacker.attacks.selection import answers, is_compared_with, needs_defence, ranked, why_run, with_iterations
from attacker.audit.clock import MOST_MEASURING, Clock
from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.inputs.tape_source import Subject
from attacker.audit.planning.costs import cost, measure_unit, replays, searches_for
from attacker.audit.planning.kept_costs import ITERATION, Prices, keep, key_of, known_prices
from attacker.audit.planning.unanswerable import why_unanswerable
from attacker.audit.record.schema import PlannedAttack, PlanStatus, Role
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import DEFENCE, Knowledge
from attacker.gradients.dropout_masks import dropout_layers
from attacker.gradients.observed import steps_behind
from attacker.reasons import Reason, because
from fl_precode.observation import Observation

LADDER = (7_000, 4_000, 2_000, 1_000, 500, 300, 100)
"""Iterations of planned searches: the most for which all of them fit into the budget. 7,000 are the PRECODE paper's;
with 300 or fewer every weight of the prior that is raced runs to the end."""

PRIORS = "1e-6|1e-4|1e-2|1e-1"
"""Weights of total variation that planned searches race."""

FORMULAS_SHARE = 0.6
"""Share of a budget that formulas may be given, so that gradient matching is tried as well."""

_REST = 3
"""The turn of attacks that are given all updates or none."""

_LOOKED_AT = 4
_DROPOUT = "dropout"
_LEAST_OF_A_SEARCH = 20.0
"""Budgets that a search may take at most to be begun where none fits: it then makes at least a twentieth."""


@dataclass(frozen=True, kw_only=True)
class _Considered:
    """An attack on a federation before its budget is known."""

    federation: AuditedFederation
    name: str
    role: Role
    status: PlanStatus
    reason: Reason
    steps: int = 1
    unanswerable: bool = False


def plan_audit(
    federations: Sequence[AuditedFederation],
    settings: AuditSettings,
    *,
    estimate: bool = True,
    clock: Clock | None = None,
    say: Callable[[str], None] | None = None,
) -> list[PlannedAttack]:
    """Every attack on every federation, in the order in which they are to run.

    Named attacks run as they are named. Otherwise all registered ones are considered, and searches get the largest
    number of iterations of `LADDER` for which everything fits into the budget; where even the smallest does not, what
    comes last is over budget. The first search of each kind, adaptive and plain, gets a second start, unless there is
    no time for it: one start alone is weak evidence. A control gets the attacks that need no defence.

    Args:
        federations: Controls behind the federations that they belong to.
        settings: Settings of the audit.
        estimate: Whether expected seconds are measured; without them there is no budget.
        clock: Clock of the whole audit, which says how much of the budget is left for attacks; None leaves all of it.
        say: Told in a sentence about updates that no search can answer.
    """
    considered = [attack for federation in federations for attack in _consider(federation, settings)]
    measuring = (MOST_MEASURING if clock is None else clock.measuring()) / len(federations)
    prices = {
        federation.id: _prices(federation, settings, measuring) if estimate else Prices() for federation in federations
    }
    considered = _answerable(considered, prices, settings, say)
    budget = settings.budget if clock is None else clock.planned()
    if settings.attacks is not None:
        planned = [_planned(attack, attack.name, prices) for attack in considered]
    else:
        planned = _fitting(considered, prices, budget)
    controls = {federation.id for federation in federations if federation.control_of is not None}
    return planned if budget is None else _within(planned, budget, controls)


def _prices(federation: AuditedFederation, settings: AuditSettings, seconds: float) -> Prices:
    """What attacks cost here: as earlier audits found it, else measured now, and kept."""
    key = key_of(federation, settings)
    known = known_prices(key)
    if known.unit is not None:
        return known
    unit = measure_unit(federation, settings, seconds)
    if unit is not None:
        keep(key, {ITERATION: unit})
    return replace(known, unit=unit)


def _answerable(
    considered: Sequence[_Considered],
    prices: Mapping[str, Prices],
    settings: AuditSettings,
    say: Callable[[str], None] | None,
) -> list[_Considered]:
    """The same without searches of updates that none can answer in its time; their control needs none either."""
    given_up: dict[str, Reason] = {}
    for federation in {attack.federation.id: attack.federation for attack in considered}.values():
        if federation.control_of is None:
            searches = [attack.name for attack in considered if attack.federation is federation and _searches(attack)]
            fewest = [cost(spec_with(name, LADDER[-1]) if settings.attacks is None else name) for name in searches]
            if why := why_unanswerable(federation, prices[federation.id].unit, fewest, settings.budget):
                given_up[federation.id] = why
                if say is not None:
                    say(why)
    return [
        replace(
            attack,
            status="over_budget",
            reason=given_up[attack.federation.control_of or attack.federation.id],
            unanswerable=True,
        )
        if _searches(attack) and (attack.federation.control_of or attack.federation.id) in given_up
        else attack
        for attack in considered
    ]


def _searches(considered: _Considered) -> bool:
    return considered.status == "run" and replays(considered.name)


def _fitting(
    considered: Sequence[_Considered], prices: Mapping[str, Prices], budget: float | None
) -> list[PlannedAttack]:
    planned: list[PlannedAttack] = []
    twice = _first_searches(considered)
    for iterations, again in [*((rung, twice) for rung in LADDER), (LADDER[-1], set())]:
        specs = [
            spec_with(attack.name, iterations, starts=2 if number in again else 1)
            if attack.status == "run"
            else attack.name
            for number, attack in enumerate(considered)
        ]
        planned = [_planned(attack, spec, prices) for attack, spec in zip(considered, specs, strict=True)]
        if budget is None or _total(planned) <= budget:
            break
    return planned


def _first_searches(considered: Sequence[_Considered]) -> set[int]:
    """Places of the first search of each kind on each federation that can have more than one start."""
    places: dict[tuple[str, Role], int] = {}
    for number, attack in enumerate(considered):
        if (
            attack.status == "run"
            and entry_of(attack.name).cost is None
            and {"iterations", "restarts"} <= {*entry_of(attack.name).options}
        ):
            places.setdefault((attack.federation.id, attack.role), number)
    return set(places.values())


def spec_with(name: str, iterations: int, *, starts: int = 1) -> str:
    """The spec of an attack with a number of iterations and of starts, which attacks of a known cost have not.

    Which weight of the prior suits a model cannot be known beforehand: several are raced (`gradient_matching.race`).

    >>> spec_with("inverting-gradients", 1000)
    'inverting-gradients:preset=precode-paper,iterations=1000,learning_rate=0.07,total_variations=1e-6|1e-4|1e-2|1e-1'
    >>> spec_with("first-layer", 1000), spec_with("dlg", 500, starts=2)
    ('first-layer', 'dlg:iterations=500,restarts=2')
    """
    searches = entry_of(name).cost is None
    return with_iterations(name, iterations, priors=PRIORS, starts=starts) if searches else name


def _within(planned: Sequence[PlannedAttack], budget: float, controls: Collection[str]) -> list[PlannedAttack]:
    """The same with what is over budget marked.

    Formulas come first, in a part of the budget: what one reconstructs is exact, and may settle the answer. Then
    gradient matching that ignores every defence on each federation, because the others are compared with it; then
    formulas on controls, which an answer makes needless; then the strongest of each, and so on.
    """
    places: Counter[str] = Counter()
    turns: list[tuple[int, int, int]] = []
    for number, attack in enumerate(planned):
        turns.append((_turn(attack, controls), places[attack.federation], number))
        places[attack.federation] += 1
    compared = sum(entry.status == "run" and _is_compared_with(entry) for entry in planned)
    result, spent = list(planned), 0.0
    for turn, _, number in sorted(turns):
        attack = planned[number]
        if attack.status != "run":
            continue
        expected = attack.expected_seconds or 0.0
        room = (FORMULAS_SHARE * budget if turn == 0 else budget) - spent
        if expected <= room:
            spent += expected
        elif turn < _REST and (some := _some_updates(attack, min(room, budget / compared) if turn == 1 else room)):
            result[number] = some
            spent += some.expected_seconds or 0.0
        else:
            reason = because("over-budget", expected=expected, left=max(0.0, room))
            result[number] = attack.replanned(reason, status="over_budget")
    return [
        _ended_early(before, budget) if _is_compared_with(after) and not _searched(after.federation, result) else after
        for before, after in zip(planned, result, strict=True)
    ]


def _searched(federation: str, planned: Sequence[PlannedAttack]) -> bool:
    return any(entry.federation == federation and entry.status == "run" and replays(entry.attack) for entry in planned)


def _ended_early(planned: PlannedAttack, budget: float) -> PlannedAttack:
    """A search that does not fit, for one update, until the clock ends it; over the budget where that gives nothing."""
    each = (planned.expected_seconds or 0.0) / max(1, planned.updates)
    if planned.status != "run" or each > _LEAST_OF_A_SEARCH * budget:
        reason = because("over-budget.whole", expected=planned.expected_seconds or 0.0)
        return planned if planned.status != "run" else planned.replanned(reason, status="over_budget")
    reason = because("budget-for-some.one", why=planned.why, updates=planned.updates)
    return planned.replanned(reason, updates=1, expected_seconds=each)


def _turn(planned: PlannedAttack, controls: Collection[str]) -> int:
    """When an attack is given its time: formulas, what others are compared with, formulas on controls, the rest."""
    if not replays(planned.attack):
        return 2 if planned.federation in controls else 0
    return 1 if _is_compared_with(planned) else _REST


def _is_compared_with(planned: PlannedAttack) -> bool:
    return is_compared_with(planned.attack)


def _some_updates(planned: PlannedAttack, seconds: float) -> PlannedAttack | None:
    """The attack on as many updates as there is time for; None for none."""
    if not planned.updates or not planned.expected_seconds:
        return None
    each = planned.expected_seconds / planned.updates
    count = min(planned.updates, int(seconds / each))
    reason = because("budget-for-some", why=planned.why, count=count, updates=planned.updates)
    return planned.replanned(reason, updates=count, expected_seconds=count * each) if count else None


def _total(planned: Sequence[PlannedAttack]) -> float:
    return sum(entry.expected_seconds or 0.0 for entry in planned if entry.status == "run")


def _planned(considered: _Considered, spec: str, prices: Mapping[str, Prices]) -> PlannedAttack:
    updates = len(considered.federation.targets)
    runs = considered.status == "run"
    each = None
    if runs:
        each = prices[considered.federation.id].seconds(spec, steps=1 if replays(spec) else considered.steps)
    return PlannedAttack(
        federation=considered.federation.id,
        attack=spec,
        role=considered.role,
        status=considered.status,
        reason=str(considered.reason),
        reason_codes=list(considered.reason.codes),
        unanswerable=considered.unanswerable,
        updates=updates if runs else 0,
        iterations=searches_for(spec) if runs else None,
        expected_seconds=None if each is None else each * updates,
    )


def _consider(federation: AuditedFederation, settings: AuditSettings) -> list[_Considered]:
    names = _every(federation.subject) if settings.specs is None else list(settings.specs)
    if federation.attacks is not None:
        names = [name for name in names if name in federation.attacks]
    if federation.control_of is not None:
        names = [name for name in names if not needs_defence(name) or _answers_model(name, federation)]
    observations = [federation.subject.tape.load(entry) for entry in federation.entries[:_LOOKED_AT]]
    steps = max(1, steps_behind(observations[0]) or 1) if observations[0].kind == "weights" else 1
    considered = []
    for name in names:
        role: Role = "adaptive" if answered(name, federation.subject) else "plain"
        status, reason = _status(name, federation, observations, settings)
        considered.append(
            _Considered(federation=federation, name=name, role=role, status=status, reason=reason, steps=steps)
        )
    return considered


def _every(subject: Subject) -> list[str]:
    return ranked(subject.defence, drops=bool(dropout_layers(subject.victim.model)))


def answered(attack: str, subject: Subject) -> tuple[str, ...]:
    """Parts of a federation's defence that an attack answers; none of an unknown one."""
    return answers(attack, subject.defence, drops=bool(dropout_layers(subject.victim.model)))


def _status(
    attack: str, federation: AuditedFederation, observations: Sequence[Observation], settings: AuditSettings
) -> tuple[PlanStatus, Reason]:
    knowledge, subject = settings.knowledge, federation.subject
    missing = knowledge.missing(entry_of(attack).needs)
    if missing and not (missing == [DEFENCE] and subject.defence == "none"):
        return "refused", because("withheld", kinds=", ".join(missing))
    if settings.attacks is None and (reason := _superfluous(attack, federation)):
        return "not_applicable", reason
    refusal = _refusal(attack, federation, [knowledge.of(observation, subject.defence) for observation in observations])
    if refusal is None:
        return "run", _why_run(attack, federation)
    if (
        _refusal(attack, federation, [Knowledge().of(observation, subject.defence) for observation in observations])
        is None
    ):
        return "refused", because("withheld.from-update", why=refusal)
    return "not_applicable", refusal


def _superfluous(attack: str, federation: AuditedFederation) -> Reason | None:
    """Why an attack that was not named need not be tried; None otherwise."""
    defence = federation.subject.defence
    if entry_of(attack).made_of_others:
        return because("planned-one-by-one")
    if needs_defence(attack) and not answered(attack, federation.subject) and not _answers_model(attack, federation):
        defences = entry_of(attack).inside or entry_of(attack).answers
        return because("another-defence", names=", ".join(sorted(defences)), defence=defence)
    return None


def _answers_model(attack: str, federation: AuditedFederation) -> bool:
    """Whether an attack answers dropout that the model itself has, whatever was announced as its defence."""
    return _DROPOUT in entry_of(attack).inside and bool(dropout_layers(federation.subject.victim.model))


def _refusal(attack: str, federation: AuditedFederation, observations: Sequence[Observation]) -> Reason | None:
    """Why an attack fits none of the updates, in its own words, or None when it fits one."""
    method, victim = build_attack(attack), federation.subject.victim
    reasons = []
    for observation in observations:
        try:
            reason = method.why_not(victim, observation)
        except Exception:  # the record names it when it is run
            return None
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0]


def _why_run(attack: str, federation: AuditedFederation) -> Reason:
    defence = federation.subject.defence
    if needs_defence(attack) and not answered(attack, federation.subject):
        names = dropout_layers(federation.subject.victim.model)
        return because("searches-dropout", names=", ".join(names[:3]))
    if defence == "unknown":
        return because("defence-unknown")
    return why_run(attack, defence, drops=bool(dropout_layers(federation.subject.victim.model)))
