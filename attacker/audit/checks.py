"""Reasons to distrust a low score: flags, each from a written rule on the record (docs/flags.md).

The idea is AutoAttack's (Croce, Hein, ICML 2020, and its released checks): before a defence is believed, ask whether
the attacks were able to work at all. As long as a flag stands that says weak, no verdict says that a defence held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from attacker.attacks.registry import attack_title
from attacker.audit import search_checks
from attacker.audit.control_checks import control_untrained
from attacker.audit.counting import NEAR
from attacker.audit.noise_source import from_a_seed
from attacker.audit.record import AuditRecord, Flag, parts_of
from attacker.audit.view import WORKS, FederationView, views
from attacker.metrics import wilson_interval
from attacker.report.words import capitalised, counted, defence_name, figure, joined, percent

LARGEST_SHARE = 0.06
"""Share of all updates that "nothing came back" may still allow for, with 95 % confidence; 61 updates are enough."""

FAILED_SHARE = 0.05
"""Share of images on which an attack may fail before its result is doubted."""

_LOSSES = {"loss", "loss-assumed-bce", "loss-on-logits-alone"}
"""Codes of assumptions about the loss, as in docs/assumptions.md."""

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
        "search-cut": FlagKind("the budget ended a search before its time"),
        "single-start": FlagKind("a search had one start only"),
        "weaker-beats-stronger": FlagKind("a weaker attack did better than a stronger one"),
        "no-control": FlagKind("there is no undefended control"),
        "control-not-reconstructed": FlagKind("the attacks fail without a defence too"),
        "control-untrained": FlagKind("the undefended control is not as well trained"),
        "control-hardly-reconstructed": FlagKind("without the defence the attack works too rarely to tell"),
        "too-few-victims": FlagKind("too few images were attacked"),
        "near-miss": FlagKind("images came close to what counts as come back"),
        "victims-left-out": FlagKind("some updates were not attacked at all"),
        "loss-assumed": FlagKind("the loss that clients minimise is assumed"),
        "labels-unknown": FlagKind("the attacker did not have the right labels"),
        "buffers-withheld": FlagKind("statistics that the clients normalise by are withheld"),
        "multi-step-update": FlagKind("updates sum several local steps", weak=False),
        "attack-failed": FlagKind("an attack failed"),
        "attack-left-out": FlagKind("an attack was left out for lack of time"),
        "defence-doubted": FlagKind("the updates contradict the announced defence"),
        "not-announced": FlagKind("the updates show something that was not announced", weak=False),
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
    if not (view.defended and view.nothing_came_back) or view.whole:
        return
    whole = defence_name(view.federation.defence)
    described = {one.spec: one for one in view.record.attacks}
    ran = view.of_role(adaptive=True, among=view.scored)
    known = {
        one.attack: sorted(part for part in parts_of(view.federation.defence) if described[one.attack].answers_to(part))
        for one in ran
    }
    halves = sorted({f"{defence_name('+'.join(own))} by {attack_title(spec)}" for spec, own in known.items()})
    if halves:
        sentence = (
            f"No attack that gave a result knows the whole defence, which is {whole}. A part of it is taken into "
            f"account each time: {joined(halves)}. Attacks that know a part each do not make "
            "up for one that knows all of it."
        )
    else:
        sentence = (
            f"No attack that takes {whole} into account gave a result: an attacker who knows of it was not tried."
        )
    yield "no-adaptive-attack", sentence, None


def _model_is_random(view: FederationView) -> Iterator[Found]:
    facts = view.federation.facts
    if facts is None or not facts.random:
        return
    parts = parts_of(view.federation.defence) & _RANDOM_DEFENCES
    described = {one.spec: one for one in view.record.attacks}
    ran = view.of_role(adaptive=True, among=view.tried)
    accounted = any(all(described[one.attack].answers_to(part) for part in parts) for one in ran)
    if not (parts and accounted):
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
    if not view.nothing_came_back or not view.stopped or view.convincing:
        return
    here, there = view.stopped[0]
    rare = not view.works_without(here.attack)
    yield (
        "control-hardly-reconstructed",
        f"{capitalised(attack_title(here.attack))} brought back {there.successes} of {counted(there.images, 'image')} "
        f"without the defence{f', fewer than {percent(WORKS)}' if rare else ''}, so that none of {here.images} with it "
        f"may be {'the weakness of the attack' if rare else 'chance'}.",
        here.attack,
    )


def _too_few_victims(view: FederationView) -> Iterator[Found]:
    if not view.nothing_came_back:
        return
    judged = view.whole or view.of_role(adaptive=True, among=view.scored) or view.scored
    independent, images = max((view.independent(one.attack), one.images - one.failed) for one in judged)
    high = wilson_interval(0, independent)[1]
    if high > LARGEST_SHARE:
        yield (
            "too-few-victims",
            f"None of {counted(images, 'image')} came back{_worth(view, independent, images)}, which leaves room for "
            f"up to {percent(high)} of all updates to give images away (95 % confidence). "
            f"Up to {percent(LARGEST_SHARE)} would be small enough, which takes 61 updates with an image of their own.",
            None,
        )


def _worth(view: FederationView, independent: int, images: int) -> str:
    """Why so many images are fewer trials, as a clause with a comma before it; empty where they are not."""
    if independent == images:
        return ""
    updates, clients = view.attacked
    from_where = f"{counted(updates, 'update')} of {counted(clients, 'client')}"
    trial = "trial" if independent == 1 else "trials"
    return f", and they count as {independent} independent {trial} (they come from {from_where})"


def _near_miss(view: FederationView) -> Iterator[Found]:
    near = view.near_misses
    if not view.nothing_came_back or not near:
        return
    names = joined(sorted({attack_title(row.attack) for row in near}))
    yield (
        "near-miss",
        f"{capitalised(names)} came close on {len(near)} of {counted(view.union.images, 'image')}: up to SSIM "
        f"{figure(near[0].ssim, 3)}, clearly beyond every guess, and less than {NEAR:g} below what counts as come "
        "back. A little more time or a better start may do.",
        None,
    )


def _victims_left_out(view: FederationView) -> Iterator[Found]:
    missing, attacked = view.out_of_reach, view.union.attacked
    if view.compared and missing > FAILED_SHARE * (missing + attacked):
        yield (
            "victims-left-out",
            f"On {missing} of {counted(missing + attacked, 'image')} no attack was tried, because none fits or there "
            "was no time: nothing is known about them.",
            None,
        )


def _loss_assumed(view: FederationView) -> Iterator[Found]:
    assumed = [one for one in view.federation.assumptions if one.code in _LOSSES]
    replays = any(row.starts or row.starting_loss is not None for one in view.tried for row in view.rows(one.attack))
    if assumed and replays and view.union.back < max(1, view.union.images):
        yield (
            "loss-assumed",
            f"{' '.join(sorted({one.sentence for one in assumed}))} A search that replays another loss than theirs "
            "looks for images that do not exist.",
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
                f"{capitalised(attack_title(one.attack))} failed or diverged on {one.failed} of {one.images} images, "
                "which count as not come back.",
                one.attack,
            )


def _attack_left_out(view: FederationView) -> Iterator[Found]:
    for one in view.record.plan:
        decisive = one.role == "adaptive" or not view.defended
        if one.federation == view.federation.id and one.status == "over_budget" and decisive:
            name = capitalised(attack_title(one.attack))
            yield "attack-left-out", f"{name} would have fitted and was left out: {one.reason}.", one.attack


def _defence_doubted(view: FederationView) -> Iterator[Found]:
    if view.federation.doubts:
        yield (
            "defence-doubted",
            "What was attacked may not be what was announced, so that this says little about "
            f"{defence_name(view.federation.defence)}: {joined(view.federation.doubts)}.",
            None,
        )


def _not_announced(view: FederationView) -> Iterator[Found]:
    if view.federation.not_announced:
        yield (
            "not-announced",
            f"An honest client can show what was not announced here: {joined(view.federation.not_announced)}.",
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
    search_checks.search_cut,
    search_checks.single_start,
    search_checks.weaker_beats_stronger,
    _no_control,
    _undefended_not_reconstructed,
    _control_hardly,
    control_untrained,
    _too_few_victims,
    _near_miss,
    _victims_left_out,
    _loss_assumed,
    search_checks.labels_unknown,
    _buffers_withheld,
    _multi_step_update,
    _attack_failed,
    _attack_left_out,
    _defence_doubted,
    _not_announced,
    from_a_seed,
    _tape_damaged,
)
"""Every rule, in the order of its flags."""
