"""Reasons to distrust a low score: flags, each from a written rule on the record (docs/reference/flags.md).

The idea is AutoAttack's (Croce, Hein, ICML 2020, and its released checks): before a defence is believed, ask whether
the attacks were able to work at all. As long as a flag stands that says weak, no verdict says that a defence held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attacker.attacks.registry import attack_title
from attacker.audit.inputs.noise_source import from_a_seed
from attacker.audit.record.counting import NEAR
from attacker.audit.record.flag_sentences import FLAGS, Found, raised_flag
from attacker.audit.record.schema import AuditRecord, Flag, parts_of
from attacker.audit.record.trials import share_interval
from attacker.audit.record.view import WORKS, FederationView, views
from attacker.audit.verdict import privacy_flags, search_flags
from attacker.audit.verdict.control_flags import control_untrained
from attacker.audit.verdict.group_flags import uneven_disclosure
from attacker.audit.verdict.identified import images_identified, true_images_first
from attacker.wording import capitalised, counted, defence_name, figure, joined, percent

LARGEST_SHARE = 0.06
"""Share of all updates that may still leak where nothing was reconstructed (95 % confidence); 60 updates are enough."""

FAILED_SHARE = 0.05
"""Share of images on which an attack may fail before its result is doubted."""

_LOSSES = {"loss", "loss-assumed-bce", "loss-on-logits-alone"}
"""Codes of assumptions about the loss, as in docs/reference/assumptions.md."""

_RANDOM_DEFENCES = {"precode", "precode-reference", "cvb", "cvb-reference", "dropout"}


def flags(record: AuditRecord) -> list[Flag]:
    """The flags of every federation that is no control, in the record's order. A pure function of the record."""
    return [
        Flag(federation=view.federation.id, name=name, attack=attack, sentence=sentence, weak=FLAGS[name].weak)
        for view in views(record)
        if view.federation.control_of is None
        for check in CHECKS
        if not (view.settled and check in _OF_SEARCHES)
        for name, sentence, attack in check(view)
    ]


def _no_adaptive_attack(view: FederationView) -> Iterator[Found]:
    if not (view.defended and view.nothing_reconstructed) or view.whole:
        return
    whole = defence_name(view.federation.defence)
    described = {attack.spec: attack for attack in view.record.attacks}
    ran = view.of_role(adaptive=True, among=view.scored)
    known = {
        summary.attack: sorted(
            part for part in parts_of(view.federation.defence) if described[summary.attack].answers_to(part)
        )
        for summary in ran
    }
    halves = sorted({f"{defence_name('+'.join(parts))} by {attack_title(spec)}" for spec, parts in known.items()})
    if halves:
        yield raised_flag("no-adaptive-attack.halves", defence=whole, halves=joined(halves))
    else:
        yield raised_flag("no-adaptive-attack", defence=whole)


def _model_is_random(view: FederationView) -> Iterator[Found]:
    facts = view.federation.facts
    if facts is None or not facts.random:
        return
    parts = parts_of(view.federation.defence) & _RANDOM_DEFENCES
    described = {attack.spec: attack for attack in view.record.attacks}
    # A formula that randomness cannot touch accounts for it as well as an attack that knows of it.
    accounted = any(all(described[summary.attack].answers_to(part) for part in parts) for summary in view.tried)
    if not (parts and accounted):
        yield raised_flag("model-is-random")


def _no_control(view: FederationView) -> Iterator[Found]:
    if not (view.defended and view.nothing_reconstructed):
        return
    if view.control is None:
        yield raised_flag("no-control")
    elif not view.stopped:
        yield raised_flag("control-not-reconstructed")


def _undefended_not_reconstructed(view: FederationView) -> Iterator[Found]:
    if not view.defended and view.nothing_reconstructed:
        yield raised_flag("control-not-reconstructed.undefended")


def _control_hardly(view: FederationView) -> Iterator[Found]:
    if not view.nothing_reconstructed or not view.stopped or view.convincing:
        return
    here, there = view.stopped[0]
    works = view.works_without(here.attack)
    yield raised_flag(
        "control-hardly-reconstructed" if works else "control-hardly-reconstructed.rare",
        here.attack,
        attack=capitalised(attack_title(here.attack)),
        back=there.successes,
        images=counted(there.images, "image"),
        here=here.images,
        least=percent(WORKS),
    )


def _too_few_victims(view: FederationView) -> Iterator[Found]:
    if not view.nothing_reconstructed:
        return
    judged = view.whole or view.of_role(adaptive=True, among=view.scored) or view.scored
    independent, images = max((view.independent(summary.attack), summary.images - summary.failed) for summary in judged)
    high = share_interval(0, independent, independent)[1]
    if high > LARGEST_SHARE:
        yield raised_flag(
            "too-few-victims",
            images=counted(images, "image"),
            worth=_worth(view, independent, images),
            share=percent(high),
            enough=percent(LARGEST_SHARE),
        )


