"""Joins reconstructions with the truth and scores them, image by image. Attacks never come here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.execution.files import Pictures
from attacker.audit.record.counting import counts
from attacker.audit.record.identification import rank_summaries
from attacker.audit.record.schema import (
    AttackSummary,
    FederationSummary,
    ImageResult,
    ImageScore,
    OutcomeName,
    VictimImage,
    finite,
)
from attacker.audit.record.trials import originals, share_interval, trials
from attacker.audit.scoring.identification import LineUp
from attacker.audit.scoring.placebos import (
    OTHER_UPDATE,
    SHUFFLED_UPDATE,
    BestGuess,
    beyond,
    same_images,
    updates_of_others,
)
from attacker.audit.truth.base import Truth
from attacker.audit.truth.best_guess import ClientImages, Guess, Guesses
from attacker.metrics.similarity import SSIM_WINDOW, label_accuracy, match_batch, mse, psnr, ssim
from attacker.reasons import because, coded, joined
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation

SUCCESS_THRESHOLD = 0.6
"""SSIM from which an image counts as reconstructed, as in the PRECODE paper, if it is beyond the best guess as well."""

OUTCOMES: dict[Outcome, OutcomeName] = {
    Outcome.CONVERGED: "converged",
    Outcome.ITERATION_LIMIT: "iteration_limit",
    Outcome.DIVERGED: "diverged",
    Outcome.NOT_APPLICABLE: "not_applicable",
    Outcome.FAILED: "failed",
}


Row = TypeVar("Row", bound=ImageScore)


@dataclass(frozen=True, kw_only=True)
class Placebos:
    """What the same attack made of updates that do not hold the images, each (n, channels, height, width) in [0, 1].

    Attributes:
        others: Guesses from other updates.
        shuffled: Guess from the update itself with its numbers shuffled.
    """

    others: Sequence[Tensor] = ()
    shuffled: Sequence[Tensor] = ()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Similarity of one reconstruction to its truth; None where it cannot be measured or is not finite."""

    ssim: float | None = None
    psnr: float | None = None
    mse: float | None = None


def score_images(images: Tensor, truth: Tensor) -> list[Scores]:
    """Compare images in order; images with a value that is not finite get empty scores.

    Args:
        images: (n, channels, height, width) in [0, 1].
        truth: The same shape.
    """
    scores = [Scores()] * len(images)
    good = torch.isfinite(images).flatten(1).all(dim=1).nonzero().flatten()
    if len(good) == 0:
        return scores
    left, right = images[good], truth[good]
    structure = ssim(left, right).tolist() if min(truth.shape[-2:]) >= SSIM_WINDOW else [None] * len(good)
    for i, s, p, m in zip(good.tolist(), structure, psnr(left, right), mse(left, right), strict=True):
        scores[i] = Scores(ssim=finite(s), psnr=finite(float(p)), mse=finite(float(m)))
    return scores


def in_order(images: Tensor, truth: Tensor) -> Tensor:
    """Reconstructions of a batch in the order of the true images that they are nearest to."""
    if len(images) == 1:
        return images
    # A diverged image must take the place that the others leave, not decide who belongs to whom.
    return images[match_batch(images.nan_to_num(nan=0.5), truth)]


def scored(images: Tensor | None, truth: Tensor, outcome: Outcome) -> list[Scores]:
    """Similarity of each image; one that diverged is like its truth in nothing, which means have to count.

    Args:
        images: In the order of the truth; None where there are none.
        truth: (images, channels, height, width) in [0, 1].
        outcome: Outcome of the attack.
    """
    if images is None and outcome is not Outcome.DIVERGED:
        return [Scores()] * len(truth)
    scores = [Scores()] * len(truth) if images is None else score_images(images, truth)
    nothing = Scores(ssim=0.0 if min(truth.shape[-2:]) >= SSIM_WINDOW else None)
    return [nothing if score.mse is None else score for score in scores]


