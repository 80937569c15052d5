"""Gradient matching: optimise images until their gradient points where the observed one does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Generator, Tensor

from attacker.attacks.attack import Attack, Outcome, Progress, Reconstruction
from attacker.attacks.granted import check_labels
from attacker.attacks.joint_labels import JointCandidates, SoftlyLabelled
from attacker.attacks.settings import check_settings
from attacker.engine import (
    DISTANCES,
    LBFGS,
    Descent,
    Matched,
    Replay,
    Trace,
    candidates_at_once,
    gradient_products,
    group_observations,
    observed_gradient,
    trace,
    why_not_one_step,
)
from attacker.labels import idlg_label
from attacker.victim import Victim
from fl_precode.observation import Gradients, Observation

# Pairs of L-BFGS for many candidates would fill the memory long before the candidates do: 512 MB in float32.
_HISTORY_NUMBERS_AT_ONCE = 2**27

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
    luckiest of many draws. L-BFGS, which measures points twice, keeps one draw. Fits gradients, and weights after one
    announced local step (or none announced). Field defaults are the command line defaults of the reference code.

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
        if self.distance == "l2" and observation.kind == "weights" and observation.protocol.learning_rate is None:
            return "the learning rate was not announced: a squared distance needs the gradient's scale, cosine does not"
        if observation.batch_size is None:
            return "the batch size is unknown, and candidates need one"
        if not any(bool((value != 0).any()) for value in observation.update.values()):
            return "the update is zero everywhere: it has no direction to match"
        return why_not_one_step(observation)

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
        results = [Reconstruction.not_applicable(_NO_LABELS) for _ in observations]
        pieces = list(self._pieces(victim, seen, observations, known))
        for number, piece in enumerate(pieces):
            found = self._attack_together(
                victim,
                seen,
                [observations[index] for index in piece],
                [targets[index] for index in piece],
                [known[index] for index in piece],
                generator,
                _share(progress, number, len(pieces)),
            )
            for index, result in zip(piece, found, strict=True):
                results[index] = result
        return results

    def _pieces(
        self, victim: Victim, seen: Trace, observations: Sequence[Observation], labels: Sequence[Tensor | None]
    ) -> Iterator[list[int]]:
        """Indices to attack together; without labels only where they are optimised jointly."""
        for labelled in (True, False) if self.labels == "joint" else (True,):
            fits = [index for index, value in enumerate(labels) if (value is not None) == labelled]
            for group in group_observations([observations[index] for index in fits]):
                batch_size = observations[fits[group[0]]].batch_size or 1
                at_once = candidates_at_once(victim.model, seen, batch_size=batch_size)
                if self.history:
                    numbers = 2 * self.history * batch_size * math.prod(victim.inputs.shape)
                    at_once = min(at_once, _HISTORY_NUMBERS_AT_ONCE // numbers)
                victims = max(1, at_once // self.restarts)
                for first in range(0, len(group), victims):
                    yield [fits[index] for index in group[first : first + victims]]

    def _attack_together(
        self,
        victim: Victim,
        seen: Trace,
        observations: Sequence[Observation],
        targets: Sequence[Gradients],
        labels: Sequence[Tensor | None],
        generator: Generator,
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations that share weights and batch size; all or none have ``labels``, (batch,) each."""
        began = time.perf_counter()
        one = observations[0]
        like = next(iter(one.parameters.values()))
        axes = (len(observations), self.restarts, one.batch_size or 1)

        def draw(*shape: int) -> Tensor:
            noise = torch.randn(*axes, *shape, generator=generator, dtype=like.dtype, device=generator.device)
            return noise.to(like.device)

        known = [value for value in labels if value is not None]
        soft = None if known else JointCandidates(SoftlyLabelled(**_fields(victim)), axes[2])
        replay = Replay(soft.victim if soft else victim, one.parameters, one.buffers)
        measure = DISTANCES[self.distance]
        products = gradient_products(replay, targets, seen, batch_size=axes[2])
        start = draw(*victim.inputs.shape)
        # A line search must see the same loss when it looks twice, Adam is given fresh noise at each step.
        fixed = [draw(latent) for latent in seen.latents] if self.optimiser == "l-bfgs" else None

        def distance(candidates: Tensor, assumed: Tensor) -> Tensor:
            return measure(products(candidates, assumed, fixed or [draw(latent) for latent in seen.latents]))

        if soft is None:
            assumed = torch.stack(known).to(like.device).unsqueeze(1)
            matched = self._search(lambda x: distance(x, assumed), start, victim, progress)
            used = [assumed[index].expand(self.restarts, -1) for index in range(len(observations))]
        else:
            joined = soft.join(start, draw(victim.inputs.classes))
            matched = self._search(soft.distance(distance), joined, victim, progress)
            images, logits = soft.split(matched.candidates)
            matched, used = replace(matched, candidates=images), list(logits.argmax(dim=-1))
        seconds = (time.perf_counter() - began) / len(observations)
        return [self._result(matched, index, used[index], seconds) for index in range(len(observations))]

    def _search(
        self, distance: Callable[[Tensor], Tensor], start: Tensor, victim: Victim, progress: Progress | None
    ) -> Matched:
        if self.optimiser == "l-bfgs":
            search = LBFGS(iterations=self.iterations, learning_rate=self.learning_rate, history=self.history)
            return search.run(distance, start, progress=progress)
        descent = Descent(
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            total_variation=self.total_variation,
            signed=self.signed,
        )
        project = victim.inputs.clamp if self.boxed else None
        return descent.run(distance, start, project=project, progress=progress)

    def _result(self, matched: Matched, index: int, labels: Tensor, seconds: float) -> Reconstruction:
        restart = int(matched.best_restart()[index])
        distance = float(matched.distances[index, restart])
        measured = distance < float("inf")
        outcome = Outcome.CONVERGED if distance < self.converged_below else Outcome.ITERATION_LIMIT
        reason = ""
        if bool(matched.diverged[index, restart]):
            outcome = Outcome.DIVERGED
            kept = "the best iterate before that is kept" if measured else "it was finite at no iterate"
            reason = f"the gradient distance became non-finite in all of {self.restarts} restart(s); {kept}"
        return Reconstruction(
            inputs=matched.candidates[index, restart] if measured else None,
            labels=labels[restart],
            outcome=outcome,
            reason=reason,
            matching_loss=max(0.0, distance) if measured else None,  # rounding may end below zero
            seconds=seconds,
            iterations=matched.iterations,
        )


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


