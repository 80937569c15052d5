"""What an audit allows to be said, by written rules. Pure functions of the record.

One rule decides for each federation, the first that fits:

1. No attack fits its updates: nothing is known (NOT_ATTACKED).
2. No similarity could be measured: whether images came back is not known (UNKNOWN).
3. The average training image alone counts as come back on every victim: the measure cannot tell (NO_MEASURE).
4. An image came back: it leaks (LEAKS without a defence, LEAKS_DESPITE with one).
5. Nothing came back, no defence: the attacks were too weak to conclude anything (TOO_WEAK).
6. Nothing came back, with a defence, and no undefended run of the same model to compare with (NO_COMPARISON).
7. Nothing came back, with a defence, but neither from the undefended model (TOO_WEAK).
8. Nothing came back, with a defence, although an attack that works without it was run: that attack is stopped. Without
   an adaptive attack this is no evidence of protection (PLAIN_STOPPED); with one, only those tried are stopped
   (ADAPTIVE_STOPPED).

No rule ever calls a federation safe: an audit can show a leak, and cannot show that there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from attacker.audit.record import AttackSummary, AuditRecord, FederationSummary
from attacker.report.words import attack_name, capitalised, defence_name, interval, joined, model_name, number_word


class Finding(StrEnum):
    """What an audit found about one federation; the value is the label that a reader sees."""

    LEAKS = "Leaks"
    LEAKS_DESPITE = "Leaks despite the defence"
    PLAIN_STOPPED = "Plain attack stopped, no proof"
    ADAPTIVE_STOPPED = "The attacks tried were stopped, no proof"
    TOO_WEAK = "Attacks too weak to tell"
    NO_COMPARISON = "Nothing to compare with"
    UNKNOWN = "Truth not known"
    NO_MEASURE = "The measure cannot tell"
    NOT_ATTACKED = "Not attacked"

    @property
    def leak(self) -> bool:
        """Whether images came back."""
        return self in (Finding.LEAKS, Finding.LEAKS_DESPITE)

    @property
    def tone(self) -> str:
        """Name of the label's style."""
        if self.leak:
            return "leak"
        return "open" if self in (Finding.PLAIN_STOPPED, Finding.ADAPTIVE_STOPPED) else "unknown"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The finding on one federation, in words.

    Attributes:
        federation: Its identifier.
        finding: Which rule decided.
        sentence: Plain words.
        cautions: What a careful reader must know besides.
    """

    federation: str
    finding: Finding
    sentence: str
    cautions: tuple[str, ...] = ()


def verdicts(record: AuditRecord) -> list[Verdict]:
    """One verdict for each federation, in the record's order."""
    return [_verdict(record, federation) for federation in record.federations]


def is_defended(federation: FederationSummary) -> bool:
    """Whether there is, or may be, a defence."""
    return federation.defence != "none"


def title_of(federation: FederationSummary) -> str:
    """A federation's name for people: model, defence and images.

    Two federations of one page can differ in any of the three.
    """
    images = f" on {federation.dataset}" if federation.dataset else ""
    return f"{model_name(federation.model)} with {defence_name(federation.defence)}{images}"


def counterpart(record: AuditRecord, federation: FederationSummary) -> FederationSummary | None:
    """The undefended federation of the same model and images, or None."""
    alike = (
        one
        for one in record.federations
        if one.defence == "none" and one.model == federation.model and one.dataset == federation.dataset
    )
    return next(alike, None)


def _verdict(record: AuditRecord, federation: FederationSummary) -> Verdict:
    own = [one for one in record.summaries if one.federation == federation.id]
    tried = [one for one in own if one.images > one.failed]
    title = title_of(federation)
    if not tried:
        return Verdict(federation=federation.id, finding=Finding.NOT_ATTACKED, sentence=_not_attacked(title, own))
    scored = [one for one in tried if one.successes is not None]
    if not scored:
        sentence = (
            f"{title}: whether images came back is not known. The attacks ran, but without the true images no "
            "similarity and no success rate can be given; the pictures below are all there is to judge by."
        )
        return Verdict(federation=federation.id, finding=Finding.UNKNOWN, sentence=sentence)
    best = max(scored, key=lambda one: (one.success_rate or 0.0, one.images))
    cautions = (*_doubts(federation), *_cautions(record, own, scored))
    if all(one.baseline_successes == one.images for one in scored):
        sentence = (
            f"{title}: nothing can be concluded. These images are so alike that their average, which needs no update, "
            f"already reaches SSIM >= {record.success_threshold:g} on every one of them."
        )
        return Verdict(federation=federation.id, finding=Finding.NO_MEASURE, sentence=sentence)
    if best.successes:
        finding = Finding.LEAKS_DESPITE if is_defended(federation) else Finding.LEAKS
        sentence = _leak_sentence(record, federation, best, scored)
    else:
        finding, sentence = _nothing_came_back(record, federation, scored)
    return Verdict(federation=federation.id, finding=finding, sentence=sentence, cautions=cautions)


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


