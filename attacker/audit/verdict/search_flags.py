"""Flags about single attacks: whether a search worked, had enough time and starts, and knew the labels."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import permutations

from attacker.attacks.registry import attack_title
from attacker.audit.record.flag_sentences import Found, raised_flag
from attacker.audit.record.schema import AttackSummary, ImageResult
from attacker.audit.record.view import FederationView, is_formula
from attacker.reasons import because
from attacker.wording import capitalised, counted, percent
from fl_precode.spec import parse_spec

LEAST_FALL = 0.1
"""Share of its start by which a distance must fall before a search counts as having found a way."""

LATE_FALL = 0.05
"""Fall over the last tenth of a search above which more iterations would have helped."""

RELIABLE = 0.9
"""Success rate without the defence from which one start of a plain search is enough."""

RIGHT_LABELS = 0.95
"""Share of right labels below which an attack failed by its labels."""

MARGIN = 0.05
"""Mean SSIM by which a weaker attack must lead before a stronger one is doubted; it must be two standard errors too."""

FOUND_A_WAY = 0.5
"""Share of images from which a search that reconstructed them has found a way, however little its distance fell."""

FLOOR_WIDTH = 0.02
"""Share of the distance that noise alone causes, up to which a search that begins there has nothing left to find."""

CUT_SHARE = 0.05
"""Share of images on which a search may be cut before its result is doubted."""

_SAID = str(because("distance-chosen", distance=""))
"""What stands before the distance that a search says it was measured by."""

_SQUARED = frozenset({"dlg", "idlg", "see-through-gradients"})
_BUDGET = ("iterations", "restarts")


def loss_did_not_fall(view: FederationView) -> Iterator[Found]:
    """Searches whose distance hardly fell on most images: no gradient, a wrong direction, steps too small or none.

    Not those that reconstructed half of the images, which found a way; nor those that stand where the announced noise
    alone keeps the true images, for which nothing is left to find; nor formulas, which do not search.
    """
    for summary in view.tried:
        judge = _judged_by(view, summary)
        rates = [
            measured.success_rate or 0.0
            for measured in (summary, judge.summary(summary.attack))
            if measured is not None
        ]
        if max(rates) >= FOUND_A_WAY or not _stuck(judge, summary.attack):
            continue
        name, share = attack_title(summary.attack), percent(LEAST_FALL)
        yield raised_flag("loss-did-not-fall", summary.attack, attack=name, share=share)


def _stuck(view: FederationView, spec: str) -> bool:
    """Whether most of the searches that were measured got nowhere."""
    fell = [_fell(row, _floor(view, row)) for row in view.rows(spec)]
    known = [value for value in fell if value is not None]
    return bool(known) and sum(known) < len(known) / 2


def _fell(row: ImageResult, floor: float) -> bool | None:
    """Whether the distance fell by a share of what there was to gain; None where nothing was, or it is not measured."""
    searched = bool(row.starts) or row.starting_loss is not None
    if searched and row.iterations == 0 and row.outcome == "iteration_limit":
        return False
    if row.starting_loss is None or row.matching_loss is None:
        return None
    room = row.starting_loss - floor
    if floor and room <= FLOOR_WIDTH * floor:
        return None
    return row.matching_loss <= row.starting_loss - LEAST_FALL * room


def _floor(view: FederationView, row: ImageResult) -> float:
    """The distance that the announced noise alone causes, by the measure of this search; 0 where it is not known."""
    facts = view.federation.facts
    return 0.0 if facts is None else facts.noise_floors.get(_distance(row), 0.0)


def _distance(row: ImageResult) -> str:
    """Name of the distance by which a search was measured: what it said itself, its setting, or what it is made for."""
    said = row.reason.removeprefix(_SAID)
    if said != row.reason:
        return said.split(";")[0].strip()
    spec = parse_spec(row.method or row.attack)
    if "layers" in spec.options:
        return ""  # by a part of the gradient, on which there is less noise
    return spec.options.get("distance", "l2" if spec.name in _SQUARED else "cosine")


def _judged_by(view: FederationView, summary: AttackSummary) -> FederationView:
    """The federation that tells whether an attack works: for a plain one the control, where it was measured there.

    With the defence a plain search may fail by the defence alone, and lucky draws of a random model look like progress.
    """
    control = None if view.adaptive(summary.attack) else view.control
    if control is not None and any(_fell(row, 0.0) is not None for row in control.rows(summary.attack)):
        return control
    return view


def budget_edge(view: FederationView) -> Iterator[Found]:
    """The best search of each kind, when its distance still fell as its iterations ended."""
    for adaptive in (True, False):
        searched = [
            summary for summary in view.of_role(adaptive=adaptive, among=view.tried) if view.searches(summary.attack)
        ]
        if not searched:
            continue
        best = max(
            searched, key=lambda summary: (summary.mean_ssim or 0.0, -_median_loss(view.searches(summary.attack)))
        )
        falls = [_late_fall(row) for row in view.searches(best.attack)]
        late = [value for value in falls if value is not None]
        if late and (middle := statistics.median(late)) > LATE_FALL:
            yield raised_flag("budget-edge", best.attack, attack=attack_title(best.attack), share=percent(middle))


def _late_fall(row: ImageResult) -> float | None:
    return 0.0 if row.outcome == "converged" else row.late_fall


def _median_loss(rows: Sequence[ImageResult]) -> float:
    losses = [row.matching_loss for row in rows if row.matching_loss is not None]
    return statistics.median(losses) if losses else math.inf


def search_cut(view: FederationView) -> Iterator[Found]:
    """Attacks that the budget ended before the iterations that they were planned for, whatever their distance did.

    Their steps had not become small yet, so that standing still says little.
    """
    for summary in view.tried:
        rows = view.rows(summary.attack)
        cut = sum(row.cut for row in rows)
        if cut > CUT_SHARE * len(rows) and (summary.success_rate or 0.0) < 1:
            name, images = attack_title(summary.attack), counted(len(rows), "image")
            yield raised_flag("search-cut", summary.attack, attack=name, cut=cut, images=images)


def single_start(view: FederationView) -> Iterator[Found]:
    """Searches of one kind none of which had a second start."""
    for adaptive in (True, False):
        searched = [
            summary
            for summary in view.of_role(adaptive=adaptive, among=view.tried)
            if any(row.starts for row in view.rows(summary.attack))
        ]
        starts = [row.starts or 0 for summary in searched for row in view.rows(summary.attack)]
        if max(starts, default=0) == 1 and not any(_reliable(view, summary) for summary in searched):
            names = ", ".join(attack_title(summary.attack) for summary in searched)
            about = searched[0].attack if len(searched) == 1 else None
            yield raised_flag("single-start", about, attacks=names)


def _reliable(view: FederationView, summary: AttackSummary) -> bool:
    """Whether one start was enough where there is nothing to stop the attack."""
    if view.adaptive(summary.attack):
        return False
    reference = view.control.summary(summary.attack) if view.control is not None else summary
    return reference is not None and (reference.success_rate or 0.0) >= RELIABLE


def weaker_beats_stronger(view: FederationView) -> Iterator[Found]:
    """A plain attack ahead of those that know the defence; a small budget ahead of a larger one of the same attack."""
    adaptive = [summary.attack for summary in view.of_role(adaptive=True, among=view.scored)]
    plain = [
        summary.attack
        for summary in view.of_role(adaptive=False, among=view.scored)
        if not is_formula(summary.attack)  # which is no weaker for not knowing the defence
    ]
    if adaptive and plain and _ahead(view, plain, adaptive):
        yield raised_flag("weaker-beats-stronger.plain")
    for weaker, stronger in permutations([summary.attack for summary in view.scored], 2):
        if _same_with_more(weaker, stronger) and _ahead(view, [weaker], [stronger]):
            yield raised_flag("weaker-beats-stronger", stronger, weaker=capitalised(weaker), stronger=stronger)


def _same_with_more(weaker: str, stronger: str) -> bool:
    """Whether the second spec is the first with more iterations or restarts, and less of neither."""
    weaker_spec, other = parse_spec(weaker), parse_spec(stronger)
    rest = [{key: value for key, value in spec.options.items() if key not in _BUDGET} for spec in (weaker_spec, other)]
    if weaker_spec.name != other.name or rest[0] != rest[1] or weaker_spec.options.keys() != other.options.keys():
        return False
    try:
        budgets = [
            (int(weaker_spec.options[key]), int(other.options[key])) for key in _BUDGET if key in weaker_spec.options
        ]
    except ValueError:
        return False
    return all(less <= more for less, more in budgets) and any(less < more for less, more in budgets)


def _ahead(view: FederationView, first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the best of the first is ahead of the best of the second, victim by victim, by more than chance."""
    ours, theirs = _best_ssim(view, first), _best_ssim(view, second)
    leads = [ours[victim] - theirs[victim] for victim in ours.keys() & theirs.keys()]
    if len(leads) < 2:
        return False
    error = statistics.stdev(leads) / math.sqrt(len(leads))
    return statistics.fmean(leads) > max(MARGIN, 2 * error)


def _best_ssim(view: FederationView, specs: Sequence[str]) -> dict[str, float]:
    best: dict[str, float] = {}
    for spec in specs:
        for row in view.rows(spec):
            if row.ssim is not None:
                best[row.victim_id] = max(row.ssim, best.get(row.victim_id, -1.0))
    return best


def labels_unknown(view: FederationView) -> Iterator[Found]:
    """Searches that had to guess labels, and guessed wrong or cannot be told to have guessed right."""
    granted = view.federation.labels == "granted"
    for summary in view.tried:
        rows = view.searches(summary.attack)
        known = [row.label_accuracy for row in rows if row.label_accuracy is not None]
        right = statistics.fmean(known) if known else None
        name = capitalised(attack_title(summary.attack))
        if right is not None and right < RIGHT_LABELS:
            yield raised_flag(
                "labels-unknown.granted" if granted else "labels-unknown.in-part",
                summary.attack,
                attack=name,
                share=percent(right),
            )
        elif rows and right is None and not granted:
            yield raised_flag("labels-unknown", summary.attack, attack=name)
