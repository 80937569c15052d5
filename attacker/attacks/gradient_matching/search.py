"""Gradient matching of what is attacked together: the parts of a search, and what comes of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.gradient_matching.batch import Piece
from attacker.attacks.gradient_matching.joint_noise import JoinedNoise, NoisyObjective
from attacker.attacks.gradient_matching.parameter_filter import check_patterns
from attacker.attacks.gradient_matching.parts import (
    Adam,
    Cosine,
    Distance,
    Optimiser,
    PieceProgress,
    Prior,
    Problem,
    RacedTotalVariation,
    ReplayMode,
    Restarts,
    TotalVariation,
)
from attacker.attacks.gradient_matching.replay import replayed_products
from attacker.gradients.base import GradientProducts
from attacker.gradients.replay import Replay
from attacker.objectives.feature_prior import FeatureTarget
from attacker.objectives.image_priors import Prior as Penalty
from attacker.objectives.joint_labels import JointCandidates, JointObjective, SoftlyLabelled
from attacker.objectives.objective import BottleneckNoise, GradientObjective
from attacker.optim.first_order import Companions
from attacker.optim.initialisation import Grey, Normal, Start
from attacker.optim.problem import Objective
from attacker.optim.result import Matched
from attacker.optim.setting_ranges import check_choice
from attacker.reasons import Reason, because, joined
from attacker.victim import Victim

NORMALISED_BY: Final = ("batch", "returned")
"""What batch normalisation goes by while candidates are replayed."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """Gradient matching composed of parts.

    Attributes:
        distance: Between the candidates' gradients and the observed ones.
        optimiser: `Adam`, or `LBFGS`.
        priors: Penalties on images, each kind once.
        init: Where a search starts.
        restarts: How many starts each observation has.
        replay: How weights after several local steps are replayed.
        normalise_by: What batch normalisation goes by while candidates are replayed: "batch", the protocol's way, for
            clients in training mode the candidate's own images; or "returned", the statistics of the client's batch,
            which follow from the returned buffers (Huang et al., NeurIPS 2021).
        layers: Shell patterns of the parameters that are matched, separated by |, a leading ! leaves out;
            "deeper:0.5" for the deeper half of the layers, "" for all.
        memory: GiB for the candidates that run together; 0 takes 2 on a CPU and half of a GPU. Restarts that do not fit
            together run one part after another, unless they are compared on the way.

    Raises:
        ValueError: If parts do not fit together, or a setting is out of its range.
    """

    distance: Distance = Cosine()
    optimiser: Optimiser = Adam()
    priors: Sequence[Prior] = (TotalVariation(1e-4),)
    init: Start = Normal()
    restarts: Restarts = Restarts()
    replay: ReplayMode = ReplayMode.AUTO
    normalise_by: str = "batch"
    layers: str = ""
    memory: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "priors", tuple(self.priors))
        check_choice("local_training", self.replay, tuple(ReplayMode))
        object.__setattr__(self, "replay", ReplayMode(self.replay))
        check_choice("normalise_by", self.normalise_by, NORMALISED_BY)
        check_patterns(self.layers)
        if not 0 <= self.memory < float("inf"):
            raise ValueError(f"expected memory in GiB, 0 (for the default) or more, got {self.memory!r}")
        self.optimiser.check_beside(self.distance, self.priors, self.restarts)
        self._check_priors()
        if isinstance(self.init, Grey) and self.restarts.count > 1 and not self.optimiser.wanders:
            raise ValueError("start='grey' is one point, from which all restarts go the same way; set restarts to 1")

    def _check_priors(self) -> None:
        kinds = [TotalVariation if isinstance(prior, RacedTotalVariation) else type(prior) for prior in self.priors]
        twice = next((kind.__name__ for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise ValueError(f"expected each kind of prior once, got {twice} twice; add up the weights")
        if not self._coupled:
            return
        if self.restarts.count < 2:
            raise ValueError("group_consistency compares restarts of a victim; set restarts to 2 or more, or it to 0")
        if self.optimiser.plateau:
            raise ValueError(
                "plateau lets restarts leave one by one, and group_consistency makes each depend on the others; "
                "set one of them to 0"
            )

    @property
    def _coupled(self) -> bool:
        return any(prior.couples_restarts and prior.weight for prior in self.priors)

    @property
    def compares_restarts(self) -> bool:
        """Whether a victim's restarts must run together, whatever the memory."""
        return self.restarts.count > 1 and (self.restarts.halving > 0 or self._coupled)

    @property
    def raced(self) -> RacedTotalVariation | None:
        """The prior whose weight is raced, or None."""
        return next((prior for prior in self.priors if isinstance(prior, RacedTotalVariation)), None)

    def products(self, piece: Piece, victim: Victim) -> GradientProducts:
        """Products of candidates' updates with the observed ones; see `replayed_products`."""
        return replayed_products(
            piece,
            victim,
            mode=self.replay,
            distance=self.distance,
            layers=self.layers,
            measures_twice=self.optimiser.measures_twice,
        )

    def reconstruct(self, piece: Piece, progress: PieceProgress | None) -> list[Reconstruction]:
        """Attack observations together, one result each, in order."""
        began = time.perf_counter()
        victims, restarts = piece.draws.axes
        start = self.init.candidates(piece.victim.inputs, piece.batch_size, draws=piece.draws, like=piece.like)
        search = _with_labels if piece.labels is None else _with_noise
        solution = search(self, piece, start, progress)
        labels = solution.labels.expand(victims, restarts, piece.batch_size)
        seconds = (time.perf_counter() - began) / victims
        return [_result(self, solution, index, labels[index], seconds) for index in range(victims)]

    def minimised(
        self,
        piece: Piece,
        objective: Objective,
        start: Tensor,
        progress: PieceProgress | None,
        joined: JoinedNoise | None = None,
    ) -> Matched:
        """The candidates that the optimiser finds, those of a victim still apart.

        Args:
            piece: What is attacked.
            objective: Distance and priors.
            start: First candidates.
            progress: Receives the share done.
            joined: How candidates are made of images and noise, where they are.
        """
        project = piece.victim.inputs.clamp if self.optimiser.boxed else None
        companions = None
        if joined is not None:
            companions = Companions(first=joined.pixels, learning_rate=piece.noise.rate)
            project = partial(joined.within_bounds, piece=piece, boxed=self.optimiser.boxed)
        problem = Problem(
            objective=objective,
            start=start,
            draws=piece.draws,
            project=project,
            companions=companions,
            stop_below=self.distance.stop_below,
            halving=self.restarts.halving,
        )
        return self.optimiser.minimise(problem, progress)

    def objective(self, piece: Piece, victim: Victim, labels: Tensor) -> GradientObjective:
        """Distance and priors of images.

        Args:
            piece: What is attacked.
            victim: Whose loss is replayed: the piece's own, or one that takes soft labels.
            labels: (victims, 1, batch).
        """
        noise = BottleneckNoise(
            draws=piece.draws,
            batch=piece.batch_size,
            latents=piece.seen.latents,
            average=piece.noise.draws,
            known=_stacked_noise(piece),
        )
        return GradientObjective(
            products=self.products(piece, victim),
            measure=self.distance.measure,
            labels=labels,
            noise=noise.drawn_once(piece.like) if self.optimiser.measures_twice else noise,
            weighted_priors=_penalties(self.priors, piece),
        )


