"""Answers of an audit to a requirement: test, criterion, result, and gaps. From the record alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from attacker.audit.record.schema import AuditRecord, FederationSummary
from attacker.audit.record.view import FederationView
from attacker.report.verdict import Finding, Verdict, verdicts
from attacker.wording import budget, counted, defence_name, interval, joined, percent, plan_status

Status = Literal["not met", "not met in part", "met", "held", "measured", "not shown", "not known", "not tested"]

NEVER: Final = (
    "a server that alters the model to read images",
    "sums of several clients' updates",
    "whether a person's image was used for training (membership inference)",
    "properties of a client's whole data (property inference)",
    "the trained model itself, by its weights or its answers",
    "poisoned data, poisoned models and adversarial examples",
)
"""What no audit of this kind tests."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an audit of one federation says to a requirement.

    Attributes:
        status: Short.
        test: What was done.
        criterion: When it would be met.
        result: What was found.
        not_tested: What remains open.
    """

    status: Status
    test: str
    criterion: str
    result: str
    not_tested: str


@dataclass(frozen=True, kw_only=True)
class Audited:
    """One federation that is no control, with what was found about it."""

    view: FederationView
    verdict: Verdict

    @property
    def federation(self) -> FederationSummary:
        """Its figures."""
        return self.view.federation

    @property
    def record(self) -> AuditRecord:
        """The whole audit."""
        return self.view.record


def audited(record: AuditRecord) -> list[Audited]:
    """All federations of a record that are no control of another one, in its order."""
    return [
        Audited(view=FederationView(record=record, federation=federation), verdict=verdict)
        for federation, verdict in zip(record.federations, verdicts(record), strict=True)
        if not verdict.control
    ]


_OF_FINDING: Final[Mapping[Finding, Status]] = MappingProxyType(
    {
        Finding.LEAKS: "not met",
        Finding.LEAKS_ADAPTIVE: "not met",
        Finding.LEAKS_IN_PART: "not met in part",
        Finding.HELD: "held",
        Finding.NOT_SHOWN: "not shown",
        Finding.NOT_KNOWN: "not known",
    }
)


_OF_LABELS: Final[Mapping[str, Status]] = MappingProxyType(
    {
        "leaks": "measured",
        "leaks in part": "measured",
        "held": "held",
        "not shown": "not shown",
        "not known": "not known",
    }
)


def reconstructed(one: Audited) -> str:
    """How many images were reconstructed, in a sentence."""
    if not one.view.tried:
        return "No attack gave a result."
    if not one.view.scored:
        return "The true images are not known, so nothing can be counted."
    union = one.view.union
    return (
        f"{union.back} of {counted(union.images, 'image')} {'was' if union.back == 1 else 'were'} reconstructed "
        f"(95 % interval {interval(*union.interval)})."
    )


def not_run(one: Audited) -> str:
    """The attacks that were planned and not run, counted by reason; empty where there are none."""
    tally = Counter(row.status for row in one.record.plan if row.federation == one.federation.id)
    parts = [f"{tally[status]} {plan_status(status).partition(',')[0].lower()}" for status in tally if status != "run"]
    return f"attacks that were not run: {joined(parts)}" if parts else ""


def received(one: Audited) -> int:
    """Updates that the server received, also those that a sampled tape does not have."""
    federation = one.federation
    return federation.updates if federation.sampled is None else federation.sampled.seen


def _images(one: Audited) -> Answer:
    updates, clients = one.view.attacked
    attacks = len({row.attack for row in one.view.tried})
    images = len({row.victim_id for row in one.view.all_rows})
    behind = f" from {counted(updates, 'update')} of {counted(clients, 'client')}" if updates else ""
    left = [f"{received(one) - updates} other updates"] if 0 < updates < received(one) else []
    return Answer(
        status=_OF_FINDING[one.verdict.finding],
        test=f"{counted(attacks, 'attack')} tried to reconstruct {counted(images, 'image')}{behind}.",
        criterion=(
            f"No image is reconstructed: SSIM stays below {one.record.success_threshold:g}, or no nearer to the image "
            "than the best guess without the update. None is identified among others of its class."
        ),
        result=f"{one.verdict.number('images') or reconstructed(one)} Verdict: {one.verdict.finding.value.lower()}.",
        not_tested=_sentence([*left, *filter(None, [not_run(one)]), *NEVER[:2], NEVER[4]]),
    )


def label_result(one: Audited) -> tuple[Status, str]:
    """What was read of the labels: the verdict's line about them, else what attacks read."""
    line = next((line for line in one.verdict.lines if line.subject == "labels"), None)
    if line is not None and line.state in _OF_LABELS:
        return _OF_LABELS[line.state], line.sentence
    granted = "labels" in one.record.threat_model.granted if one.record.threat_model else False
    if granted or one.federation.labels == "granted":
        return "not tested", "The attacker was given the labels, so reading them was not tested."
    known = [row.label_accuracy for row in one.view.summaries if row.label_accuracy is not None]
    if known:
        return "measured", (
            f"The best attack read {percent(max(known))} of the labels. Nothing is compared with a guess by the "
            "frequency of the classes."
        )
    facts = one.federation.facts
    read = sum(sum(reading.at_least) for reading in facts.readings) if facts else 0
    if read:
        return "measured", f"The updates alone name the class of {counted(read, 'image')} at least."
    return "not known", "No attack read labels that could be compared with the true ones."