def victim_ids(federation: str, number: int, count: int) -> list[str]:
    """Identifiers of the images of an update.

    >>> victim_ids("f1", 2, 2)
    ['f1-u2-i0', 'f1-u2-i1']
    """
    return [f"{federation}-u{number}-i{i}" for i in range(count)]


def as_images(reconstruction: Reconstruction, inputs: InputSpec) -> Tensor | None:
    """The reconstruction in [0, 1], (batch, channels, height, width); NaN stays NaN. None when there is none.

    Args:
        reconstruction: In the model's scale.
        inputs: Says the scale; one that is not known is estimated first, see `attacker.audit.inputs.image_scale`.
    """
    if reconstruction.inputs is None:
        return None
    return inputs.denormalise(reconstruction.inputs.detach().cpu().float()).clamp(0, 1)


def compared(
    result: Reconstruction,
    truth: Tensor | None,
    inputs: InputSpec,
    guesses: Sequence[Guess | None],
    placebos: Placebos | None = None,
) -> tuple[list[ImageScore], Tensor | None]:
    """What an attack made of each image of one update, beside the truth and the best guess.

    Args:
        result: Result of the attack.
        truth: (images, channels, height, width) in [0, 1], or None where it is not known.
        inputs: Domain of the images, with the scale on which they are compared.
        guesses: At each image without any update, None where there is none; as many as there are images.
        placebos: What the attack made of updates without these images, as far as that is known.

    Returns:
        A score for each image, and the images in the order of the truth: None where there are none, or too many.
    """
    images, reason, outcome = as_images(result, inputs), coded(result.reason), OUTCOMES[result.outcome]
    if images is not None and 0 < len(images) < len(guesses):
        # Who is not told how many images there are may find some of them.
        reason = joined([reason, because("fewer-images", got=len(images), expected=len(guesses))])
        missing = images.new_full((len(guesses) - len(images), *images.shape[1:]), torch.nan)
        images = torch.cat([images, missing])
    if images is not None and len(images) != len(guesses):
        reason, outcome = because("images-do-not-fit", got=len(images), expected=len(guesses)), "failed"
        images = None
    scores, best = [Scores()] * len(guesses), [BestGuess()] * len(guesses)
    if truth is not None:
        images = None if images is None else in_order(images, truth)
        scores = scored(images, truth, result.outcome)
        made = placebos or Placebos()
        best = beyond(guesses, truth, ((OTHER_UPDATE, made.others), (SHUFFLED_UPDATE, made.shuffled)))
    rows = [
        ImageScore(
            outcome=outcome,
            reason=str(reason),
            reason_codes=list(reason.codes),
            ssim=score.ssim,
            psnr=score.psnr,
            mse=score.mse,
            baseline_ssim=guess.mean_ssim,
            guess_ssim=guess.ssim,
            guess=guess.name,
        )
        for score, guess in zip(scores, best, strict=True)
    ]
    return rows, images


def compared_updates(
    results: Sequence[Reconstruction], truths: Sequence[Truth], inputs: InputSpec, guesses: Guesses
) -> list[list[ImageScore]]:
    """What one attack made of several updates; what it made of the others is a guess at the images of each.

    Args:
        results: One for each update.
        truths: Truths of each update.
        inputs: Domain of the images.
        guesses: At images without any update.

    Returns:
        For each update a score for each of its images, in the order of the truth.
    """
    made = [as_images(reconstruction, inputs) for reconstruction in results]
    others = updates_of_others(same_images([batch.images for batch in truths]))
    rows = []
    for result, truth, places in zip(results, truths, others, strict=True):
        placebos = Placebos(others=[images for place in places if (images := made[place]) is not None])
        image_guesses = guesses.at(truth.images, truth.labels)
        rows.append(compared(result, truth.images, inputs, image_guesses, placebos)[0])
    return rows