class _Found(NamedTuple):
    """What a search found.

    Attributes:
        matched: The images.
        labels: (victims, 1 or restarts, batch), with which they match.
        noise: (victims, restarts, batch, ...) of each random layer; () for none.
    """

    matched: Matched
    labels: Tensor
    noise: Sequence[Tensor] = ()


def _with_labels(search: Search, piece: Piece, start: Tensor, progress: PieceProgress | None) -> _Found:
    """Labels are not known, and are optimised with the images."""
    joint = JointCandidates(SoftlyLabelled(**_fields(piece.victim)), piece.batch_size)
    no_labels = torch.zeros(len(start), 1, piece.batch_size, dtype=torch.long, device=start.device)
    objective = JointObjective(joint=joint, images=search.objective(piece, joint.victim, no_labels))
    logits = piece.draws.normal(piece.batch_size, piece.victim.inputs.classes, like=start)
    matched = search.minimised(piece, objective, joint.join(start, logits), progress)
    images, logits = joint.split(matched.candidates)
    return _Found(replace(matched, candidates=images), logits.argmax(dim=-1))


def _with_noise(search: Search, piece: Piece, start: Tensor, progress: PieceProgress | None) -> _Found:
    """Noise that is not known is optimised with the images where the attack asks for it, and drawn otherwise."""
    labels = torch.stack(list(piece.labels or ())).to(start.device).unsqueeze(1)
    objective = search.objective(piece, piece.victim, labels)
    joined, known = JoinedNoise.of(piece), objective.noise
    if piece.noise.rate and joined.places:
        noisy = NoisyObjective(joined=joined, images=objective, mask_penalty=piece.noise.mask_penalty)
        matched = search.minimised(piece, noisy, joined.start(start, piece), progress, joined)
        images, searched = joined.split(matched.candidates)
        by_place = dict(zip(joined.places, searched, strict=True))
        every = [
            by_place[place] if place in by_place else known.of_layer(place, images)
            for place in range(len(known.latents))
        ]
        return _Found(replace(matched, candidates=images), labels, every)
    matched = search.minimised(piece, objective, start, progress)
    certain = known.latents and not joined.places
    noise = [known.of_layer(place, start) for place in range(len(known.latents))] if certain else ()
    return _Found(matched, labels, noise)


