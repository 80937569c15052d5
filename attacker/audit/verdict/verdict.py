"""Verdict on a federation, by written rules (docs/reference/flags.md).

Pure functions of the record.

One rule decides for each federation, the first that fits:

1. No attack gave a result: *not known*.
2. No similarity could be measured, because the truth is not there: *not known*; the sentence says what the updates
   confirm by themselves.
3. Where none was reconstructed: one attack names images, by more than chance (`attacker.audit.record.naming`): *leaks
   in part*. The place among candidates tells images apart where a guess is as similar as an attack.
4. A guess that needs no update alone reaches what counts on every victim, and no attack reconstructed one nearer to the
   truth than that by the margin, so that the measure cannot tell: *not known*.
5. Images were reconstructed without a defence, or by an attack that ignores the defence: *leaks*.
6. Images were reconstructed, but only by attacks that know the defence: *leaks to an adaptive attacker*.
7. No image counts as reconstructed, and the results of one attack are nearer to the truth than every guess, by
   more than chance and on average by SSIM 0.1: *leaks in part*.
8. Nothing was reconstructed, with a defence; a plain attack that was stopped here reconstructs half of the undefended
   control or more; one attack by itself knows the whole defence and gave results; no flag says weak; and no features
   of images are known: *held against everything tried*.
9. Nothing was reconstructed otherwise: *not shown to leak*, with the weak evidence named.

The number that a verdict gives is that of all attacks together: an image counts if any attack reconstructed it.

No rule ever calls a federation safe: an audit can show a leak, and cannot show that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attacker.attacks.registry import attack_title
from attacker.audit.record.confirmed import confirmed
from attacker.audit.record.flag_sentences import FLAGS
from attacker.audit.record.naming import Identified, identified_in
from attacker.audit.record.schema import (
    AttackSummary,
    AuditRecord,
    FederationSummary,
    Flag,
    HeadReading,
    ImageResult,
    UpdateReading,
    VerdictEntry,
    VerdictName,
    parts_of,
)
from attacker.audit.record.view import FederationView, Lead, views
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.identified import named_text, plain_too
from attacker.audit.verdict.labels import first_words
from attacker.audit.verdict.lines import lines
from attacker.wording import (
    capitalised,
    count,
    counted,
    dataset_name,
    defence_name,
    distance,
    figure,
    interval,
    joined,
    model_name,
    number_word,
    was,
)

_MOST_LABELS = 12
_UNDEFENDED = FLAGS["control-not-reconstructed"].phrase


def verdicts(record: AuditRecord, known_flags: Sequence[Flag] | None = None) -> list[VerdictEntry]:
    """One verdict for each federation, controls included, in the record's order.

    Args:
        record: The audit; its own flags and verdicts do not count.
        known_flags: Its flags; None works them out.
    """
    raised = flags(record) if known_flags is None else known_flags
    return [
        _verdict(view, [flag for flag in raised if flag.federation == view.federation.id]) for view in views(record)
    ]


def title_of(federation: FederationSummary) -> str:
    """A federation's name for people: model, defence and images.

    Two federations of one page can differ in any of the three.
    """
    images = f" on {dataset_name(federation.dataset)}" if federation.dataset else ""
    control = ", the control" if federation.control_of else ""
    return f"{model_name(federation.model)} with {defence_name(federation.defence)}{images}{control}"


def _verdict(view: FederationView, raised: Sequence[Flag]) -> VerdictEntry:
    name, sentence = _decide(view, raised)
    if disclosed := first_words(view, name):
        title = title_of(view.federation)
        images = sentence.removeprefix(f"{title}: ")
        sentence = f"{title}: {disclosed} {images if images == sentence else f'As to images: {images}'}"
    cautions = [*_assumed(view), *(flag.sentence for flag in raised)]
    if name != "not known":
        said = any(flag.name == "too-few-victims" for flag in raised)  # with the same reason
        cautions += [*([] if said else _together(view)), *_guesses(view)]
    cautions += _read(view)
    return VerdictEntry(
        federation=view.federation.id,
        verdict=name,
        sentence=sentence,
        cautions=cautions,
        lines=lines(view, name, raised),
    )


def _decide(view: FederationView, own: Sequence[Flag]) -> tuple[VerdictName, str]:
    title = title_of(view.federation)
    if not view.tried:
        return "not known", _unanswerable(view, title) or _not_attacked(view, title, view.summaries)
    if not view.scored:
        return "not known", f"{title}: {_without_truth(view)}"
    weak = [*_phrases(flag for flag in own if flag.weak), *_features_known(view)]
    found = identified_in(view)
    if view.nothing_reconstructed and found is not None and found.naming:
        return "leaks in part", _named(view, found, weak) + _aside(_but_named(own))
    if view.cannot_be_told:
        return "not known", (
            f"{title}: nothing can be concluded. These images are so easily guessed that a guess without any update, "
            f"such as their average, already reaches SSIM >= {view.record.success_threshold:g} on every one of them."
        )
    if not view.nothing_reconstructed:
        return _leak(view, own)
    if view.lead is not None:
        return "leaks in part", _in_part(view, view.lead, weak) + _aside(own)
    # The rule stands by itself, even where somebody lost the flags.
    if view.defended and view.convincing and view.whole and not view.near_misses and not weak:
        return "held against everything tried", _held(view) + _aside(own)
    weak = weak or [_UNDEFENDED]
    return "not shown to leak", (
        f"{title}: not shown to leak (weak evidence: {'; '.join(weak)}). {_nothing(view)}.{_close(view)}{_aside(own)}"
    )


def _assumed(view: FederationView) -> list[str]:
    """That something was assumed, in one sentence; the report has a section about it."""
    codes = [assumption.code for assumption in view.federation.assumptions]
    if not codes:
        return []
    single = len(codes) == 1
    return [
        f"{capitalised(number_word(len(codes)))} {'fact is' if single else 'facts are'} assumed, because nobody "
        f"announced {'it' if single else 'them'} ({', '.join(codes)}); see what was assumed, and what would show it "
        "wrong."
    ]


def _without_truth(view: FederationView) -> str:
    """What can be said where no true image is known."""
    sure = confirmed(view.all_rows)
    images = len({row.victim_id for row in view.all_rows})
    unknown = "without the true images no similarity and no success rate can be given."
    if not sure:
        return (
            f"whether images were reconstructed is not known; {unknown}{_nearest(view)}{_labels(view.all_rows)} "
            "Look at the pictures: there is no other evidence."
        )
    names = joined([attack_title(spec) for spec in dict.fromkeys(row.attack for row in sure.values())])
    it, its = ("it", "its") if len(sure) == 1 else ("them", "their")
    return (
        f"{unknown} The update itself confirms {len(sure)} of {images} image{'' if images == 1 else 's'}: "
        f"{names} found {it} by an exact formula. Computed again, {its} gradient is the one that was sent."
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
        f" {capitalised(attack_title(best.attack))} came nearest to an update: its matching loss fell from "
        f"{distance(best.starting_loss)} to {distance(best.matching_loss)}, which different images may have."
    )


def _labels(rows: Iterable[ImageResult]) -> str:
    """The classes that were read from the updates, as a sentence with a space before it."""
    labels = {row.victim_id: row.recovered_label for row in rows if row.recovered_label is not None}
    if not labels or len(labels) > _MOST_LABELS:
        return ""
    classes = [str(label) for label in labels.values()]
    return f" Read from the updates: {'class' if len(classes) == 1 else 'classes'} {joined(classes)}."


def _phrases(raised: Iterable[Flag]) -> list[str]:
    return list(dict.fromkeys(FLAGS[flag.name].phrase for flag in raised if flag.name in FLAGS))


def _aside(raised: Sequence[Flag]) -> str:
    """What else limits the finding, as a sentence with a space before it."""
    noted = _phrases(flag for flag in raised if not flag.weak)
    return f" Mind that {joined(noted)}." if noted else ""


def _unanswerable(view: FederationView, title: str) -> str:
    """That no search can answer the updates in the time; empty where one can."""
    unanswerable = (
        planned for planned in view.record.plan if planned.federation == view.federation.id and planned.unanswerable
    )
    reason = next((planned.reason for planned in unanswerable), "")
    return f"{title}: nothing is known about it. {reason}" if reason else ""


def _read(view: FederationView) -> list[str]:
    """What was read from updates that no search can answer."""
    facts = view.federation.facts
    if facts is None:
        return []
    return [*map(reading_text, facts.readings), *map(head_text, facts.head_readings)]


def _features_known(view: FederationView) -> list[str]:
    """That features are known although no image was reconstructed, so that no defence held; empty where none are."""
    facts = view.federation.facts
    known = 0 if facts is None else max((reading.known for reading in facts.head_readings), default=0)
    return ["images' features are known exactly"] if known else []


def head_text(reading: HeadReading) -> str:
    """What the update of a head alone says of each image, in a sentence."""
    labels = f", with the classes of {reading.labels}" if reading.labels else ""
    named = (
        f" They are nearest to their own image for {reading.identified} of {reading.images}, among "
        f"{counted(reading.candidates, 'true image')}. Features name an image to whoever has it, and show none by "
        "themselves."
        if reading.candidates
        else ""
    )
    return (
        f"Read from the update of round {reading.round}, client {reading.node}, without a search for images. Known to "
        f"1 %: the input of the layer {reading.layer!r} for {reading.known} of {counted(reading.images, 'image')}"
        f"{labels}.{named}"
    )


def reading_text(reading: UpdateReading) -> str:
    """What one update says by itself, in a sentence."""
    parts = [f"{count(reading.numbers)} numbers of L2 norm {distance(reading.norm)}"]
    if reading.statistics:
        parts.append(f"running means of the features in {counted(reading.statistics, 'layer')}")
    if reading.batch_statistics:
        layers = counted(reading.batch_statistics, "layer")
        parts.append(f"the exact mean and variance of its one batch in {layers}")
    most = sorted(range(len(reading.at_least)), key=lambda label: -reading.at_least[label])[:_MOST_LABELS]
    if bounds := [f"{count(reading.at_least[label])} of class {label}" for label in most if reading.at_least[label]]:
        parts.append(
            f"at least {joined(bounds)} among its {count(reading.images or 0)} images, if it trained by plain SGD"
        )
    else:
        parts.append(f"no certain labels{f' ({reading.why_no_labels})' if reading.why_no_labels else ''}")
    return (
        f"Read from the update of round {reading.round}, client {reading.node}, without a search: {'; '.join(parts)}."
    )


def _none_tried(view: FederationView) -> str:
    """Why no attack was begun."""
    planned = [one for one in view.record.plan if one.federation == view.federation.id]
    if any(one.status == "settled" for one in planned):
        return "none was needed: formulas reconstructed every image of the federation that it is the control of"
    if any(one.status == "over_budget" for one in planned):
        return "none that fits is expected to end within the budget: give a larger --budget"
    if planned and not any(one.status == "run" for one in planned):
        return "none of those that were considered applies to it; the plan says why"
    return "none was asked for"


def _not_attacked(view: FederationView, title: str, summaries: Sequence[AttackSummary]) -> str:
    reasons = "; ".join(
        f"{attack_title(summary.attack)}: {summary.reasons[0] if summary.reasons else 'it gave no result'}"
        for summary in summaries
    )
    return f"{title}: no attack gave a result, so nothing is known about it ({reasons or _none_tried(view)})."


def _of(back: int, images: int) -> str:
    return f"{back} of {counted(images, 'image')}"


def _share(summary: AttackSummary) -> str:
    return _of(summary.successes or 0, summary.images)


def _certainty(summary: AttackSummary) -> str:
    low, high = summary.interval or (0.0, 1.0)
    return f"95 % interval {interval(low, high)}"


def _names(summaries: Iterable[AttackSummary]) -> str:
    return joined(list(dict.fromkeys(attack_title(summary.attack) for summary in summaries)))


def _leak(view: FederationView, raised: Sequence[Flag]) -> tuple[VerdictName, str]:
    defence = defence_name(view.federation.defence)
    model, union = model_name(view.federation.model), view.union
    plain = [summary for summary in view.of_role(adaptive=False, among=view.scored) if summary.successes]
    best = _strongest(view)
    alone = best.successes == union.back and best.images == union.images
    came = (
        f"{_of(union.back, union.images)} {was(union.back, union.images)} reconstructed by "
        f"{attack_title(best.attack) if alone else 'at least one attack'}"
    )
    measure = f"(SSIM >= {view.record.success_threshold:g}; 95 % interval {interval(*union.interval)})"
    if not view.defended:
        text = f"Undefended {model} leaks: {came} {measure}."
    elif plain:
        which = f", which {_attitude(view, best)}" if alone else ""
        do = "do" if len(parts_of(view.federation.defence)) > 1 else "does"
        text = f"{capitalised(defence)} {do} not stop the leak on {model}: {came}{which} {measure}."
    else:
        text = f"{model} with {defence} leaks to an adaptive attacker: {came} {measure}.{plain_too(view)}"
    text += _who(view, best, alone=alone)
    text += _why_exact(view, best)
    if near := len(view.near_misses):
        text += f" {capitalised(number_word(near))} more came close, up to SSIM {figure(view.near_misses[0].ssim, 3)}."
    text += _would_have_suggested(view)
    weak = _phrases(flag for flag in raised if flag.weak)
    if weak and union.back < union.images:
        text += f" The share may be higher still: {'; '.join(weak)}."
    return "leaks" if plain else "leaks to an adaptive attacker", text + _aside(raised)


def _why_exact(view: FederationView, best: AttackSummary) -> str:
    """Why a formula reconstructs images as they are, as a sentence with a space before it; empty for other attacks."""
    name, defence = best.attack.partition(":")[0], capitalised(defence_name(view.federation.defence))
    behind = f", and {defence} sits behind {{}}" if "precode" in view.federation.defence else ""
    if name == "first-layer":
        return f" The gradient of the first layer contains the image exactly{behind.format('that layer')}."
    if name == "activation-span":
        whole = best.successes == best.images
        found = (
            "each image of a batch exactly" if whole else "images of a batch one by one, those that were found exactly"
        )
        layers = "two layers with a smooth activation between them"
        return f" The gradients of {layers} determine {found}{behind.format('the activation')}."
    if name != "patch-embedding":
        return ""
    rows = [row for row in view.rows(best.attack) if row.matching_loss is not None]
    left = max((row.matching_loss or 0.0 for row in rows), default=0.0) ** 0.5
    if any(row.outcome != "converged" for row in rows):
        return (
            " The gradient of its position embedding is that of each patch: one linear system gives what noise and "
            f"rank leave of them{behind.format('it')}."
        )
    return (
        " The gradient of its position embedding is that of each patch: one linear system determines the image exactly "
        f"(relative residual {left:.0e} at most){behind.format('it')}."
    )


def _strongest(view: FederationView) -> AttackSummary:
    """The attack that reconstructed the most images; of several the plain one, which everybody could run."""
    # They are in order already, the most successful first.
    return min(view.scored, key=lambda summary: (-(summary.successes or 0), view.adaptive(summary.attack)))


def _attitude(view: FederationView, summary: AttackSummary, defence: str = "it") -> str:
    """Whether an attack ignores or knows the defence, as a verb and its object."""
    if not view.adaptive(summary.attack):
        return f"ignores {defence}"
    whole = summary in view.whole or len(parts_of(view.federation.defence)) < 2
    return f"knows {defence}" if whole else f"knows a part of {defence}"


def _who(view: FederationView, best: AttackSummary, *, alone: bool) -> str:
    """The strongest attack, and what is due to attacks that ignore the defence, as sentences with a space before."""
    text = ""
    if not alone:
        which = f", which {_attitude(view, best)}," if view.defended else ","
        fits = "" if best.images == view.union.images else f" of the {best.images} that it fits"
        text = f" The strongest, {attack_title(best.attack)}{which} reconstructed {best.successes}{fits} by itself."
    plain = view.back(adaptive=False)
    if view.defended and plain and view.adaptive(best.attack):
        names = _names(summary for summary in view.of_role(adaptive=False, among=view.scored) if summary.successes)
        text += f" Attacks that ignore the defence reconstructed {_of(len(plain), view.union.images)} ({names})."
    return text


def _would_have_suggested(view: FederationView) -> str:
    """Which attacks that work without the defence would have made it look good."""
    failed = [summary for summary in view.scored if summary.successes == 0 and view.works_without(summary.attack)]
    if not failed or not view.defended:
        return ""
    return (
        f" {capitalised(_names(failed))} alone reconstructed none and would have suggested that the defence works: "
        "without it, half of the images or more are reconstructed that way."
    )


def _but_named(raised: Sequence[Flag]) -> list[Flag]:
    """The flags without that which the sentence says already."""
    return [flag for flag in raised if flag.name != "images-identified"]


def _named(view: FederationView, found: Identified, weak: Sequence[str]) -> str:
    """That images are identified, and what else is known of them."""
    lead = "" if view.lead is None else f" {_ahead(view.lead)}"
    return (
        f"{title_of(view.federation)}: leaks in part. No image counts as reconstructed (SSIM >= "
        f"{view.record.success_threshold:g}), and images are identified. {named_text(view, found)}{lead}{_close(view)}"
        + (f" It may leak more: {'; '.join(weak)}." if weak else "")
    )


def _ahead(lead: Lead) -> str:
    """How far what one attack made is beyond every guess, in a sentence."""
    return (
        f"The results of {attack_title(lead.summary.attack)} are nearer to the truth than every guess without the "
        f"updates on {_of(lead.ahead, lead.images)}. Their SSIM is {figure(lead.ssim)} on average, {figure(lead.gain)} "
        "more than that of the best guess."
    )


def _in_part(view: FederationView, lead: Lead, weak: Sequence[str]) -> str:
    which = f", which {_attitude(view, lead.summary, 'the defence')}," if view.defended else ""
    return (
        f"{title_of(view.federation)}: leaks in part. No image counts as reconstructed (SSIM >= "
        f"{view.record.success_threshold:g}), but what {attack_title(lead.summary.attack)}{which} made of the updates "
        f"is nearer to the truth than every guess without them on {_of(lead.ahead, lead.images)}: SSIM "
        f"{figure(lead.ssim)} on average, {figure(lead.gain)} more than the best guess.{_close(view)}"
        + (f" It may leak more: {'; '.join(weak)}." if weak else "")
    )


def _close(view: FederationView) -> str:
    """How many images came close to what counts, as a sentence with a space before it."""
    near = view.near_misses
    if not near:
        return ""
    return f" {_of(len(near), view.union.images)} came close to what counts, up to SSIM {figure(near[0].ssim, 3)}."


def _nothing(view: FederationView) -> str:
    """What was not reconstructed, and what was without the defence, without a full stop."""
    if view.stopped:
        here, there = view.stopped[0]
        without = f", against {_share(there)} without the defence"
    else:
        here, without = view.scored[0], ""
    verb = was(here.successes or 0, here.images)
    return f"{_share(here)} {verb} reconstructed by {attack_title(here.attack)} ({_certainty(here)}){without}"


def _held(view: FederationView) -> str:
    surest = max(view.whole, key=lambda summary: (view.independent(summary.attack), summary.images, summary.attack))
    know = "knows" if len({attack_title(summary.attack) for summary in view.whole}) == 1 else "know"
    return (
        f"{capitalised(defence_name(view.federation.defence))} held against everything tried on "
        f"{model_name(view.federation.model)}: {_nothing(view)}. {capitalised(_names(view.whole))}, which {know} the "
        f"whole defence, reconstructed none either ({_certainty(surest)}). A stronger attack still might."
    )


def _together(view: FederationView) -> list[str]:
    """Why the images are fewer independent trials than they are, where that is so."""
    union = view.union
    if not view.compared or union.independent >= union.images:
        return []
    updates, clients = view.attacked
    return [
        f"The {union.images} images count as {counted(union.independent, 'independent trial')}: they come from "
        f"{counted(updates, 'update')} of {counted(clients, 'client')}. Images of one update stand or fall together, "
        "and an image that is attacked again is no new one. Intervals go by these trials."
    ]


def _guesses(view: FederationView) -> list[str]:
    if not view.guessed:
        return []
    return [
        f"A guess without any update, such as the average training image, already reaches SSIM >= "
        f"{view.record.success_threshold:g} on {view.guessed} of these images. There an image counts as reconstructed "
        "only where an attack closed a quarter or more of what that guess leaves open."
    ]