class UpdateEvaluation:
    """Scores every attack on one client update.

    Args:
        federation: The federation that the update belongs to.
        number: Number of the update among those attacked, for identifiers.
        observation: The update.
        inputs: Input domain, with the scale on which pictures are shown and scored.
        truth: True images, or None.
        guesses: At the images without any update; None without truth.
        client: Whose images they are, where its other images are known; those are guessed by, too.
        class_names: By class index; empty without truth.
        pictures: Where pictures are kept.
        same_as: For each image the identifier of the first victim that it is a copy of, or None; empty for none.
        images: Behind the update as attacks say, where neither truth nor tape does.
        line_up: Candidates of the images; None where they are told from none.
    """

    def __init__(
        self,
        *,
        federation: FederationSummary,
        number: int,
        observation: Observation,
        inputs: InputSpec,
        truth: Truth | None,
        guesses: Guesses | None,
        class_names: Sequence[str],
        pictures: Pictures,
        same_as: Sequence[str | None] = (),
        images: int = 1,
        line_up: LineUp | None = None,
        client: ClientImages | None = None,
    ) -> None:
        self._line_up = line_up
        self._federation = federation
        self._observation = observation
        self._inputs = inputs
        self._truth = truth
        self._pictures = pictures
        count = len(truth.images) if truth is not None else observation.batch_size or images
        self._ids = victim_ids(federation.id, number, count)
        self._same_as = same_as or [None] * count
        self._guesses: list[Guess | None] = [None] * count
        self._mean_image: Tensor | None = None
        if truth is not None and guesses is not None:
            self._guesses = guesses.at(truth.images, truth.labels, client)
            self._mean_image = guesses.mean_image
        self._class_names = class_names

    def victims(self) -> list[VictimImage]:
        """The attacked images; keeps their pictures when the truth is known."""
        # The same picture for every update of a federation, under the same name.
        baseline = self._pictures.keep(f"{self._federation.id}-mean", self._mean_image)
        return [self._victim(i, identifier, baseline) for i, identifier in enumerate(self._ids)]

    def _victim(self, i: int, identifier: str, baseline: str | None) -> VictimImage:
        label = None if self._truth is None else int(self._truth.labels[i])
        guess = self._guesses[i]
        named = label is not None and label < len(self._class_names)
        return VictimImage(
            id=identifier,
            federation=self._federation.id,
            round=self._observation.round,
            node=self._observation.node,
            image=i,
            label=label,
            label_name=self._class_names[label] if named and label is not None else None,
            truth=self._pictures.keep(f"{identifier}-truth", None if self._truth is None else self._truth.images[i]),
            baseline=baseline,
            guess=self._pictures.keep(f"{identifier}-guess", None if guess is None else guess.image),
            guess_ssim=None if guess is None else guess.ssim,
            guess_name="" if guess is None else guess.name,
            same_as=self._same_as[i],
            groups={} if self._truth is None else self._truth.groups_of(i),
        )

    def results(
        self,
        attack: str,
        result: Reconstruction,
        tag: str,
        placebos: Placebos | None = None,
        *,
        labels_granted: bool = False,
    ) -> list[ImageResult]:
        """One row for each image of the update.

        Args:
            attack: Spec, as asked for.
            result: What it returned; it failed where it raised.
            tag: Short and unique for the attack, for names of pictures.
            placebos: What it made of updates without these images, as far as that is known.
            labels_granted: Whether the attacker was given the labels.
        """
        truth = None if self._truth is None else self._truth.images
        scores, images = compared(result, truth, self._inputs, self._guesses, placebos)
        named = self._named(scores, images)
        return [
            ImageResult(
                **dict(scores[i]),
                **named[i],
                victim_id=identifier,
                federation=self._federation.id,
                attack=attack,
                model=self._federation.model,
                defence=self._federation.defence,
                dataset=self._federation.dataset,
                round=self._observation.round,
                node=self._observation.node,
                image=i,
                label_accuracy=self._label_accuracy(result, labels_granted),
                matching_loss=finite(result.matching_loss),
                seconds=result.seconds / len(self._ids),
                iterations=result.iterations,
                starting_loss=finite(result.starting_loss),
                late_fall=finite(result.late_fall),
                starts=result.starts,
                method=result.method,
                cut=result.cut,
                recovered_label=self._recovered_label(result, i),
                reconstruction=self._pictures.keep(f"{identifier}-{tag}", _to_show(images, i)),
            )
            for i, identifier in enumerate(self._ids)
        ]

    def _named(self, scores: Sequence[ImageScore], images: Tensor | None) -> list[dict[str, Any]]:
        """Fields of each result that say whom it is taken for; none where the attack was not made."""
        if self._line_up is None or all(score.outcome == "not_applicable" for score in scores):
            return [{} for _ in scores]
        return self._line_up.scores(images)

    def _recovered_label(self, result: Reconstruction, place: int) -> int | None:
        """The class that the attack used for an image; None where its order is not that of the images any more."""
        labels = result.labels
        reordered = self._truth is not None and len(self._ids) > 1
        if labels is None or reordered or tuple(labels.shape) != (len(self._ids),):
            return None
        return int(labels[place])

    def _label_accuracy(self, result: Reconstruction, granted: bool) -> float | None:
        recovered = result.labels
        if recovered is None or self._truth is None or len(recovered) != len(self._ids):
            return None
        right = label_accuracy(recovered.detach().cpu().long(), self._truth.labels)
        return None if granted and right == 1 else right