def _stacked_noise(piece: Piece) -> list[Tensor | None]:
    """Known noise of all victims, (victims, batch, ...) for each random layer, None where it is not known."""
    columns = zip(*(known.noise for known in piece.knowledge), strict=True)
    return [
        None
        if any(value is None for value in column)
        else torch.stack([value for value in column if value is not None])
        for column in columns
    ]


def _penalties(chosen: Sequence[Prior], piece: Piece) -> list[tuple[float, Penalty]]:
    """Penalties with their weights: on images alone, on known features, and on what else the model makes of images."""
    wanted = [prior for prior in chosen if prior.weight]
    penalties = [(prior.weight, prior.on(piece)) for prior in wanted if not prior.of_model]
    if piece.noise.feature_weight and piece.knowledge[0].features:
        penalties.append((piece.noise.feature_weight, _features(piece)))
    return penalties + [(prior.weight, prior.on(piece)) for prior in wanted if prior.of_model]


def _features(piece: Piece) -> FeatureTarget:
    first = piece.observations[0]
    shared = Replay(piece.victim, first.parameters, first.buffers)
    replays = [
        shared if other.parameters is first.parameters else Replay(piece.victim, other.parameters, other.buffers)
        for other in piece.observations
    ]
    targets = {
        name: torch.stack([known.features[name] for known in piece.knowledge]) for name in piece.knowledge[0].features
    }
    before = takewhile(lambda value: value is not None, _stacked_noise(piece))
    return FeatureTarget(replays, targets, [value for value in before if value is not None])


def _result(search: Search, solution: _Found, index: int, labels: Tensor, seconds: float) -> Reconstruction:
    """The best restart of one victim."""
    matched, total = solution.matched, search.optimiser.iterations
    restart = int(matched.best_restart()[index])
    distance = float(matched.distances[index, restart])
    measured = distance < float("inf")
    outcome = Outcome.CONVERGED if distance < search.distance.converged_below else Outcome.ITERATION_LIMIT
    reason = Reason("")
    if bool(matched.diverged[index, restart]):
        outcome = Outcome.DIVERGED
        restarts = search.restarts.count
        reason = because("distance-not-finite" if measured else "distance-not-finite.never", restarts=restarts)
    steps = int(matched.iterations[index].max())
    cut = matched.cut and outcome is not Outcome.CONVERGED
    if cut:
        reason = joined([reason, because("time-ended", steps=steps, total=total)])
    return Reconstruction(
        inputs=matched.candidates[index, restart] if measured else None,
        labels=labels[restart],
        outcome=outcome,
        reason=reason,
        matching_loss=max(0.0, distance) if measured else None,  # rounding may end below zero
        seconds=seconds,
        iterations=steps,
        starting_loss=_measured(matched.starts[index, restart]),
        late_fall=_measured(matched.late_falls[index, restart]) if measured else None,
        starts=matched.distances.shape[1],
        noise=tuple(layer_noise[index, restart] for layer_noise in solution.noise) if measured else (),
        cut=cut,
    )


def _measured(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _fields(victim: Victim) -> dict[str, Any]:
    return {"model": victim.model, "inputs": victim.inputs, "name": victim.name, "form": victim.form}