def _fields(victim: Victim) -> dict[str, Any]:
    return {"model": victim.model, "inputs": victim.inputs, "name": victim.name}


def _share(progress: Progress | None, number: int, pieces: int) -> Callable[[float, float | None], None] | None:
    """Progress of one piece as progress of the whole."""
    if progress is None:
        return None
    report = progress
    return lambda done, best: report((number + done) / pieces, best)


_DLG = GradientMatching(
    iterations=6_000,
    learning_rate=1.0,
    total_variation=0.0,
    signed=False,
    boxed=False,
    converged_below=1e-6,
    distance="l2",
    optimiser="l-bfgs",
    history=100,
)

PRESETS: Mapping[str, GradientMatching] = MappingProxyType(
    {
        # Command line defaults of the reference code of Geiping et al.
        "inverting-gradients": GradientMatching(iterations=24_000, learning_rate=0.1, total_variation=1e-4),
        # The notebook of PRECODE (Scheliga et al., WACV 2022).
        "precode-paper": GradientMatching(iterations=7_000, learning_rate=0.01, total_variation=1e-6),
        # Zhu, Liu, Han (NeurIPS 2019) and Zhao, Mopuri, Bilen (arXiv 2001.02610), whose code stops below 1e-6. Their
        # 300 steps of torch's L-BFGS are 20 evaluations each.
        "dlg": replace(_DLG, labels="joint"),
        "idlg": _DLG,
    }
)
"""Published settings by name."""
