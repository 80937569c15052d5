"""Leakage indices of a federation's model, for its audit record: what an attacker without bad luck could know.

Evaluation: I2F is a property of true images. They come from `attacker.audit.truth`, and no attack sees what is found.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.schema import (
    AuditRecord,
    ImageResult,
    LayerLeakage,
    LeakageSummary,
    PositionLeakage,
    SpanLeakage,
    finite,
)
from attacker.audit.scoring.leakage_groups import LEAST_FOR_CORRELATION, Leak, correlation, groups
from attacker.audit.scoring.leakage_images import GradientLeak, LeakingImage, Origin, leaking_image, leaks_of
from attacker.audit.scoring.noise_attack import attack_under_noise
from attacker.audit.truth.base import Truth
from attacker.jobs.in_time import TimeEnded, call_in_time
from attacker.leakage.exactly_determined import position_rank, span_ranks
from attacker.leakage.jacobian import EXACT_NUMBERS
from attacker.leakage.rank import layer_ranks, solubility
from attacker.leakage.released import bottleneck_shapes
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim
from fl_precode.observation import Observation

_logger = logging.getLogger(__name__)

MOST_IMAGES: Final = 8
"""Images at most whose Jacobian is computed."""

MOST_WORK: Final = 2e11
"""Unknowns squared times numbers of the gradient, of one image: up to 15 CPU-seconds were measured, and 1.8 GB."""

MOST_WORK_IN_ALL: Final = 8e11
"""The same for all images of a federation: about a CPU-minute; five images of 3x32x32 for the LeNet."""


_WORK_IN_A_SECOND: Final = 8e9
"""The same that a processor does in a second, rather less than was measured."""

_STARTING: Final = 0.3
"""Seconds of an image's analysis that do not depend on its size."""

LITTLE_WORK: Final = 5e10
"""The same below which no other process is started: a few seconds, and a process takes as long to import torch."""


def needs_indices(federation: AuditedFederation, federations: Sequence[AuditedFederation]) -> bool:
    """Whether a federation gets indices: a control only where its model is another than that of its federation."""
    parents = [candidate for candidate in federations if candidate.id == federation.control_of]
    return all(parameters(parent.subject.victim) != parameters(federation.subject.victim) for parent in parents)


def leakage_of(
    federation: AuditedFederation, record: AuditRecord, *, seed: int, processes: int = 1, seconds: float = math.inf
) -> LeakageSummary:
    """Leakage indices of one federation of an audit, for the images that were attacked.

    Args:
        federation: The federation.
        record: Says how well the attacks did.
        seed: Seed of noise.
        processes: That work at a time.
        seconds: That there are; fewer images are analysed in less time, and where there is none for one, or it takes
            far longer, the summary says so.
    """
    truth = federation.subject.truth
    within = seconds / (work(federation.subject.victim) / _WORK_IN_A_SECOND + _STARTING)

    def summary() -> LeakageSummary:
        return leakage_summary(
            federation.id,
            federation.subject.victim,
            federation.subject.defence,
            federation.observations(),
            [federation.truth(entry) for entry in federation.entries],
            [row for row in record.results if row.federation == federation.id],
            class_names=() if truth is None else truth.class_names,
            seed=seed,
            most=MOST_IMAGES if math.isinf(within) else min(MOST_IMAGES, int(within)),
            processes=processes,
            origins=[Origin(site=federation.site, file=entry.file) for entry in federation.entries],
        )

    if math.isinf(seconds):
        return summary()
    too_large = why_too_large(federation.subject.victim)
    if within >= 1 or too_large:
        with suppress(TimeEnded):
            return call_in_time(summary, 1.5 * seconds)
    reason = too_large or because("leakage-needs-time")
    return _lacking(_blank(federation.id, federation.subject.victim), reason)


