"""Two audits side by side: what became better or worse for the clients, with intervals."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attacker.audit.checks import flags
from attacker.audit.counting import comparable, counts
from attacker.audit.gate import came_back, judged
from attacker.audit.record import AuditRecord, FederationSummary, ImageResult, VerdictEntry
from attacker.audit.verdict import title_of, verdicts
from attacker.intervals import difference_interval, mcnemar, paired_interval
from attacker.report.words import attack_name

Judgement = Literal["better", "worse", "no difference shown"]
_CHANCE = 0.05
ANY = "any attack"


@dataclass(frozen=True, kw_only=True)
class Change:
    """The success of one attack in both audits.

    Attributes:
        attack: Spec, or `ANY` for the images that came back by at least one.
        first: Images that came back, and images attacked, in the first audit.
        second: Likewise in the second.
        interval: 95 % interval of the second share less the first.
        probability: Of so uneven a change by chance, where both are of the same victims (McNemar's exact test).
        judgement: Whether fewer or more images come back, by more than chance.
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
        changes: `ANY` first; empty where nothing can be compared.
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
    return [_compared(first, second, one, other, folders) for one, other in pairs]


def _names(federations: Iterable[FederationSummary]) -> str:
    return ", ".join(map(title_of, federations))


def _pairs(
    first: Sequence[FederationSummary], second: Sequence[FederationSummary]
) -> list[tuple[FederationSummary, FederationSummary]]:
    if len(first) == len(second) == 1:
        return [(first[0], second[0])]
    waiting = list(second)
    found = []
    for one in first:
        same = (other for other in waiting if _key(other) == _key(one))
        if (match := next(same, None)) is not None:
            waiting.remove(match)
            found.append((one, match))
    return found


def _key(one: FederationSummary) -> tuple[object, ...]:
    return one.model, one.dataset, one.defence


def _compared(
    first: AuditRecord,
    second: AuditRecord,
    one: FederationSummary,
    other: FederationSummary,
    folders: tuple[Path, Path],
) -> Comparison:
    identities = (_identities(first, one, folders[0]), _identities(second, other, folders[1]))
    changes, note = _changes(first, second, one, other, identities)
    before, after = (
        {flag.name for flag in flags(r) if flag.federation == f.id} for r, f in ((first, one), (second, other))
    )
    said = [next(v for v in verdicts(r) if v.federation == f.id) for r, f in ((first, one), (second, other))]
    return Comparison(
        titles=(title_of(one), title_of(other)),
        verdicts=(said[0], said[1]),
        changes=tuple(changes),
        flags_gone=tuple(sorted(before - after)),
        flags_new=tuple(sorted(after - before)),
        accuracy=(one.final_accuracy, other.final_accuracy),
        note=note,
    )


def _identities(record: AuditRecord, federation: FederationSummary, folder: Path) -> dict[str, str]:
    """Each victim by what tells it from all others wherever it was audited: its picture, else its place on the tape."""
    found: dict[str, str] = {}
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
        found[victim.id] = identity
    return found if len(set(found.values())) == len(found) else {}  # the same image twice cannot be told apart


def _changes(
    first: AuditRecord,
    second: AuditRecord,
    one: FederationSummary,
    other: FederationSummary,
    identities: tuple[Mapping[str, str], Mapping[str, str]],
) -> tuple[list[Change], str]:
    rows = [_scored(r, f) for r, f in ((first, one), (second, other))]
    if first.success_threshold != second.success_threshold:
        return [], "The audits count success from different SSIM on, so that their shares cannot be compared."
    if not came_back(first, one.id)[1] or not came_back(second, other.id)[1]:
        return [], "In one of the audits it is not known how many images came back."
    specs = [ANY, *(spec for spec in rows[0] if spec in rows[1])]
    sides = [{ANY: [row for own in side.values() for row in own], **side} for side in rows]
    changes = [_change(spec, (sides[0][spec], sides[1][spec]), identities, first.success_threshold) for spec in specs]
    alone = sorted({attack_name(spec) for spec in rows[0].keys() ^ rows[1].keys()})
    note = f"Run in one of the audits only, and counted under {ANY!r} there: {', '.join(alone)}." if alone else ""
    return changes, note


def _scored(record: AuditRecord, federation: FederationSummary) -> dict[str, list[ImageResult]]:
    found: dict[str, list[ImageResult]] = {}
    for row in record.results:
        if row.federation == federation.id and comparable(row):
            found.setdefault(row.attack, []).append(row)
    return found


def _change(
    spec: str,
    rows: tuple[Sequence[ImageResult], Sequence[ImageResult]],
    identities: tuple[Mapping[str, str], Mapping[str, str]],
    threshold: float,
) -> Change:
    before, after = (_by_victim(own, threshold) for own in rows)
    shares = [(sum(own.values()), len(own)) for own in (before, after)]
    named = [
        {ids.get(victim, ""): back for victim, back in own.items()}
        for ids, own in zip(identities, (before, after), strict=True)
    ]
    probability = None
    if named[0].keys() == named[1].keys() and "" not in named[0]:
        gone = sum(named[0][victim] and not named[1][victim] for victim in named[0])
        came = sum(named[1][victim] and not named[0][victim] for victim in named[0])
        both = shares[0][0] - gone
        probability = mcnemar(came, gone)
        interval = paired_interval(both, came, gone, shares[0][1] - both - came - gone)
        certain = probability < _CHANCE
    else:
        interval = difference_interval((shares[1][0], shares[0][0]), (shares[1][1], shares[0][1]))
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
        ssim=(_mean_best(rows[0]), _mean_best(rows[1])),
    )


def _by_victim(rows: Sequence[ImageResult], threshold: float) -> dict[str, bool]:
    """Whether each victim came back by at least one of these results."""
    found: dict[str, bool] = {}
    for row in rows:
        found[row.victim_id] = found.get(row.victim_id, False) or counts(row, threshold)
    return found


def _mean_best(rows: Sequence[ImageResult]) -> float | None:
    best: dict[str, float] = {}
    for row in rows:
        if row.ssim is not None:
            best[row.victim_id] = max(row.ssim, best.get(row.victim_id, -1.0))
    return statistics.fmean(best.values()) if best else None
