"""Two audits side by side: what became better or worse for the clients, with intervals."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attacker.attacks.registry import attack_title
from attacker.audit.record.counting import comparable, counts
from attacker.audit.record.naming import identified_in
from attacker.audit.record.schema import AuditRecord, FederationSummary, ImageResult, VerdictEntry
from attacker.audit.record.trials import originals, trials, update_of
from attacker.audit.record.view import FederationView
from attacker.audit.verdict.ci_gate import images_reconstructed, judged
from attacker.audit.verdict.flags import flags
from attacker.audit.verdict.verdict import title_of, verdicts
from attacker.metrics.intervals import difference_interval, mcnemar, paired_interval
from attacker.wording import count

Judgement = Literal["better", "worse", "no difference shown"]
_CHANCE = 0.05
ANY = "any attack"
IDENTIFIED = "identified by any"


@dataclass(frozen=True, kw_only=True)
class Change:
    """The success of one attack in both audits.

    Attributes:
        attack: Spec, or `ANY` for the images that were reconstructed by at least one, or `IDENTIFIED` for those that
            at least one identified, by more than chance.
        first: Images that were reconstructed or identified, and images attacked, in the first audit.
        second: Likewise in the second.
        interval: 95 % interval of the second share less the first.
        probability: Probability of so uneven a change by chance, where both are of the same victims (McNemar's exact
            test on updates, whose images are reconstructed or not together).
        judgement: Whether fewer or more images are reconstructed, by more than chance.
        ssim: Mean over the images of the best SSIM in both; None where it is not known.
    """

    attack: str
    first: tuple[int, int]
    second: tuple[int, int]
    interval: tuple[float, float]
    probability: float | None
    judgement: Judgement
    ssim: tuple[float | None, float | None]

    @property
    def paired(self) -> bool:
        """Whether the same victims were compared one by one."""
        return self.probability is not None

    @property
    def difference(self) -> float:
        """The second share less the first."""
        return self.second[0] / self.second[1] - self.first[0] / self.first[1]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One federation of each audit.

    Attributes:
        titles: For people.
        verdicts: By the rules.
        changes: `ANY` first, then `IDENTIFIED` where both tell; empty where nothing can be compared.
        flags_gone: Names of flags that only the first has.
        flags_new: Names of flags that only the second has.
        accuracy: Final accuracy of both; None where it is not known.
        note: What limits the comparison; empty otherwise.
    """

    titles: tuple[str, str]
    verdicts: tuple[VerdictEntry, VerdictEntry]
    changes: tuple[Change, ...]
    flags_gone: tuple[str, ...]
    flags_new: tuple[str, ...]
    accuracy: tuple[float | None, float | None]
    note: str = ""


def compare(first: AuditRecord, second: AuditRecord, folders: tuple[Path, Path]) -> list[Comparison]:
    """Compare what two audits are about; controls are left out.

    Federations belong together when model, images and defence are the same, or where each audit is of one only.

    Args:
        first: The older or the reference.
        second: What is compared with it.
        folders: Where their ``images`` lie; equal pictures of the truth are the same victim.

    Raises:
        ValueError: If no federation of one belongs to one of the other.
    """
    pairs = _pairs(judged(first), judged(second))
    if not pairs:
        raise ValueError(
            "the audits have no federation in common: expected the same model, images and defence in both, or one "
            f"federation in each; the first has {_names(judged(first))}, the second {_names(judged(second))}"
        )
    return [_compared(first, second, federation, other, folders) for federation, other in pairs]


def _names(federations: Iterable[FederationSummary]) -> str:
    return ", ".join(map(title_of, federations))


def _pairs(
    first: Sequence[FederationSummary], second: Sequence[FederationSummary]
) -> list[tuple[FederationSummary, FederationSummary]]:
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    waiting = list(second)
    pairs = []
    for federation in first:
        same = (other for other in waiting if _key(other) == _key(federation))
        if (match := next(same, None)) is not None:
            waiting.remove(match)
            pairs.append((federation, match))
    return pairs


def _key(federation: FederationSummary) -> tuple[object, ...]:
    return federation.model, federation.dataset, federation.defence