def leakage_summary(
    federation: str,
    victim: Victim,
    defence: str,
    observations: Sequence[Observation],
    truths: Sequence[Truth | None],
    rows: Iterable[ImageResult],
    *,
    class_names: Sequence[str] = (),
    seed: int = 0,
    most: int = MOST_IMAGES,
    processes: int = 1,
    origins: Sequence[Origin | None] = (),
) -> LeakageSummary:
    """Rank, expected error and I2F for some of the attacked images, each by itself, at the weights that were sent.

    Where the model draws noise, rank and expected error are those of an attacker who fits it along with the image.

    Args:
        federation: Its identifier.
        victim: Model with the defence's bottlenecks in it.
        defence: Spec, whose own perturbation of the gradient I2F is computed for.
        observations: The updates that were attacked.
        truths: What is behind each; None where it is not known.
        rows: Results of the attacks on this federation, for the correlation of I2F with measured errors.
        class_names: For people; without them classes are numbers.
        seed: Seed of noise.
        most: Images at most; they are taken evenly from all.
        processes: That work at a time, where it is worth starting them.
        origins: Where they find each update; without them this process does everything.

    Returns:
        The summary; ``reason`` says what is missing and why, and nothing is raised for models that cannot be analysed.
    """
    blank = _blank(federation, victim)
    known = [
        (observation, truth, place, origin)
        for observation, truth, origin in zip(observations, truths, origins or [None] * len(truths), strict=True)
        if truth is not None
        for place in range(len(truth.images))
    ]
    if not known:
        return _lacking(blank, why_too_large(victim) or because("leakage-needs-truth"))
    failures: list[Reason] = []
    blank = _with_formulas(blank, victim, defence, known[0], seed, failures)
    if reason := why_too_large(victim):
        return _lacking(blank, joined([reason, *failures], " "))
    some = _evenly(known, min(most, max(1, int(MOST_WORK_IN_ALL / work(victim)))))
    together = processes if work(victim) * len(some) > LITTLE_WORK else 1
    try:
        tasks = [_task(victim, defence, image, seed + number) for number, image in enumerate(some)]
    except Exception as error:
        return _lacking(blank, _failure(federation, "it", error))
    layers: dict[str, object] = {}
    leaks: list[Leak] = []
    try:
        layers = _layers(tasks[0])
    except Exception as error:
        failures.append(_failure(federation, "the ranks of its layers", error))
    try:
        image_leaks = leaks_of(tasks, processes=together)
        leaks = [
            _leak(image, image_leak)
            for image, image_leak in zip(some, image_leaks, strict=True)
            if image_leak is not None
        ]
        figures = _figures(leaks, list(rows), class_names)
        noisy = bool(bottleneck_shapes(victim))
        reason = _reason(len(known), some, leaks, figures["correlation"] is not None, noisy=noisy)
    except Exception as error:
        figures, reason = {}, _failure(federation, "what its gradient says of single images", error)
    unit = figures.get("unit_rmse")
    if isinstance(unit, float) and unit > 0 and not bottleneck_shapes(victim):
        try:
            figures["noise_attack"] = attack_under_noise(tasks, unit, seed=seed)
        except Exception as error:
            failures.append(_failure(federation, "what a search makes of noise on its update", error))
    found_all = LeakageSummary.model_validate({**dict(blank), **layers, **figures})
    return _lacking(found_all, joined([reason, *failures], " "))


def _with_formulas(
    blank: LeakageSummary, victim: Victim, defence: str, image: _Image, seed: int, failures: list[Reason]
) -> LeakageSummary:
    """With what formulas take from the gradient of one image; it is cheap, and so told of the largest models, too."""
    try:
        of, pixels = (task := _task(victim, defence, image, seed)).released(task.generator())
        positions, spans = position_rank(of, pixels), span_ranks(of, pixels)
    except Exception as error:
        failures.append(_failure(blank.federation, "what formulas take from its gradient", error))
        return blank
    return blank.model_copy(
        update={
            "positions": None if positions is None else PositionLeakage(**vars(positions)),
            "spans": [SpanLeakage(**vars(span)) for span in spans],
        }
    )


def _blank(federation: str, victim: Victim) -> LeakageSummary:
    return LeakageSummary(
        federation=federation,
        unknowns=math.prod(victim.inputs.shape),
        jacobian_rank=None,
        unit_rmse=None,
        solubility=None,
        layers=[],
        influence=[],
        correlation=None,
        correlation_interval=None,
        reason="",
    )


