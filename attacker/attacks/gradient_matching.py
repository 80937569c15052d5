"""Gradient matching: optimise images until their gradient points where the observed one does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from attacker.attacks.adaptation import PLAIN, Knowledge, NoiseSearch
from attacker.attacks.as_trained import AsTrained, as_trained
from attacker.attacks.attack import Attack, Progress, Reconstruction
from attacker.attacks.bounded import attack_bounded, better, pieces_within_budget, share
from attacker.attacks.known_labels import known_labels
from attacker.attacks.label_trial import labels_to_try, with_trial, without_labels
from attacker.attacks.layers import matched_parameters
from attacker.attacks.piece import group_pieces
from attacker.attacks.race import Size, by_trial, heat_of, raced
from attacker.attacks.replaying import weights_may_differ, why_not_replayed
from attacker.attacks.settings import check_settings
from attacker.engine import Draws, observed_gradient, trace, why_no_batch_statistics
from attacker.engine.deadline import share_of_time
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class GradientMatching(Attack):
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

    Attributes:
        iterations: Evaluations of all candidates, 1 or more: Adam's steps, or the trials of L-BFGS.
        learning_rate: Initial step in the normalised scale, positive; for L-BFGS a multiple of its own step.
        total_variation: Weight of mean |dh| + mean |dv|, 0 or more.
        total_variations: Weights that are raced for each update in its place, two or more, such as
            "1e-6|1e-4|1e-2|1e-1"; see `attacker.attacks.race`. "" for the one of ``total_variation``.
        restarts: Starts for each observation, 1 or more; independent unless ``group_consistency`` couples them.
        signed: Whether Adam receives only the sign of the gradient.
        boxed: Whether candidates are clamped to valid images after every step.
        converged_below: Distance below which the outcome is "converged", in (0, 2] for a cosine, else positive.
        distance: One of `attacker.engine.DISTANCES`: "cosine", or "l2", the squared distance, or "l1", the absolute
            one, which need the gradient's scale ("-relative" to the observed gradient's, or not: "l1-direction");
            "-kept" over the elements that pruning kept.
        optimiser: "adam" or "l-bfgs"; the second fits neither signs, box nor total variation.
        history: Steps that L-BFGS remembers, 1 or more; 0 for Adam.
        labels: How labels that were not granted are found: "recovered" first, or "joint" with the images by L-BFGS.
        memory: GiB for the candidates that run together; 0 takes 2 on a CPU and half of a GPU. Restarts that do not fit
            together run one part after another, unless ``halving`` or ``group_consistency`` compares them.
        start: "normal" in the normalised scale, "uniform" over valid images, "grey" (the mean image), or "patterned-N",
            a random N x N tile repeated.
        schedule: Of Adam's rate: "step" as above, "constant" (the one that fits L-BFGS), "linear" or "cosine" to 0.
        warmup: Iterations over which the rate rises to the schedule, 0 or more.
        sign_softness: With ``signed``, s > 0 replaces the sign of the gradient g by tanh(g / s); 0 is the sign.
        langevin: Standard deviation of noise added to every step, as a multiple of the learning rate, 0 or more.
        stop_below: Distance below which a victim is done, at most ``converged_below``; 0 goes on.
        plateau: Iterations without a gain of 1 % after which a candidate goes on with the next fall of the learning
            rate, and is done when there is none left; 0 waits for ever.
        halving: How often the worse half of the restarts is dropped; needs 2**halving of them.
        image_norm: Weight of the mean square of the pixels in the normalised scale, 0 or more.
        batch_norm: Weight of the distance to the running statistics of BatchNorm layers, 0 or more.
        group_consistency: Weight of the mean squared difference to the restarts' consensus, 0 or more.
        group_mean: The consensus: "mean", or "registered", the mean after shifting each restart to fit.
        method: Name of the method that these settings are, as in the registry; changes nothing else.
        local_training: How weights after several local steps are replayed: "unrolled" SGD steps (the protocol must
            announce steps or epochs, images of a step and learning rate), one gradient at "surrogate" weights between
            those sent and received, or "one-gradient" of all images at the weights sent. "auto" takes one gradient for
            one step, unrolls up to 16 steps where enough is announced, and takes the surrogate otherwise.
        iterate: What a search by Adam that ran to its end gives: the "last" iterate, as in the reference code, or the
            "best", with the smallest measured loss. One that ended early gives the best.
        layers: Shell patterns of the parameters that are matched, separated by |, a leading ! leaves out; "" for all.

    Raises:
        ValueError: If a setting is out of its range, or contradicts another.
    """

    iterations: int = 24_000
    learning_rate: float = 0.1
    total_variation: float = 1e-4
    total_variations: str = ""
    restarts: int = 1
    signed: bool = True
    boxed: bool = True
    converged_below: float = 0.01
    distance: str = "cosine"
    optimiser: str = "adam"
    history: int = 0
    labels: str = "recovered"
    memory: float = 0.0
    start: str = "normal"
    schedule: str = "step"
    warmup: int = 0
    sign_softness: float = 0.0
    langevin: float = 0.0
    stop_below: float = 0.0
    plateau: int = 0
    halving: int = 0
    image_norm: float = 0.0
    batch_norm: float = 0.0
    group_consistency: float = 0.0
    group_mean: str = "mean"
    method: str = "inverting-gradients"
    local_training: str = "auto"
    layers: str = ""
    iterate: str = "last"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def name(self) -> str:
        """Name in the registry of the method that these settings are."""
        return self.method

    @property
    def compares_restarts(self) -> bool:
        """Whether a victim's restarts must run together, whatever the memory."""
        return self.restarts > 1 and (self.halving > 0 or self.group_consistency > 0)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of total variation, or those that are raced, the smallest first."""
        if not self.total_variations:
            return (self.total_variation,)
        return tuple(sorted(float(weight) for weight in self.total_variations.split("|")))

    @property
    def evaluations(self) -> int:
        """Evaluations of candidates for one update, those of a race included."""
        whole = self.iterations * self.restarts
        if not self.total_variations:
            return whole
        heats = [heat_of(self, weight) for weight in self.weights]
        short = sum(heat.iterations * heat.restarts for heat in heats)
        return short if heats[0].iterations == self.iterations else short + whole

    def refuses(self, victim: Victim, observation: Observation) -> str | None:
        """Why the attack cannot fit the observation, or None when it can."""
        if victim.why_no_loss is not None:
            return victim.why_no_loss
        if self.labels == "joint" and (other := victim.why_not_cross_entropy("a search for labels with the images")):
            return other
        if self.batch_norm:
            reason = why_no_batch_statistics(victim.model, observation.buffers)
            if reason is not None:
                return (
                    f"batch_norm={self.batch_norm:g} has nothing to compare with: {reason}; batch_norm=0 does without"
                )
        try:
            matched = matched_parameters(self.layers, observation.parameters)
        except ValueError as error:
            return str(error)
        if observation.batch_size is None:
            return "the batch size is unknown, and candidates need one"
        if not any(bool((observation.update[name] != 0).any()) for name in matched):
            return "the update is zero everywhere that counts: it has no direction to match"
        return why_not_replayed(self, observation)

    def run(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
    ) -> list[Reconstruction]:
        """Attack observations that are one problem together, in pieces of bounded size."""
        return self.search(victim, observations, labels, generators, progress, [Knowledge()] * len(observations))

    def search(
        self,
        victim: Victim,
        observations: Sequence[Observation],
        labels: Sequence[Tensor | None],
        generators: Sequence[Generator],
        progress: Progress | None,
        knowledge: Sequence[Knowledge],
        noise: NoiseSearch = PLAIN,
    ) -> list[Reconstruction]:
        """As `run`, with what an adaptive attack knows of each observation and makes of noise."""
        if not observations:
            return []
        draws = Draws.of_each(generators, self.restarts)
        results: list[Reconstruction | None] = [None] * len(observations)
        groups = as_trained(victim, observations)
        for number, group in enumerate(groups):
            with share_of_time(number, len(groups)):
                own = _Group(group, [knowledge[index] for index in group.indices], noise)
                found = self._run(
                    own,
                    [labels[index] for index in group.indices],
                    draws.keep(group.indices, [range(self.restarts)] * len(group.indices)),
                    [generators[index] for index in group.indices],
                    share(progress, number, len(groups)),
                )
            for index, one in zip(group.indices, found, strict=True):
                results[index] = one
        return [one for one in results if one is not None]

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
        joint = self.labels == "joint"
        known = [
            None if joint and granted is None else found for granted, (found, _) in zip(labels, recovered, strict=True)
        ]
        hypotheses = [
            [] if joint or granted is not None else labels_to_try(victim, observation, found)
            for observation, granted, found in zip(observations, labels, known, strict=True)
        ]
        before, after = progress, progress
        if any(hypotheses):
            before, after = share(progress, 0, 2), share(progress, 1, 2)
        tried = by_trial(self, group.search, hypotheses, generators, before)
        known = [
            own if one is None or one.labels is None else one.labels for own, one in zip(known, tried, strict=True)
        ]
        if self.total_variations:
            sizes = [group.size(self, place) for place in range(len(observations))]
            results = raced(self, group.search, sizes, known, generators, after)
        else:
            results = group.search(self, range(len(observations)), known, draws, after)
        return [
            without_labels(reason) if one is None else with_trial(one, trial, reason)
            for one, trial, (_, reason) in zip(results, tried, recovered, strict=True)
        ]


@dataclass(frozen=True)
class _Group:
    """Updates whose clients ran the model alike.

    Attributes:
        clients: The updates.
        knowledge: Of each.
        noise: What the attack makes of noise.
    """

    clients: AsTrained
    knowledge: Sequence[Knowledge]
    noise: NoiseSearch

    def size(self, settings: GradientMatching, place: int) -> Size:
        """How much one update tells about its images."""
        observation = self.clients.observations[place]
        names = self.knowledge[place].matched or matched_parameters(settings.layers, observation.parameters)
        compared = sum(int((observation.update[name] != 0).sum()) for name in names)
        inputs = self.clients.victim.inputs
        pixels = inputs.channels * inputs.height * inputs.width
        return Size(unknowns=(observation.batch_size or 1) * pixels, equations=max(1, compared))

    def search(
        self,
        settings: GradientMatching,
        places: Sequence[int],
        labels: Sequence[Tensor | None],
        draws: Draws,
        progress: Progress | None,
    ) -> list[Reconstruction | None]:
        """Results of some of the updates, None for those without labels unless they are searched with the images."""
        clients = self.clients.some(places)
        seen = trace(clients.victim)
        groups = group_pieces(
            clients,
            seen,
            [observed_gradient(one) for one in clients.observations],
            labels,
            draws,
            knowledge=[self.knowledge[place] for place in places],
            noise=self.noise,
            joint=settings.labels == "joint",
            may_differ=weights_may_differ(
                settings, clients.victim, seen, clients.observations, [self.knowledge[place] for place in places]
            ),
        )
        parts = [part for group in groups for part in pieces_within_budget(settings, group)]
        results: list[Reconstruction | None] = [None] * len(places)
        for number, part in enumerate(parts):
            with share_of_time(number, len(parts)):
                for index, found in attack_bounded(settings, part, share(progress, number, len(parts))):
                    results[index] = better(results[index], found)
        return results