def _compared(
    first: AuditRecord,
    second: AuditRecord,
    federation: FederationSummary,
    other: FederationSummary,
    folders: tuple[Path, Path],
) -> Comparison:
    identities = (_identities(first, federation, folders[0]), _identities(second, other, folders[1]))
    changes, note = _changes(first, second, federation, other, identities)
    before, after = (
        {flag.name for flag in flags(r) if flag.federation == f.id} for r, f in ((first, federation), (second, other))
    )
    said = [next(v for v in verdicts(r) if v.federation == f.id) for r, f in ((first, federation), (second, other))]
    return Comparison(
        titles=(title_of(federation), title_of(other)),
        verdicts=(said[0], said[1]),
        changes=tuple(changes),
        flags_gone=tuple(sorted(before - after)),
        flags_new=tuple(sorted(after - before)),
        accuracy=(federation.final_accuracy, other.final_accuracy),
        note=note,
    )


def _identities(record: AuditRecord, federation: FederationSummary, folder: Path) -> dict[str, str]:
    """Each victim by what tells it from all others wherever it was audited: its picture, else its place on the tape."""
    identities: dict[str, str] = {}
    for victim in record.victims:
        if victim.federation != federation.id:
            continue
        picture = folder / victim.truth if victim.truth else None
        if picture is not None and picture.is_file():
            identity = hashlib.sha256(picture.read_bytes()).hexdigest()
        elif federation.tape_identity is not None:
            identity = f"{federation.tape_identity.sha256} {victim.round} {victim.node} {victim.image}"
        else:
            return {}
        identities[victim.id] = identity
    return (
        identities if len(set(identities.values())) == len(identities) else {}
    )  # the same image twice cannot be told apart


def _changes(
    first: AuditRecord,
    second: AuditRecord,
    federation: FederationSummary,
    other: FederationSummary,
    identities: tuple[Mapping[str, str], Mapping[str, str]],
) -> tuple[list[Change], str]:
    rows = [_scored(r, f) for r, f in ((first, federation), (second, other))]
    if first.success_threshold != second.success_threshold:
        return [], "The audits count success from different SSIM on, so that their shares cannot be compared."
    if not images_reconstructed(first, federation.id)[1] or not images_reconstructed(second, other.id)[1]:
        return [], "In one of the audits it is not known how many images were reconstructed."
    common = sorted(rows[0].keys() & rows[1].keys())
    sides = (
        _Side(record=first, federation=federation, rows=rows[0]),
        _Side(record=second, federation=other, rows=rows[1]),
    )
    changes = [_change(spec, sides, identities) for spec in (ANY, *common)]
    named, notes = _named(sides, identities)
    changes[1:1] = named
    alone = sorted({attack_title(spec) for spec in rows[0].keys() ^ rows[1].keys()})
    if alone:
        notes.append(f"Run in one of the audits only, and counted under {ANY!r} there: {', '.join(alone)}.")
    return changes, " ".join(notes)


