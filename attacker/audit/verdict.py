"""What an audit allows to be said about a federation, by written rules (docs/flags.md). Pure functions of the record.

One rule decides for each federation, the first that fits:

1. No attack gave a result: *not known*.
2. No similarity could be measured, because the truth is not there: *not known*; the sentence says what the updates
   confirm by themselves.
3. The average training image alone counts as come back on every victim, and no attack brought one back nearer
   to the truth, so that the measure cannot tell: *not known*.
4. Images came back without a defence, or by an attack that ignores the defence: *leaks*.
5. Images came back, but only by attacks that know the defence: *leaks to an adaptive attacker*.
6. Nothing came back, with a defence; a plain attack that was stopped here brings images back from the undefended
   control; an attack that knows the defence ran; and no flag says weak: *held against everything tried*.
7. Nothing came back otherwise: *not shown to leak*, with the weak evidence named.

No rule ever calls a federation safe: an audit can show a leak, and cannot show that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attacker.audit.checks import FLAGS, flags
from attacker.audit.confirmed import confirmed
from attacker.audit.record import (
    AttackSummary,
    AuditRecord,
    FederationSummary,
    Flag,
    ImageResult,
    VerdictEntry,
    VerdictName,
)
from attacker.audit.view import FederationView, views
from attacker.report.words import (
    attack_name,
    capitalised,
    dataset_name,
    defence_name,
    distance,
    interval,
    joined,
    model_name,
    number_word,
)

_MOST_LABELS = 12
_UNDEFENDED = FLAGS["control-not-reconstructed"].phrase


def verdicts(record: AuditRecord, found: Sequence[Flag] | None = None) -> list[VerdictEntry]:
    """One verdict for each federation, controls included, in the record's order.

    Args:
        record: The audit; its own flags and verdicts do not count.
        found: Its flags; None works them out.
    """
    raised = flags(record) if found is None else found
    return [_verdict(view, [one for one in raised if one.federation == view.federation.id]) for view in views(record)]


def title_of(federation: FederationSummary) -> str:
    """A federation's name for people: model, defence and images.

    Two federations of one page can differ in any of the three.
    """
    images = f" on {dataset_name(federation.dataset)}" if federation.dataset else ""
    control = ", the control" if federation.control_of else ""
    return f"{model_name(federation.model)} with {defence_name(federation.defence)}{images}{control}"


def _verdict(view: FederationView, own: Sequence[Flag]) -> VerdictEntry:
    name, sentence = _decide(view, own)
    cautions = [*_assumed(view), *(one.sentence for one in own)]
    if name != "not known":
        cautions += _average_image(view)
    return VerdictEntry(federation=view.federation.id, verdict=name, sentence=sentence, cautions=cautions)


def _decide(view: FederationView, own: Sequence[Flag]) -> tuple[VerdictName, str]:
    title = title_of(view.federation)
    if not view.tried:
        return "not known", _not_attacked(title, view.summaries)
    if not view.scored:
        return "not known", f"{title}: {_without_truth(view)}"
    if view.cannot_be_told:
        return "not known", (
            f"{title}: nothing can be concluded. These images are so alike that their average, which needs no update, "
            f"already reaches SSIM >= {view.record.success_threshold:g} on every one of them."
        )
    if not view.nothing_came_back:
        return _leak(view, own)
    weak = _phrases(one for one in own if one.weak)
    informed = view.of_role(adaptive=True, among=view.scored)
    if view.defended and view.stopped and informed and not weak:
        return "held against everything tried", _held(view, informed) + _aside(own)
    weak = weak or [_UNDEFENDED]
    return "not shown to leak", (
        f"{title}: not shown to leak (weak evidence: {'; '.join(weak)}). {_nothing(view)}.{_aside(own)}"
    )


def _assumed(view: FederationView) -> list[str]:
    """That something was assumed, in one sentence; the report has a section about it."""
    codes = [one.code for one in view.federation.assumptions]
    if not codes:
        return []
    one = len(codes) == 1
    return [
        f"{capitalised(number_word(len(codes)))} {'thing was' if one else 'things were'} assumed that nobody said "
        f"({', '.join(codes)}); see what was assumed, and what would show it wrong."
    ]


def _without_truth(view: FederationView) -> str:
    """What can be said where no true image is known."""
    sure = confirmed(view.all_rows)
    images = len({row.victim_id for row in view.all_rows})
    unknown = "without the true images no similarity and no success rate can be given."
    if not sure:
        return (
            f"whether images came back is not known; {unknown}{_nearest(view)}{_labels(view.all_rows)} "
            "Look at the pictures: they are all there is to judge by."
        )
    names = joined([attack_name(spec) for spec in dict.fromkeys(row.attack for row in sure.values())])
    it, its = ("it", "its") if len(sure) == 1 else ("them", "their")
    return (
        f"{unknown} The update itself confirms {len(sure)} of {images} image{'' if images == 1 else 's'}: "
        f"{names} found {it} by an exact formula, and {its} gradient, computed again, is the one that was sent."
        f"{_labels(sure.values())} Look at the pictures."
    )


def _nearest(view: FederationView) -> str:
    """How near the best search came to the updates, as a sentence with a space before it."""
    fell = [
        (row.matching_loss / row.starting_loss, row)
        for row in view.all_rows
        if row.matching_loss is not None and row.starting_loss
    ]
    if not fell:
        return ""
    _, best = min(fell, key=lambda pair: pair[0])
    return (
        f" {capitalised(attack_name(best.attack))} came nearest to an update: its matching loss fell from "
        f"{distance(best.starting_loss)} to {distance(best.matching_loss)}, which different images may have."
    )


def _labels(rows: Iterable[ImageResult]) -> str:
    """The classes that were read from the updates, as a sentence with a space before it."""
    found = {row.victim_id: row.recovered_label for row in rows if row.recovered_label is not None}
    if not found or len(found) > _MOST_LABELS:
        return ""
    classes = [str(one) for one in found.values()]
    return f" Read from the updates: {'class' if len(classes) == 1 else 'classes'} {joined(classes)}."


def _phrases(own: Iterable[Flag]) -> list[str]:
    return list(dict.fromkeys(FLAGS[one.name].phrase for one in own if one.name in FLAGS))


def _aside(own: Sequence[Flag]) -> str:
    """What else limits the finding, as a sentence with a space before it."""
    noted = _phrases(one for one in own if not one.weak)
    return f" Mind that {joined(noted)}." if noted else ""


def _not_attacked(title: str, own: Sequence[AttackSummary]) -> str:
    reasons = "; ".join(
        f"{attack_name(one.attack)}: {one.reasons[0] if one.reasons else 'it gave no result'}" for one in own
    )
    return f"{title}: no attack gave a result, so nothing is known about it ({reasons or 'none was asked for'})."


def _share(one: AttackSummary) -> str:
    return f"{one.successes} of {one.images} image{'' if one.images == 1 else 's'}"


def _certainty(one: AttackSummary) -> str:
    low, high = one.interval or (0.0, 1.0)
    return f"95 % interval {interval(low, high)}"


def _leak(view: FederationView, own: Sequence[Flag]) -> tuple[VerdictName, str]:
    defence = capitalised(defence_name(view.federation.defence))
    plain = [one for one in view.of_role(adaptive=False, among=view.scored) if one.successes]
    best = max(plain or view.scored, key=lambda one: (one.success_rate or 0.0, one.images))
    model = model_name(view.federation.model)
    came = f"{_share(best)} came back by {attack_name(best.attack)}"
    measure = f"(SSIM >= {view.record.success_threshold:g}; {_certainty(best)})"
    if not view.defended:
        text = f"Undefended {model} leaks: {came} {measure}."
    elif plain:
        text = f"{defence} does not stop the leak on {model}: {came}, which ignores it {measure}."
    else:
        text = f"{model} with {defence_name(view.federation.defence)} leaks to an adaptive attacker: {came} {measure}."
    if best.attack.partition(":")[0] == "first-layer":
        behind = f", and {defence} sits behind that layer" if "precode" in view.federation.defence else ""
        text += f" The gradient of the first layer contains the image exactly{behind}."
    text += _would_have_suggested(view)
    weak = _phrases(one for one in own if one.weak)
    if weak and (best.success_rate or 0.0) < 1:
        text += f" The share may be higher still: {'; '.join(weak)}."
    return "leaks" if plain else "leaks to an adaptive attacker", text + _aside(own)


def _would_have_suggested(view: FederationView) -> str:
    """Which attacks alone would have made the defence look good."""
    failed = [one for one in view.scored if one.successes == 0]
    if not failed or not view.defended:
        return ""
    names = capitalised(joined([attack_name(one.attack) for one in failed]))
    return f" {names} alone brought back {_share(failed[0])} and would have suggested that the defence works."


def _nothing(view: FederationView) -> str:
    """What did not come back, and what did without the defence."""
    if view.stopped:
        here, there = view.stopped[0]
        without = f", against {_share(there)} without the defence"
    else:
        here, without = max(view.scored, key=lambda one: one.images), ""
    return f"{_share(here)} came back by {attack_name(here.attack)} ({_certainty(here)}){without}"


def _held(view: FederationView, informed: Sequence[AttackSummary]) -> str:
    names = capitalised(joined([attack_name(one.attack) for one in informed]))
    know = "knows" if len(informed) == 1 else "know"
    return (
        f"{capitalised(defence_name(view.federation.defence))} held against everything tried on "
        f"{model_name(view.federation.model)}: {_nothing(view)}. {names}, which {know} the defence, brought none back "
        f"either ({_certainty(max(informed, key=lambda one: one.images))}). A stronger attack still might."
    )


def _average_image(view: FederationView) -> list[str]:
    known = all(one.guess_successes is not None for one in view.scored)
    flat = max(((one.guess_successes if known else one.baseline_successes) or 0 for one in view.scored), default=0)
    if not flat:
        return []
    guess = "The best guess without an update" if known else "The average training image alone"
    return [
        f"{guess} reaches SSIM >= {view.record.success_threshold:g} on {flat} of these images, so reaching it there "
        "does not show that an update leaked. Images that an attack brought back nearer "
        f"to the truth than that {'guess' if known else 'average'}: {view.nearer}."
    ]
