"""Reasons to distrust a low score: flags, each from a written rule on the record (docs/flags.md).

The idea is AutoAttack's (Croce, Hein, ICML 2020, and its released checks): before a defence is believed, ask whether
the attacks were able to work at all. As long as a flag stands that says weak, no verdict says that a defence held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from attacker.audit import search_checks
from attacker.audit.control_checks import control_untrained
from attacker.audit.noise_source import from_a_seed
from attacker.audit.record import AuditRecord, Flag
from attacker.audit.view import FederationView, views
from attacker.intervals import difference_interval
from attacker.metrics import wilson_interval
from attacker.report.words import attack_name, capitalised, defence_name, joined, percent

LARGEST_SHARE = 0.06
"""Share of all images that "nothing came back" may still allow for, with 95 % confidence; 61 images are enough."""

FAILED_SHARE = 0.05
"""Share of images on which an attack may fail before its result is doubted."""

_RANDOM_DEFENCES = {"precode", "precode-reference", "cvb", "cvb-reference", "dropout"}


@dataclass(frozen=True)
class FlagKind:
    """What a flag means wherever it is raised.

    Attributes:
        phrase: What a verdict's sentence says of it.
        weak: Whether it alone forbids to say that a defence held.
    """

    phrase: str
    weak: bool = True


FLAGS: Mapping[str, FlagKind] = MappingProxyType(
    {
        "no-adaptive-attack": FlagKind("no attack that knows the whole defence gave a result"),
        "model-is-random": FlagKind("the model is random and no attack accounts for it"),
        "loss-did-not-fall": FlagKind("a search came no closer to the update"),
        "budget-edge": FlagKind("a search was still coming closer when its budget ended"),
        "single-start": FlagKind("a search had one start only"),
        "weaker-beats-stronger": FlagKind("a weaker attack did better than a stronger one"),
        "no-control": FlagKind("there is no undefended control"),
        "control-not-reconstructed": FlagKind("the attacks fail without a defence too"),
        "control-untrained": FlagKind("the undefended control is not as well trained"),
        "control-hardly-reconstructed": FlagKind("without the defence the attack works too rarely to tell"),
        "too-few-victims": FlagKind("too few images were attacked"),
        "labels-unknown": FlagKind("the attacker did not have the right labels"),
        "buffers-withheld": FlagKind("statistics that the clients normalise by are withheld"),
        "multi-step-update": FlagKind("updates sum several local steps", weak=False),
        "attack-failed": FlagKind("an attack failed"),
        "attack-left-out": FlagKind("an attack was left out for lack of time"),
        "defence-doubted": FlagKind("the updates contradict the announced defence"),
        "noise-from-a-seed": FlagKind("the noise was drawn from a seed that the server has"),
        "tape-damaged": FlagKind("the tape is damaged"),
    }
)
"""Every flag by its name in records and in docs/flags.md."""

Found = tuple[str, str, str | None]
"""Name of a flag, its sentence, and the attack that it is about."""


def flags(record: AuditRecord) -> list[Flag]:
    """The flags of every federation that is no control, in the record's order. A pure function of the record."""
    return [
        Flag(federation=view.federation.id, name=name, attack=attack, sentence=sentence, weak=FLAGS[name].weak)
        for view in views(record)
        if view.federation.control_of is None
        for check in CHECKS
        for name, sentence, attack in check(view)
    ]


def _no_adaptive_attack(view: FederationView) -> Iterator[Found]:
    if not (view.defended and view.nothing_came_back):
        return
    ran = view.of_role(adaptive=True, among=view.scored)
    parts = [part for part in view.federation.defence.split("+") if part.partition(":")[0].strip() != "none"]
    described = {one.spec: one for one in view.record.attacks}
    open_parts = [part for part in parts if not any(described[one.attack].answers_to(part) for one in ran)]
    if open_parts:
        yield (
            "no-adaptive-attack",
            f"No attack that takes {defence_name('+'.join(open_parts))} into account gave a result: an attacker who "
            "knows of it was not tried.",
            None,
        )


def _model_is_random(view: FederationView) -> Iterator[Found]:
    facts = view.federation.facts
    if facts is None or not facts.random:
        return
    parts = {part.partition(":")[0].strip() for part in view.federation.defence.split("+")}
    described = {one.spec: one for one in view.record.attacks}
    ran = view.of_role(adaptive=True, among=view.tried)
    accounted = any(described[one.attack].answers_to(part) for one in ran for part in parts & _RANDOM_DEFENCES)
    if not accounted:
        yield (
            "model-is-random",
            "The same images give another gradient each time that the model is asked, and no attack that ran takes "
            "this randomness into account: they may have failed at it alone.",
            None,
        )