def _lacking(summary: LeakageSummary, reason: Reason) -> LeakageSummary:
    """The summary with the reason why something is missing."""
    return summary.model_copy(update={"reason": str(reason), "reason_codes": list(reason.codes)})


def _failure(federation: str, what: str, error: Exception) -> Reason:
    """A sentence for what could not be analysed: of a model that is not differentiated twice, foreign code, memory."""
    _logger.warning("leakage of %s: %s could not be analysed", federation, what, exc_info=True)
    return because("leakage-raised", what=what, kind=type(error).__name__, error=error)


def work(victim: Victim) -> float:
    """What the analysis of one image costs: unknowns squared times numbers of the gradient."""
    return math.prod(victim.inputs.shape) ** 2 * parameters(victim)


def parameters(victim: Victim) -> int:
    """Numbers in an update of the model, buffers left out."""
    return sum(value.numel() for value in victim.model.parameters())


def why_too_large(victim: Victim) -> Reason | None:
    """Why a model is not analysed in an audit; None where it is."""
    unknowns = math.prod(victim.inputs.shape)
    if unknowns <= EXACT_NUMBERS and work(victim) <= MOST_WORK:
        return None
    return because("leakage-too-large", unknowns=unknowns, numbers=parameters(victim))


_Image = tuple[Observation, Truth, int, Origin | None]
"""An update, the truth behind it, the place of one image there, and where other processes find the update."""


def _layers(image: LeakingImage) -> dict[str, object]:
    """Fields of the summary that are about single layers."""
    counted = layer_ranks(*image.released(image.generator()))
    return {
        "solubility": finite(solubility(counted)),
        "layers": [
            LayerLeakage(
                name=layer.name,
                kind=layer.kind,
                unknowns=layer.unknowns,
                rank=layer.predicted if layer.rank is None else layer.rank,
            )
            for layer in counted
        ],
    }


def _task(victim: Victim, defence: str, image: _Image, seed: int) -> LeakingImage:
    observation, truth, place, origin = image
    single = slice(place, place + 1)
    return leaking_image(
        victim,
        defence,
        observation,
        truth.images[single].clone(),
        truth.labels[single].clone(),
        seed=seed,
        origin=origin,
    )


def _leak(image: _Image, image_leak: GradientLeak) -> Leak:
    observation, truth, place, _ = image
    return Leak(seen=observation, place=place, label=int(truth.labels[place]), **vars(image_leak))


def _evenly(images: Sequence[_Image], most: int) -> list[_Image]:
    count = min(most, len(images))
    return [images[number * len(images) // count] for number in range(count)]


def _figures(leaks: Sequence[Leak], rows: Sequence[ImageResult], class_names: Sequence[str]) -> dict[str, object]:
    measured = correlation(leaks, rows)
    return {
        "jacobian_rank": round(statistics.median(leak.rank for leak in leaks)) if leaks else None,
        "unit_rmse": finite(statistics.median(leak.unit_rmse for leak in leaks)) if leaks else None,
        "influence": groups(leaks, class_names),
        "correlation": measured[0] if measured else None,
        "correlation_interval": measured[1] if measured else None,
    }


def _reason(images: int, some: Sequence[_Image], leaks: Sequence[Leak], compared: bool, *, noisy: bool) -> Reason:
    """What the figures are of, and what they leave out."""
    count = len(some)
    some_only = because("leakage-of-some", count=count, images=images)
    parts = [some_only if count < images else because("leakage-of-all", images=images)]
    if len(leaks) < count:
        parts.append(because("gradient-vanishes", count=count - len(leaks)))
    if noisy:
        parts.append(because("noise-fitted"))
    if any(len(truth.images) > 1 for _, truth, _, _ in some):
        parts.append(because("each-image-alone"))
    if any(observation.kind == "weights" for observation, _, _, _ in some):
        parts.append(because("one-gradient-for-all"))
    if not any(leak.influence is not None for leak in leaks):
        parts.append(because("no-defence-on-gradient"))
    elif not compared:
        parts.append(because("too-few-to-correlate", least=LEAST_FOR_CORRELATION))
    said = joined(parts)
    return Reason(f"{said}.", *said.codes)