def _leak_sentence(
    record: AuditRecord, federation: FederationSummary, best: AttackSummary, scored: Sequence[AttackSummary]
) -> str:
    model, defence = model_name(federation.model), capitalised(defence_name(federation.defence))
    start = f"{defence} does not stop the leak on {model}" if is_defended(federation) else f"Undefended {model} leaks"
    text = (
        f"{start}: {_share(best)} came back by {attack_name(best.attack)} "
        f"(SSIM >= {record.success_threshold:g}; {_certainty(best)})."
    )
    if best.attack.partition(":")[0] == "first-layer":
        behind = f", and {defence} sits behind that layer" if "precode" in federation.defence else ""
        text += f" The gradient of the first layer contains the image exactly{behind}."
    failed = [one for one in scored if one.successes == 0]
    if failed and is_defended(federation):
        names = joined([attack_name(one.attack) for one in failed])
        text += f" {names} alone brought back {_share(failed[0])} and would have suggested that the defence works."
    return text


def _nothing_came_back(
    record: AuditRecord, federation: FederationSummary, scored: Sequence[AttackSummary]
) -> tuple[Finding, str]:
    title, best = title_of(federation), max(scored, key=lambda one: one.images)
    nothing = f"{_share(best)} came back ({_certainty(best)})"
    if not is_defended(federation):
        return Finding.TOO_WEAK, (
            f"{title}: {nothing}. Without a defence images are expected to come back, so the attacks of this audit "
            "were too weak to conclude anything, about this model or about a defence on it."
        )
    plain = counterpart(record, federation)
    if plain is None:
        return Finding.NO_COMPARISON, (
            f"{title}: {nothing}. There is no undefended run of the same model to compare with, so this may be "
            "the defence's doing or the attacks' weakness."
        )
    worked = {
        one.attack: one for one in record.summaries if one.federation == plain.id and one.successes and one.images
    }
    stopped = [one for one in scored if one.attack in worked]
    if not stopped:
        return Finding.TOO_WEAK, (
            f"{title}: {nothing}. None of these attacks brought an image back from the undefended model either, so "
            "they were too weak to conclude anything about the defence."
        )
    return _stopped(record, federation, stopped[0], worked[stopped[0].attack])


def _stopped(
    record: AuditRecord, federation: FederationSummary, one: AttackSummary, without: AttackSummary
) -> tuple[Finding, str]:
    adaptive = {attack.spec for attack in record.attacks if attack.adaptive}
    tried = [s for s in record.summaries if s.federation == federation.id and s.attack in adaptive]
    informed = [s for s in tried if s.successes is not None and s.images > s.failed]
    text = (
        f"{capitalised(defence_name(federation.defence))} stops the plain attack ({attack_name(one.attack)}) on "
        f"{model_name(federation.model)}: {_share(one)} came back ({_certainty(one)}), against {_share(without)} "
        "without the defence."
    )
    if not informed:
        return Finding.PLAIN_STOPPED, (
            f"{text} This attack ignores the defence; no adaptive attack was run, so this is not evidence of "
            "protection."
        )
    names = joined([attack_name(s.attack) for s in informed])
    return Finding.ADAPTIVE_STOPPED, (
        f"{text} Attacks that know the defence ({names}) brought none back either; a stronger one still might."
    )


def _doubts(federation: FederationSummary) -> tuple[str, ...]:
    if not federation.doubts:
        return ()
    return (
        "What was attacked may not be what was announced, so that this says little about "
        f"{defence_name(federation.defence)}: {'; '.join(federation.doubts)}.",
    )


def _cautions(record: AuditRecord, own: Sequence[AttackSummary], scored: Sequence[AttackSummary]) -> tuple[str, ...]:
    cautions = []
    flat = max((one.baseline_successes or 0 for one in scored), default=0)
    if flat:
        cautions.append(
            f"The average training image alone reaches SSIM >= {record.success_threshold:g} on {flat} of these images, "
            "so reaching it there does not show that an update leaked."
        )
    failed = [one for one in own if one.failed]
    if failed:
        parts = [f"{attack_name(one.attack)} on {one.failed}" for one in failed]
        cautions.append(f"An attack failed or diverged and counts as not successful: {joined(parts)} image(s).")
    return tuple(cautions)


def overall(found: Sequence[Verdict]) -> str:
    """The page's first sentence."""
    leaks, total = sum(one.finding.leak for one in found), len(found)
    stopped = sum(one.finding.tone == "open" for one in found)
    if total == 1:
        return _single(found[0].finding)
    start = "all" if leaks == total else f"{'none' if not leaks else number_word(leaks)} of the"
    parts = [f"Training images came back from {start} {number_word(total)} federations audited"]
    if stopped:
        parts.append(f"in {number_word(stopped)} the attacks were stopped, which is no proof of protection")
    if rest := total - leaks - stopped:
        parts.append(f"about {number_word(rest)} nothing can be concluded")
    return f"{'; '.join(parts)}."


def _single(finding: Finding) -> str:
    if finding.leak:
        return "Training images came back from this federation."
    if finding.tone == "open":
        return "The attacks tried were stopped, which is no proof of protection."
    return "Nothing can be concluded about this federation."
