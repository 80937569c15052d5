"""The search for the cheapest defence that stands every attack without costing accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.trials import share_interval
from attacker.experiments.attack_sets import every_attack_on, is_quick, patient_attacks_on
from attacker.experiments.cells import AttackedVictims, Cell, FederationRun, Made, Setup, VictimScore
from attacker.experiments.defence_search.candidates import CandidateDefence, candidates
from attacker.experiments.defence_search.prefetch import Ahead
from attacker.experiments.defence_search.result import Recommendation, Trial, sentence
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from attacker.experiments.precode.summarise import score
from fl_precode.private_file import write_private

RECOMMENDATION_NAME = "recommendation.json"
TOLERANCE = 0.01
LEARNT = 0.05
"""Above the most frequent class: an undefended model below that has learnt nothing to compare by."""
PROTOCOLS: tuple[Literal["fedsgd", "fedavg"], ...] = ("fedsgd", "fedavg")

UNDEFENDED = CandidateDefence(defence="none", batch_size=1, local_steps=1, payload_bytes=0, gradients=1)
_TOO_WEAK = (
    "the attacks bring nothing back without any defence either{reached}, so they cannot tell defences apart. Take more "
    "iterations (--scale), other attacks (--attacks) or another model."
)

Which = Literal["quick", "all", "patient"]
"""Attacks: formulas, all at the scale's budget, or those that search, with more of everything."""

Teller = Callable[[str, float], None]


@dataclass(frozen=True, kw_only=True)
class _Rejection:
    verdict: Literal["falls", "falls when judged", "costs accuracy", "cannot be judged"]
    reason: str


@dataclass(kw_only=True)
class _Closest:
    """What came nearest to an image in one trial."""

    ssim: float | None = None
    attack: str = ""

    def see(self, attack: str, victims: Sequence[VictimScore]) -> None:
        for victim in victims:
            if victim.ssim is not None and (self.ssim is None or victim.ssim > self.ssim):
                self.ssim, self.attack = victim.ssim, attack


@dataclass(kw_only=True)
class _Course:
    """One trial while it is made."""

    candidate: CandidateDefence
    closest: _Closest = field(default_factory=_Closest)
    accuracy: dict[str, float | None] = field(default_factory=dict)
    undefended: dict[str, float | None] = field(default_factory=dict)