def _named(
    sides: tuple[_Side, _Side], identities: tuple[Mapping[str, str], Mapping[str, str]]
) -> tuple[list[Change], list[str]]:
    """The change of whose images are identified; else why it cannot be told, where one of the audits knows any."""
    found = [identified_in(FederationView(record=side.record, federation=side.federation)) for side in sides]
    before, after = found
    if before is None or after is None:
        lacks = "Only one of the audits compared images with candidates."
        return [], [] if before is after else [lacks]
    if before.candidates != after.candidates:
        among = f"{count(before.candidates)} and {count(after.candidates)}"
        return [], [f"Whose images they are is not compared, because the candidates differ: {among}."]
    rows = (sides[0].lined_up(), sides[1].lined_up())
    outcomes = [
        {row.victim_id: row.victim_id in named.victims for row in own}
        for own, named in zip(rows, (before, after), strict=True)
    ]
    independent = (before.independent, after.independent)
    return [_judged(IDENTIFIED, rows, (outcomes[0], outcomes[1]), independent, identities, (None, None))], []


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One federation in one of the audits, with its comparable results by attack."""

    record: AuditRecord
    federation: FederationSummary
    rows: Mapping[str, Sequence[ImageResult]]

    def of(self, spec: str) -> list[ImageResult]:
        """Results of one attack, or of any."""
        return [row for rows in self.rows.values() for row in rows] if spec == ANY else list(self.rows[spec])

    def lined_up(self) -> list[ImageResult]:
        """Results of any attack that were told from other images."""
        return [row for row in self.of(ANY) if (row.candidates or 1) > 1]

    def independent(self, spec: str) -> int:
        """Independent trials among them."""
        return trials(self.of(spec), originals(v for v in self.record.victims if v.federation == self.federation.id))


def _scored(record: AuditRecord, federation: FederationSummary) -> dict[str, list[ImageResult]]:
    by_attack: dict[str, list[ImageResult]] = {}
    for row in record.results:
        if row.federation == federation.id and comparable(row):
            by_attack.setdefault(row.attack, []).append(row)
    return by_attack


def _change(spec: str, sides: tuple[_Side, _Side], identities: tuple[Mapping[str, str], Mapping[str, str]]) -> Change:
    rows = (sides[0].of(spec), sides[1].of(spec))
    before, after = (
        _by_victim(side_rows, side.record.success_threshold) for side_rows, side in zip(rows, sides, strict=True)
    )
    independent = (sides[0].independent(spec), sides[1].independent(spec))
    similar = (_mean_best(rows[0]), _mean_best(rows[1]))
    return _judged(spec, rows, (before, after), independent, identities, similar)


def _judged(
    spec: str,
    rows: tuple[Sequence[ImageResult], Sequence[ImageResult]],
    outcomes: tuple[Mapping[str, bool], Mapping[str, bool]],
    independent: tuple[int, int],
    identities: tuple[Mapping[str, str], Mapping[str, str]],
    ssim: tuple[float | None, float | None],
) -> Change:
    """The change of what happened to each victim: one by one where both are of the same, else of two shares."""
    shares = [(sum(own.values()), len(own)) for own in outcomes]
    named = [
        {ids.get(victim, ""): happened for victim, happened in own.items()}
        for ids, own in zip(identities, outcomes, strict=True)
    ]
    probability = None
    if named[0].keys() == named[1].keys() and "" not in named[0]:
        places = {identities[0][row.victim_id]: update_of(row) for row in rows[0]}
        probability, interval = _paired(named[0], named[1], places, min(independent))
        certain = probability < _CHANCE
    else:
        scaled = [n * back / images for (back, images), n in zip(shares, independent, strict=True)]
        interval = difference_interval((scaled[1], scaled[0]), (independent[1], independent[0]))
        certain = interval[0] > 0 or interval[1] < 0
    difference = shares[1][0] / shares[1][1] - shares[0][0] / shares[0][1]
    judgement: Judgement = "no difference shown"
    if certain:
        judgement = "worse" if difference > 0 else "better"
    return Change(
        attack=spec,
        first=shares[0],
        second=shares[1],
        interval=interval,
        probability=probability,
        judgement=judgement,
        ssim=ssim,
    )


def _paired(
    before: Mapping[str, bool], after: Mapping[str, bool], places: Mapping[str, tuple[int, str]], independent: int
) -> tuple[float, tuple[float, float]]:
    """Probability and interval of the change of the same images, update by update: images of one fall together.

    An update changed for the worse where more of its images are reconstructed, and for the better where fewer are.
    """
    balance: Counter[tuple[int, str]] = Counter()
    for image, update in places.items():
        balance[update] += int(after[image]) - int(before[image])
    probability = mcnemar(sum(value > 0 for value in balance.values()), sum(value < 0 for value in balance.values()))
    pairs = Counter((before[image], after[image]) for image in before)
    scale = independent / len(before)
    both, came, gone, neither = (
        scale * pairs[pair] for pair in ((True, True), (False, True), (True, False), (False, False))
    )
    return probability, paired_interval(both, came, gone, neither)


def _by_victim(rows: Sequence[ImageResult], threshold: float) -> dict[str, bool]:
    """Whether each victim was reconstructed by at least one of these results."""
    outcomes: dict[str, bool] = {}
    for row in rows:
        outcomes[row.victim_id] = outcomes.get(row.victim_id, False) or counts(row, threshold)
    return outcomes


def _mean_best(rows: Sequence[ImageResult]) -> float | None:
    best: dict[str, float] = {}
    for row in rows:
        if row.ssim is not None:
            best[row.victim_id] = max(row.ssim, best.get(row.victim_id, -1.0))
    return statistics.fmean(best.values()) if best else None
