"""Gradient matching: optimise images until their gradient points where the observed one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from torch import Generator, Tensor

from attacker.attacks.base import Attack, Progress, Reconstruction
from attacker.attacks.gradient_matching.batch import group_pieces
from attacker.attacks.gradient_matching.memory import attack_bounded, better, pieces_within_budget, share
from attacker.attacks.gradient_matching.options import Option, with_options
from attacker.attacks.gradient_matching.parameter_filter import matched_in
from attacker.attacks.gradient_matching.race import Size, by_trial, evaluations, raced
from attacker.attacks.gradient_matching.replay import weights_may_differ, why_not_replayed
from attacker.attacks.gradient_matching.search import Search
from attacker.attacks.known_labels import known_labels
from attacker.attacks.label_trial import labels_to_try, with_trial, without_labels
from attacker.attacks.side_information import PLAIN, NoiseSearch, SideInformation
from attacker.gradients.client_mode import AsTrained, as_trained
from attacker.gradients.observed import observed_gradient
from attacker.gradients.returned_statistics import why_not_one_batch
from attacker.gradients.trace import trace
from attacker.optim.deadline import share_of_time
from attacker.optim.random_streams import Draws
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Search, Attack):
    """Inverting Gradients (Geiping et al., NeurIPS 2020, arXiv 2003.14053), DLG and iDLG, by settings and presets.

    By default it minimises ``1 - cos(g(x), g*) + total_variation * TV(x)`` over all parameters by Adam, the learning
    rate falling tenfold at 3/8, 5/8 and 7/8, from N(0, 1) in the model's normalised scale. Of each restart the last
    iterate is kept, which was measured; restarts then compete by the distance there, without priors.
    DLG (Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935) takes the squared distance, L-BFGS, no box and no prior; See
    Through Gradients (Yin et al., CVPR 2021, arXiv 2104.07586) adds priors on the image, on its statistics at BatchNorm
    layers and on the agreement of restarts.

    Labels: those granted at the call, else recovered (`best_labels`), or optimised with the images
    and returned (the likeliest class of each image's own soft label). Models with a variational bottleneck are attacked
    as their authors did it, with fresh noise at every step and without adaptation; the smallest distance is then the
    luckiest of many draws. L-BFGS, which measures points twice, keeps one draw. Fits gradients and locally trained
    weights; a candidate holds all images of the client, in the order in which the steps use them. Field defaults are
    the command line defaults of the reference code.

    Specs name the same by flat options (`attacker.attacks.gradient_matching.options`).

    >>> from fl_precode.attacks import LBFGS, L2
    >>> dlg = GradientMatching(distance=L2(), optimiser=LBFGS(iterations=300, joint_labels=True), priors=[])
    >>> dlg.with_options(history=10).optimiser.history
    10

    Attributes:
        distance: `Cosine`, `L2`, `L1` or `Signs`, with the distances below which a search has converged, or ends.
        optimiser: `Adam` or `LBFGS`; the second has no signs, box or schedule, fits no prior with kinks, and can search
            for labels.
        priors: Any of `TotalVariation` or `RacedTotalVariation`, `ImageNorm`, `GroupConsistency` and `BNStatistics`.
        init: `Normal`, `Uniform`, `Grey` or `Patterned`.
        restarts: `Restarts`, which may be halved on the way.
        replay: A `ReplayMode`.
        normalise_by: "batch" or "returned"; see `Search`.
        layers: Patterns of the parameters that are matched; see `Search`.
        memory: GiB for the candidates that run together; see `Search`.
        method: Name of the method that these settings are, as in the registry; changes nothing else.

    Raises:
        ValueError: If a setting is out of its range, or parts do not fit together.
    """

    method: str = "inverting-gradients"

    @property
    def name(self) -> str:
        """Name in the registry of the method that these settings are."""
        return self.method

    def with_options(self, **options: Option) -> Self:
        """The same attack with some options of specs in place of what its parts say.

        Raises:
            TypeError: If an option does not exist.
            ValueError: If a value is out of its range, or contradicts another.

        >>> GradientMatching().with_options(iterations=600, signed=False).optimiser.iterations
        600
        """
        return with_options(self, **options)

    @property
    def evaluations(self) -> int:
        """Evaluations of candidates for one update, those of a race included."""
        return evaluations(self)

    def refuses(self, victim: Victim, observation: Observation) -> Reason | None:
        """Reason why the attack cannot fit the observation, or None when it can."""
        if victim.why_no_loss is not None:
            return victim.why_no_loss
        if self.optimiser.joint_labels and (
            other := victim.why_not_cross_entropy("a search for labels with the images")
        ):
            return other
        for prior in self.priors:
            if (reason := prior.refuses(victim, observation)) is not None:
                return reason
        if self.normalise_by == "returned" and (why := why_not_one_batch(victim.model, observation)) is not None:
            return because("statistics-needed", option="normalise_by=returned", why=why)
        try:
            matched = matched_in(victim.model, self.layers, observation.parameters)
        except ValueError as error:
            return because("no-such-layers", error=error)
        if observation.batch_size is None:
            return because("batch-size-unknown")
        if not any(bool((observation.update[name] != 0).any()) for name in matched):
            return because("no-direction")
        return why_not_replayed(self.replay, self.distance, observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations that are one problem together, in pieces of bounded size."""
        return self.search(victim, observations, labels, generators, progress, [SideInformation()] * len(observations))

    def search(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
        knowledge: Sequence[SideInformation],
        noise: NoiseSearch = PLAIN,
    ) -> list[Reconstruction]:
        """As `run`, with what an adaptive attack knows of each observation and makes of noise."""
        if not observations:
            return []
        draws = Draws.of_each(generators, self.restarts.count)
        results: list[Reconstruction | None] = [None] * len(observations)
        groups = as_trained(victim, observations, by_returned=self.normalise_by == "returned")
        for number, group in enumerate(groups):
            with share_of_time(number, len(groups)):
                known_group = _Group(group, [knowledge[index] for index in group.indices], noise)
                reconstructions = self._run(
                    known_group,
                    [labels[index] for index in group.indices],
                    draws.keep(group.indices, [range(self.restarts.count)] * len(group.indices)),
                    [generators[index] for index in group.indices],
                    share(progress, number, len(groups)),
                )
            for index, reconstruction in zip(group.indices, reconstructions, strict=True):
                results[index] = reconstruction
        return [result for result in results if result is not None]

    def _run(
        self,
        group: _Group,
        labels: Sequence[Tensor | None],
        draws: Draws,
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        victim, observations = group.clients.victim, group.clients.observations
        recovered = known_labels(victim, observations, labels, generators)
        joint = self.optimiser.joint_labels
        known = [
            None if joint and granted is None else guess for granted, (guess, _) in zip(labels, recovered, strict=True)
        ]
        hypotheses = [
            [] if joint or granted is not None else labels_to_try(victim, observation, guess)
            for observation, granted, guess in zip(observations, labels, known, strict=True)
        ]
        before, after = progress, progress
        if any(hypotheses):
            before, after = share(progress, 0, 2), share(progress, 1, 2)
        tried = by_trial(self, group.search, hypotheses, generators, before)
        known = [
            guess if trial is None or trial.labels is None else trial.labels
            for guess, trial in zip(known, tried, strict=True)
        ]
        if self.raced is not None:
            sizes = [group.size(self, place) for place in range(len(observations))]
            results = raced(self, self.raced, group.search, sizes, known, generators, after)
        else:
            results = group.search(self, range(len(observations)), known, draws, after)
        return [
            without_labels(reason) if result is None else with_trial(result, trial, reason)
            for result, trial, (_, reason) in zip(results, tried, recovered, strict=True)
        ]


@dataclass(frozen=True)
class _Group:
    """Updates whose clients ran the model alike.

    Attributes:
        clients: The updates.
        knowledge: Knowledge about each.
        noise: What the attack makes of noise.
    """

    clients: AsTrained
    knowledge: Sequence[SideInformation]
    noise: NoiseSearch

    def size(self, settings: Search, place: int) -> Size:
        """How much one update tells about its images."""
        observation = self.clients.observations[place]
        victim, known = self.clients.victim, self.knowledge[place].matched
        names = known or matched_in(victim.model, settings.layers, observation.parameters)
        compared = sum(int((observation.update[name] != 0).sum()) for name in names)
        inputs = victim.inputs
        pixels = inputs.channels * inputs.height * inputs.width
        return Size(unknowns=(observation.batch_size or 1) * pixels, equations=max(1, compared))

    def search(
        self,
        settings: Search,
        places: Sequence[int],
        labels: Sequence[Tensor | None],
        draws: Draws,
        progress: Progress | None,
    ) -> list[Reconstruction | None]:
        """Results of some of the updates, None for those without labels unless they are searched with the images."""
        clients = self.clients.some(places)
        model_trace = trace(clients.victim)
        groups = group_pieces(
            clients,
            model_trace,
            [observed_gradient(observation) for observation in clients.observations],
            labels,
            draws,
            knowledge=[self.knowledge[place] for place in places],
            noise=self.noise,
            joint=settings.optimiser.joint_labels,
            may_differ=weights_may_differ(
                settings.replay,
                settings.distance,
                clients.victim,
                model_trace,
                clients.observations,
                [self.knowledge[place] for place in places],
            ),
        )
        parts = [part for group in groups for part in pieces_within_budget(settings, group)]
        results: list[Reconstruction | None] = [None] * len(places)
        for number, part in enumerate(parts):
            with share_of_time(number, len(parts)):
                for index, result in attack_bounded(settings, part, share(progress, number, len(parts))):
                    results[index] = better(results[index], result)
        return results