def _to_show(images: Tensor | None, place: int) -> Tensor | None:
    """One of an attack's images, or None where there are none or it was not found."""
    return None if images is None or bool(images[place].isnan().all()) else images[place]


def tally(rows: Sequence[Row]) -> tuple[list[Row], int, list[Row]]:
    """The images that an attack was tried on, on how many it failed or diverged, and those that were reconstructed."""
    tried = [row for row in rows if row.outcome != "not_applicable"]
    failed = sum(row.outcome in ("failed", "diverged") for row in tried)
    return tried, failed, [row for row in tried if counts(row, SUCCESS_THRESHOLD)]


def summarise(
    federation: str, attack: str, rows: Iterable[ImageResult], victims: Iterable[VictimImage] = ()
) -> AttackSummary:
    """Success of one attack on one federation.

    Images on which the attack failed or diverged count as not reconstructed; those that it does not fit are not
    counted. The success is null when no image has a truth that SSIM could be measured against. Its interval goes by
    independent trials, see `attacker.audit.record.trials`.

    Args:
        federation: Its identifier.
        attack: Spec.
        rows: Results, also of other attacks and federations.
        victims: The attacked images, of which some may be the same.
    """
    attack_rows = [row for row in rows if row.federation == federation and row.attack == attack]
    tried, failed, back = tally(attack_rows)
    scored = [row for row in tried if row.baseline_ssim is not None]
    similarity = [row.ssim for row in scored if row.ssim is not None]
    successes = len(back)
    baseline = sum((row.baseline_ssim or 0.0) >= SUCCESS_THRESHOLD for row in scored)
    guessed = sum((row.guess_ssim or 0.0) >= SUCCESS_THRESHOLD for row in scored)
    labels = [row.label_accuracy for row in tried if row.label_accuracy is not None]
    same = originals(victims)
    return AttackSummary(
        federation=federation,
        attack=attack,
        images=len(scored) if scored else len(tried),
        not_applicable=len(attack_rows) - len(tried),
        failed=failed,
        reasons=sorted({row.reason for row in attack_rows if row.reason}),
        reason_codes=sorted({code for row in attack_rows for code in row.reason_codes}),
        successes=successes if scored else None,
        success_rate=successes / len(scored) if scored else None,
        interval=share_interval(successes, len(scored), trials(scored, same)) if scored else None,
        mean_ssim=statistics.fmean(similarity) if similarity else None,
        median_ssim=statistics.median(similarity) if similarity else None,
        baseline_successes=baseline if scored else None,
        guess_successes=guessed if scored and all(row.guess_ssim is not None for row in scored) else None,
        label_accuracy=statistics.fmean(labels) if labels else None,
        seconds=sum(row.seconds for row in attack_rows),
        identification=rank_summaries(tried, same),
    )