def _worth(view: FederationView, independent: int, images: int) -> str:
    """Why this many images are fewer trials, as a clause with a comma before it; empty where they are not."""
    if independent == images:
        return ""
    updates, clients = view.attacked
    from_where = f"{counted(updates, 'update')} of {counted(clients, 'client')}"
    trial = "trial" if independent == 1 else "trials"
    return f", and they count as {independent} independent {trial} (they come from {from_where})"


def _near_miss(view: FederationView) -> Iterator[Found]:
    near = view.near_misses
    if not view.nothing_reconstructed or not near:
        return
    names = joined(sorted({attack_title(row.attack) for row in near}))
    yield raised_flag(
        "near-miss",
        attacks=capitalised(names),
        near=len(near),
        images=counted(view.union.images, "image"),
        ssim=figure(near[0].ssim, 3),
        least=NEAR,
    )


def _victims_left_out(view: FederationView) -> Iterator[Found]:
    missing, attacked = view.out_of_reach, view.union.attacked
    if view.compared and missing > FAILED_SHARE * (missing + attacked):
        yield raised_flag("victims-left-out", missing=missing, images=counted(missing + attacked, "image"))


def _loss_assumed(view: FederationView) -> Iterator[Found]:
    assumed = [assumption for assumption in view.federation.assumptions if assumption.code in _LOSSES]
    replays = any(
        row.starts or row.starting_loss is not None for summary in view.tried for row in view.rows(summary.attack)
    )
    if assumed and replays and view.union.back < max(1, view.union.images):
        yield raised_flag("loss-assumed", assumed=" ".join(sorted({assumption.sentence for assumption in assumed})))


def _multi_step_update(view: FederationView) -> Iterator[Found]:
    facts, federation = view.federation.facts, view.federation
    steps = facts.steps if facts is not None else federation.local_steps
    if (steps or 0) > 1 or (steps is None and (facts is not None or federation.protocol == "fedavg")):
        yield raised_flag("multi-step-update", steps=steps or "an unknown number of")


def _buffers_withheld(view: FederationView) -> Iterator[Found]:
    if view.federation.facts is not None and view.federation.facts.buffers_withheld:
        yield raised_flag("buffers-withheld")


def _attack_failed(view: FederationView) -> Iterator[Found]:
    for summary in view.summaries:
        if summary.failed > FAILED_SHARE * summary.images:
            name = capitalised(attack_title(summary.attack))
            yield raised_flag(
                "attack-failed", summary.attack, attack=name, failed=summary.failed, images=summary.images
            )


def _attack_left_out(view: FederationView) -> Iterator[Found]:
    for planned in view.record.plan:
        decisive = planned.role == "adaptive" or not view.defended
        if planned.federation == view.federation.id and planned.status == "over_budget" and decisive:
            name = capitalised(attack_title(planned.attack))
            yield raised_flag("attack-left-out", planned.attack, attack=name, why=planned.reason)


def _defence_doubted(view: FederationView) -> Iterator[Found]:
    if view.federation.doubts:
        defence = defence_name(view.federation.defence)
        yield raised_flag("defence-doubted", defence=defence, doubts=joined(view.federation.doubts))


def _not_announced(view: FederationView) -> Iterator[Found]:
    if view.federation.not_announced:
        yield raised_flag("not-announced", sightings=joined(view.federation.not_announced))


def _tape_damaged(view: FederationView) -> Iterator[Found]:
    if view.federation.tape_problems:
        yield raised_flag("tape-damaged", problem=view.federation.tape_problems[0])


CHECKS: tuple[Callable[[FederationView], Iterator[Found]], ...] = (
    _no_adaptive_attack,
    _model_is_random,
    search_flags.loss_did_not_fall,
    search_flags.budget_edge,
    search_flags.search_cut,
    search_flags.single_start,
    search_flags.weaker_beats_stronger,
    _no_control,
    _undefended_not_reconstructed,
    _control_hardly,
    control_untrained,
    _too_few_victims,
    _near_miss,
    images_identified,
    true_images_first,
    _victims_left_out,
    _loss_assumed,
    search_flags.labels_unknown,
    _buffers_withheld,
    _multi_step_update,
    _attack_failed,
    _attack_left_out,
    _defence_doubted,
    _not_announced,
    from_a_seed,
    privacy_flags.above_the_bound,
    privacy_flags.claim_refuted,
    privacy_flags.canaries_missing,
    privacy_flags.canaries_present,
    uneven_disclosure,
    _tape_damaged,
)
"""Every rule, in the order of its flags."""

_OF_SEARCHES = frozenset(
    {
        search_flags.loss_did_not_fall,
        search_flags.budget_edge,
        search_flags.search_cut,
        search_flags.single_start,
        search_flags.weaker_beats_stronger,
        search_flags.labels_unknown,
    }
)
"""Rules that doubt searches: where formulas reconstructed every image, no score is low for a search's weakness."""
