"""Gradient matching: optimise images until their gradient points where the observed one does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from attacker.attacks.attack import Attack, Progress, Reconstruction
from attacker.attacks.granted import check_labels
from attacker.attacks.matching import attack_piece
from attacker.attacks.piece import Piece, pieces
from attacker.attacks.replaying import why_not_replayed
from attacker.attacks.settings import check_settings
from attacker.engine import Draws, Trace, observed_gradient, trace
from attacker.labels import idlg_label
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation

_NO_LABELS = "the labels are unknown: none were granted, and iDLG recovers one image's label, from a last Linear layer"


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
    """Inverting Gradients (Geiping et al., NeurIPS 2020, arXiv 2003.14053), DLG and iDLG, by settings and presets.

    By default it minimises ``1 - cos(g(x), g*) + total_variation * TV(x)`` over all parameters by Adam, the learning
    rate falling tenfold at 3/8, 5/8 and 7/8, from N(0, 1) in the model's normalised scale. Of each restart the iterate
    with the smallest measured loss is kept, TV included; restarts then compete by the distance there, without TV.
    DLG (Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935) takes the squared distance, L-BFGS, no box and no prior.

    Labels: those granted at the call, else recovered by iDLG, which fits one image only, or optimised with the images
    and returned (the likeliest class of each image's own soft label). Models with a variational bottleneck are attacked
    as their authors did it, with fresh noise at every step and without adaptation; the smallest distance is then the
    luckiest of many draws. L-BFGS, which measures points twice, keeps one draw. Fits gradients and locally trained
    weights; a candidate holds all images of the client, in the order in which the steps use them. Field defaults are
    the command line defaults of the reference code.

    Attributes:
        iterations: Evaluations of all candidates, 1 or more: Adam's steps, or the trials of L-BFGS.
        learning_rate: Initial step in the normalised scale, positive; for L-BFGS a multiple of its own step.
        total_variation: Weight of mean |dh| + mean |dv|, 0 or more.
        restarts: Independent starts for each observation, 1 or more.
        signed: Whether Adam receives only the sign of the gradient.
        boxed: Whether candidates are clamped to valid images after every step.
        converged_below: Distance below which the outcome is "converged", in (0, 2] for "cosine", positive for "l2".
        distance: "cosine", or "l2", the squared distance, which needs the gradient's scale.
        optimiser: "adam" or "l-bfgs"; the second fits neither signs, box nor total variation.
        history: Steps that L-BFGS remembers, 1 or more; 0 for Adam.
        labels: How labels that were not granted are found: "recovered" first, or "joint" with the images by L-BFGS.
        local_training: How weights after several local steps are replayed: "unrolled" SGD steps (the protocol must
            announce steps or epochs, images of a step and learning rate), one gradient at "surrogate" weights between
            those sent and received, or "one-gradient" of all images at the weights sent. "auto" takes one gradient for
            one step, unrolls up to 16 steps where enough is announced, and takes the surrogate otherwise.

    Raises:
        ValueError: If a setting is out of its range, or contradicts another.
    """

    iterations: int = 24_000
    learning_rate: float = 0.1
    total_variation: float = 1e-4
    restarts: int = 1
    signed: bool = True
    boxed: bool = True
    converged_below: float = 0.01
    distance: str = "cosine"
    optimiser: str = "adam"
    history: int = 0
    labels: str = "recovered"
    local_training: str = "auto"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def name(self) -> str:
        """Name in the registry of the method that these settings are."""
        if self.distance == "cosine":
            return "inverting-gradients"
        return "dlg" if self.labels == "joint" else "idlg"

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        del victim
        if observation.batch_size is None:
            return "the batch size is unknown, and candidates need one"
        if not any(bool((value != 0).any()) for value in observation.update.values()):
            return "the update is zero everywhere: it has no direction to match"
        return why_not_replayed(self, observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generator: Generator,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations of the same round, weights and batch size together, in pieces of bounded size."""
        if not observations:
            return []
        seen = trace(victim)
        targets = [observed_gradient(one) for one in observations]
        known = [
            _labels(victim, seen, one, target, granted, recover=self.labels == "recovered")
            for one, target, granted in zip(observations, targets, labels, strict=True)
        ]
        draws = Draws.seeded(len(observations), self.restarts, generator)
        results = [Reconstruction.not_applicable(_NO_LABELS) for _ in observations]
        parts = list(pieces(self, victim, seen, observations, known))
        for number, part in enumerate(parts):
            labelled = [value for value in (known[index] for index in part) if value is not None]
            piece = Piece(
                victim=victim,
                seen=seen,
                observations=[observations[index] for index in part],
                targets=[targets[index] for index in part],
                labels=labelled or None,
                draws=draws.keep(part, [range(self.restarts)] * len(part)),
            )
            found = attack_piece(self, piece, _share(progress, number, len(parts)))
            for index, result in zip(part, found, strict=True):
                results[index] = result
        return results


def _labels(
    victim: Victim,
    seen: Trace,
    observation: Observation,
    target: Gradients,
    granted: Tensor | None,
    *,
    recover: bool,
) -> Tensor | None:
    classes = victim.inputs.classes
    if granted is not None:
        return check_labels(granted, batch_size=observation.batch_size or 1, classes=classes)
    if not recover or observation.batch_size != 1:
        return None
    return idlg_label(seen.last_linear(), target, classes=classes)


def _share(progress: Progress | None, number: int, pieces: int) -> Callable[[float, float | None], None] | None:
    """Progress of one piece as progress of the whole."""
    if progress is None:
        return None
    report = progress
    return lambda done, best: report((number + done) / pieces, best)