def _no_control(view: FederationView) -> Iterator[Found]:
    if not (view.defended and view.nothing_came_back):
        return
    if view.control is None:
        sentence = (
            "There is no undefended run of the same model: this may be the defence's doing or the attacks' weakness."
        )
        yield "no-control", sentence, None
    elif not view.stopped:
        yield (
            "control-not-reconstructed",
            "None of the plain attacks that were tried here brought an image back from the undefended model: they were "
            "too weak to conclude anything about the defence.",
            None,
        )


def _undefended_not_reconstructed(view: FederationView) -> Iterator[Found]:
    if not view.defended and view.nothing_came_back:
        yield (
            "control-not-reconstructed",
            "Without a defence images are expected to come back, and none did: the attacks were too weak to conclude "
            "anything, about this model or about a defence on it.",
            None,
        )


def _control_hardly(view: FederationView) -> Iterator[Found]:
    pairs = view.stopped if view.nothing_came_back else []
    for here, there in pairs:
        if difference_interval((there.successes or 0, 0), (there.images, here.images))[0] > 0:
            return
    for here, there in pairs[:1]:
        yield (
            "control-hardly-reconstructed",
            f"{capitalised(attack_name(here.attack))} brought back {there.successes} of {there.images} without the "
            f"defence, so that none of {here.images} with it may be chance.",
            here.attack,
        )


def _too_few_victims(view: FederationView) -> Iterator[Found]:
    if not view.nothing_came_back:
        return
    judged = view.of_role(adaptive=True, among=view.scored) or view.scored
    most = max(one.images - one.failed for one in judged)
    high = wilson_interval(0, most)[1]
    if high > LARGEST_SHARE:
        yield (
            "too-few-victims",
            f"None of {most} image{'' if most == 1 else 's'} still allows for {percent(high)} of all images to come "
            f"back (95 % confidence); up to {percent(LARGEST_SHARE)} would be small enough, which takes 61.",
            None,
        )


def _multi_step_update(view: FederationView) -> Iterator[Found]:
    facts, one = view.federation.facts, view.federation
    steps = facts.steps if facts is not None else one.local_steps
    if (steps or 0) > 1 or (steps is None and (facts is not None or one.protocol == "fedavg")):
        count = f"{steps}" if steps else "an unknown number of"
        yield (
            "multi-step-update",
            f"An update sums {count} local steps, which makes reconstruction harder whatever the defence. What is said "
            "here holds for such updates only.",
            None,
        )


def _buffers_withheld(view: FederationView) -> Iterator[Found]:
    if view.federation.facts is not None and view.federation.facts.buffers_withheld:
        yield (
            "buffers-withheld",
            "The running statistics that clients normalise by are not on the tape, so that no replay is exact. A "
            "server that holds them does better.",
            None,
        )


def _attack_failed(view: FederationView) -> Iterator[Found]:
    for one in view.summaries:
        if one.failed > FAILED_SHARE * one.images:
            yield (
                "attack-failed",
                f"{capitalised(attack_name(one.attack))} failed or diverged on {one.failed} of {one.images} images, "
                "which count as not come back.",
                one.attack,
            )


def _attack_left_out(view: FederationView) -> Iterator[Found]:
    for one in view.record.plan:
        decisive = one.role == "adaptive" or not view.defended
        if one.federation == view.federation.id and one.status == "over_budget" and decisive:
            name = capitalised(attack_name(one.attack))
            yield "attack-left-out", f"{name} would have fitted and was left out: {one.reason}.", one.attack


def _defence_doubted(view: FederationView) -> Iterator[Found]:
    if view.federation.doubts:
        yield (
            "defence-doubted",
            "What was attacked may not be what was announced, so that this says little about "
            f"{defence_name(view.federation.defence)}: {joined(view.federation.doubts)}.",
            None,
        )


def _tape_damaged(view: FederationView) -> Iterator[Found]:
    if view.federation.tape_problems:
        first = view.federation.tape_problems[0]
        yield "tape-damaged", f"The tape is damaged, and what it lost was not attacked: {first}.", None


CHECKS: tuple[Callable[[FederationView], Iterator[Found]], ...] = (
    _no_adaptive_attack,
    _model_is_random,
    search_checks.loss_did_not_fall,
    search_checks.budget_edge,
    search_checks.single_start,
    search_checks.weaker_beats_stronger,
    _no_control,
    _undefended_not_reconstructed,
    _control_hardly,
    control_untrained,
    _too_few_victims,
    search_checks.labels_unknown,
    _buffers_withheld,
    _multi_step_update,
    _attack_failed,
    _attack_left_out,
    _defence_doubted,
    from_a_seed,
    _tape_damaged,
)
"""Every rule, in the order of its flags."""