def _labels(one: Audited) -> Answer:
    status, result = label_result(one)
    return Answer(
        status=status,
        test="Attacks read the classes of the images from the updates.",
        criterion="No threshold: the share that was read is stated.",
        result=result,
        not_tested="Other attributes of the persons; what a reply carries beside the update, such as metrics.",
    )


def guarantee_result(one: Audited) -> tuple[Status, str]:
    """What differential privacy promises."""
    federation = one.federation
    claims, spent = federation.claims, federation.privacy
    if claims is not None and claims.holds and claims.guarantees:
        said = [
            f"epsilon {budget(promised.composed if promised.composed is not None else promised.a_round)} for one "
            f"{promised.level} at delta {budget(promised.delta)}"
            for promised in claims.guarantees
            if promised.composed is not None or promised.a_round is not None
        ]
        if said:
            return "measured", f"The defence promises {joined(said)}, over all rounds where that is known."
    if claims is not None and claims.why_not:
        return "not met", f"There is no guarantee: {claims.why_not}."
    if spent is not None and spent.epsilon is not None:
        return "measured", f"DP-SGD spent epsilon {budget(spent.epsilon)} at delta {budget(spent.delta)}: {spent.note}."
    if not one.view.defended:
        return "not met", "The clients apply no defence, so nothing is promised."
    return "not met", f"{defence_name(federation.defence)} promises nothing that a formula could bound."


def _guarantee(one: Audited) -> Answer:
    status, result = guarantee_result(one)
    bound = next((row for row in one.record.bounds if row.federation == one.federation.id), None)
    return Answer(
        status=status,
        test="The epsilon of the announced defence was computed again from its noise and its clip.",
        criterion="A stated epsilon that holds against the server. Whether it is small enough is for people to decide.",
        result=f"{result}{f' {bound.sentence}' if bound is not None else ''}",
        not_tested="Whether the clients' programs really add this noise, beyond what their updates show.",
    )


def _state_of_the_art(one: Audited) -> Answer:
    view = one.view
    control = None if view.control is None else view.control.union
    whole = len(view.whole)
    parts = []
    if view.defended:
        parts.append(f"{counted(whole, 'attack')} that {'knows' if whole == 1 else 'know'} the whole defence ran.")
    else:
        parts.append("There is no defence that an attack would have to know.")
    if control is not None:
        parts.append(f"Without the defence, {control.back} of {counted(control.images, 'image')} were reconstructed.")
    elif view.defended:
        parts.append("No undefended control was attacked.")
    fit = (whole > 0 and control is not None and control.back > 0) or (not view.defended and bool(view.tried))
    weak = {flag.name for flag in one.record.flags if flag.federation == one.federation.id and flag.weak}
    if weak and not one.verdict.finding.leak:
        parts.append(f"Reasons to distrust the low score: {joined(sorted(weak))}.")
        fit = False
    return Answer(
        status="met" if fit else "not met",
        test="Attacks that know the defence, and the same updates without it, were tried.",
        criterion=(
            "At least one attack knows the whole defence, attacks succeed without the defence, and no flag gives a "
            "reason to distrust a low score."
        ),
        result=" ".join(parts),
        not_tested=_sentence([*filter(None, [not_run(one)]), "attacks that are published later"]),
    )


def _untested(what: str) -> Callable[[Audited], Answer]:
    def answer(one: Audited) -> Answer:
        del one
        return Answer(status="not tested", test="No test.", criterion="", result="Nothing is known.", not_tested=what)

    return answer


PROBES: Final[Mapping[str, Callable[[Audited], Answer]]] = MappingProxyType(
    {
        "images": _images,
        "labels": _labels,
        "guarantee": _guarantee,
        "state-of-the-art": _state_of_the_art,
        "membership": _untested("Whether a given image was used for training."),
        "properties": _untested("Properties of a client's data as a whole."),
        "model": _untested("The trained model, by its weights or its answers: this audit reads updates."),
        "extraction": _untested("Extraction of the model; the server that is audited has it."),
        "integrity": _untested("Poisoned data, poisoned models, adversarial examples and model flaws."),
    }
)
"""By name: how a requirement is answered for one federation."""


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