class DefenceSearch:
    """Tries candidates by rising cost; the first that holds on images the search has not seen is recommended.

    Args:
        experiment: One image set and one model; its scale says how many victims and iterations.
        folder: Of finished cells; a search that was stopped goes on where it was.
        tell: Hears of the work at hand and the share of the candidates that are done.
        workers: Processes, one thread each. What is found does not depend on them.
    """

    def __init__(self, experiment: Experiment, folder: Path, tell: Teller | None = None, *, workers: int = 1) -> None:
        self._experiment = experiment
        self._folder = folder
        self._ahead = Ahead(experiment, folder, workers=workers)
        self._tell = tell or (lambda text, share: None)
        (self._data,), (self._model,) = experiment.data, experiment.models
        self._seconds: dict[Cell, float] = {}

    def run(self, *, at_most: int) -> Recommendation:
        """Search, and keep the result as ``recommendation.json``.

        Args:
            at_most: Candidates to try.

        Raises:
            ValueError: If model and images do not fit, or a finished cell was altered.
            RuntimeError: If a worker process died.
        """
        with self._ahead:
            return self._run(at_most)

    def _run(self, at_most: int) -> Recommendation:
        tried = candidates(self._experiment, self._data, self._model, at_most=at_most)
        trials: list[Trial] = []
        self._tell("without a defence", 0.0)
        bare = _Course(candidate=UNDEFENDED)
        without = self._attacked(bare, "validation", (0,)) or self._attacked(
            bare, "validation", self._experiment.scale.attacked, which="patient"
        )
        if without is None or without.verdict != "falls":
            reached = "" if bare.closest.ssim is None else f" (SSIM {bare.closest.ssim:.2f} at most)"
            result = self._result(trials, f"{wording.model_name(self._model)}: {_TOO_WEAK.format(reached=reached)}")
            return self._kept(result)
        for number, candidate in enumerate(tried):
            self._tell(
                f"{candidate.defence}, batch {candidate.batch_size} x {candidate.local_steps}", number / len(tried)
            )
            trials.append(self._trial(candidate))
            if trials[-1].verdict == "recommended":
                break
        return self._kept(self._result(trials))

    def _kept(self, result: Recommendation) -> Recommendation:
        write_private(self._folder / RECOMMENDATION_NAME, (result.model_dump_json(indent=1) + "\n").encode())
        return result

    def _result(self, trials: Sequence[Trial], text: str = "") -> Recommendation:
        recommended = next((trial for trial in trials if trial.verdict == "recommended"), None)
        victims = self._experiment.scale.victims
        bound = share_interval(0, victims, victims)[1]
        return Recommendation(
            data=images(self._data, self._experiment.data_root).name,
            model=self._model,
            scale=self._experiment.scale.name,
            seed=self._experiment.seed,
            found=recommended is not None,
            sentence=text or sentence(self._model, trials, recommended, self._experiment.scale, bound),
            recommended=recommended,
            trials=list(trials),
            victims=victims,
            upper_bound=bound if recommended else None,
            seconds_of_attacks=sum(self._seconds.values()),
        )

    def _trial(self, candidate: CandidateDefence) -> Trial:
        """Formulas first, which take seconds, then accuracy, then searches, which take minutes, then patient ones."""
        course = _Course(candidate=candidate)
        rejected = (
            self._attacked(course, "validation", (0,), which="quick")
            or self._accuracy(course)
            or self._attacked(course, "validation", (0,))
            or self._attacked(course, "judged", self._experiment.scale.attacked)
            or self._attacked(course, "judged", self._experiment.scale.attacked, which="patient")
        )
        return Trial(
            defence=candidate.defence,
            batch_size=candidate.batch_size,
            local_steps=candidate.local_steps,
            payload_bytes=candidate.payload_bytes,
            gradients=candidate.gradients,
            verdict=rejected.verdict if rejected else "recommended",
            reason=rejected.reason if rejected else "",
            closest_ssim=course.closest.ssim,
            closest_attack=course.closest.attack,
            accuracy=course.accuracy,
            undefended=course.undefended,
        )

    def _attacked(
        self, course: _Course, part: Literal["validation", "judged"], epochs: Sequence[int], *, which: Which = "all"
    ) -> _Rejection | None:
        """The first attack that brings an image back, if there is one; formulas come first."""
        setup = self._setup(course.candidate.defence)
        fits = False
        for epoch in epochs:
            if epoch:
                self._ahead.result(Cell(kind="training", setup=setup))
            cells = self._attack_cells(course.candidate, setup, part, epoch, which)
            with closing(self._ahead.results(cells)) as results:
                for cell, run in results:
                    assert isinstance(run, AttackedVictims)
                    self._seconds[cell] = run.seconds
                    tally = score(run.victims)
                    fits = fits or tally.victims > 0
                    course.closest.see(cell.attacks[0], run.victims)
                    if tally.successes:
                        name = attack_title(cell.attacks[0])
                        return _Rejection(
                            verdict="falls" if part == "validation" else "falls when judged",
                            reason=f"{f'patient {name}' if which == 'patient' else name} brings back {tally.successes} "
                            f"of {tally.victims} images under {wording.protocol_name(cell.protocol).partition(' ')[0]}",
                        )
        if not fits and which == "all":
            return _Rejection(verdict="cannot be judged", reason="no attack fits these updates")
        return None

    def _attack_cells(
        self, candidate: CandidateDefence, setup: Setup, part: Literal["validation", "judged"], epoch: int, which: Which
    ) -> Iterator[Cell]:
        # One undefended local step sends the same gradient under either protocol.
        protocols = PROTOCOLS[:1] if candidate == UNDEFENDED else PROTOCOLS
        for spec in sorted(self._specs(candidate.defence, which), key=is_quick, reverse=True):
            for protocol in protocols:
                yield Cell(
                    kind="attack", setup=setup, protocol=protocol, batch_size=candidate.batch_size,
                    local_steps=candidate.local_steps if protocol == "fedavg" else 0, epoch=epoch, attacks=(spec,),
                    part=part,
                )  # fmt: skip

    def _specs(self, defence: str, which: Which) -> Sequence[str]:
        scale, attacks = self._experiment.scale, self._experiment.attacks
        if which == "patient":
            return () if attacks else patient_attacks_on(defence, scale)
        every = attacks or every_attack_on(defence, scale)
        return [spec for spec in every if which == "all" or is_quick(spec)]

    def _accuracy(self, course: _Course) -> _Rejection | None:
        candidate = course.candidate
        loaded = images(self._data, self._experiment.data_root)
        blind = int(loaded.test.labels.bincount().max()) / len(loaded.test)
        cells = (
            self._federation(candidate, spec, scheme) for scheme in PROTOCOLS for spec in ("none", candidate.defence)
        )
        with closing(self._ahead.results(cells)) as results:
            for protocol in PROTOCOLS:
                without = course.undefended[protocol] = _final(next(results)[1])
                if without is None or without < blind + LEARNT:
                    rounds = self._experiment.scale.search_rounds
                    return _Rejection(
                        verdict="cannot be judged",
                        reason=f"the undefended model does not learn under {protocol} in {rounds} rounds of "
                        f"{candidate.batch_size} x {candidate.local_steps} images a client: "
                        + ("it diverges" if without is None else f"accuracy {wording.percent(without)}")
                        + f", the most frequent class {wording.percent(blind)}",
                    )
                accuracy = course.accuracy[protocol] = _final(next(results)[1])
                if accuracy is None or accuracy < without - TOLERANCE:
                    reached = "it does not finish" if accuracy is None else f"accuracy {accuracy * 100:.1f} %"
                    return _Rejection(
                        verdict="costs accuracy", reason=f"{protocol}: {reached}, undefended {without * 100:.1f} %"
                    )
        return None

    def _federation(self, candidate: CandidateDefence, defence: str, protocol: Literal["fedsgd", "fedavg"]) -> Cell:
        return Cell(
            kind="federation", setup=self._setup(defence), protocol=protocol, batch_size=candidate.batch_size,
            local_steps=candidate.local_steps if protocol == "fedavg" else 0, runtime="process",
        )  # fmt: skip

    def _setup(self, defence: str) -> Setup:
        return Setup(data=self._data, model=self._model, defence=defence)


def _final(run: Made) -> float | None:
    """Accuracy after the last round; None when the federation did not finish."""
    assert isinstance(run, FederationRun)
    return run.curve[-1].accuracy if run.completed else None
