"""The search for the cheapest defence that stands every attack without costing accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from attacker.attacks.registry import ATTACKS
from attacker.audit.evaluate import SUCCESS_THRESHOLD
from attacker.audit.record import Count, Entry, Number, Share
from attacker.metrics import wilson_interval
from attacker.report import words
from attacker.reproduce.candidates import Candidate, candidates
from attacker.reproduce.cells import AttackRun, Cell, FederationRun, Made, Setup
from attacker.reproduce.experiment import Experiment, images
from attacker.reproduce.run import make_cell
from attacker.reproduce.scales import Scale
from attacker.reproduce.store import Store
from attacker.reproduce.summarise import score
from attacker.reproduce.worst_case import attacks_on
from fl_precode.private_file import write_private

RECOMMENDATION_NAME = "recommendation.json"
TOLERANCE = 0.01
LEARNT = 0.05
"""Above the most frequent class: an undefended model below that has learnt nothing to compare by."""
PROTOCOLS: tuple[Literal["fedsgd", "fedavg"], ...] = ("fedsgd", "fedavg")

UNDEFENDED = Candidate(defence="none", batch_size=1, local_steps=1, payload_bytes=0, gradients=1)
_TOO_WEAK = (
    "the attacks bring nothing back without any defence either, so they cannot tell defences apart. Take more "
    "iterations (--scale), other attacks (--attacks) or another model."
)

Teller = Callable[[str, float], None]


class Trial(Entry):
    """What became of one candidate."""

    defence: str
    batch_size: Count
    local_steps: Count
    payload_bytes: Count
    gradients: Count
    verdict: Literal["recommended", "falls", "falls when judged", "costs accuracy", "cannot be judged"]
    reason: str
    accuracy: dict[str, Share | None]
    undefended: dict[str, Share | None]


class Recommendation(Entry):
    """The result of a search."""

    format: Literal["fl-precode-recommendation"] = "fl-precode-recommendation"
    version: Literal[1] = 1
    data: str
    model: str
    scale: str
    seed: int
    found: bool
    sentence: str
    recommended: Trial | None
    trials: list[Trial]
    victims: Count
    upper_bound: Share | None
    seconds_of_attacks: Number


@dataclass(frozen=True, kw_only=True)
class _Rejection:
    verdict: Literal["falls", "falls when judged", "costs accuracy", "cannot be judged"]
    reason: str


class Search:
    """Tries candidates by rising cost; the first that holds on images the search has not seen is recommended.

    Args:
        experiment: One image set and one model; its scale says how many victims and iterations.
        folder: Of finished cells; a search that was stopped goes on where it was.
        tell: Hears of the work at hand and the share of the candidates that are done.
    """

    def __init__(self, experiment: Experiment, folder: Path, tell: Teller | None = None) -> None:
        self._experiment = experiment
        self._store = Store(folder)
        self._tell = tell or (lambda text, share: None)
        (self._data,), (self._model,) = experiment.data, experiment.models
        self._seconds = 0.0

    def run(self, *, at_most: int) -> Recommendation:
        """Search, and keep the result as ``recommendation.json``.

        Args:
            at_most: Candidates to try.

        Raises:
            ValueError: If model and images do not fit, or a finished cell was altered.
        """
        tried = candidates(self._experiment, self._data, self._model, at_most=at_most)
        trials: list[Trial] = []
        self._tell("without a defence", 0.0)
        without = self._attacked(UNDEFENDED, "validation", (0,))
        if without is None or without.verdict != "falls":
            result = self._result(trials, f"{words.model_name(self._model)}: {_TOO_WEAK}")
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
        write_private(self._store.folder / RECOMMENDATION_NAME, (result.model_dump_json(indent=1) + "\n").encode())
        return result

    def _result(self, trials: Sequence[Trial], sentence: str = "") -> Recommendation:
        found = next((one for one in trials if one.verdict == "recommended"), None)
        victims = self._experiment.scale.victims
        bound = wilson_interval(0, victims)[1]
        return Recommendation(
            data=images(self._data, self._experiment.data_root).name,
            model=self._model,
            scale=self._experiment.scale.name,
            seed=self._experiment.seed,
            found=found is not None,
            sentence=sentence or _sentence(self._model, trials, found, self._experiment.scale, bound),
            recommended=found,
            trials=list(trials),
            victims=victims,
            upper_bound=bound if found else None,
            seconds_of_attacks=self._seconds,
        )

    def _trial(self, candidate: Candidate) -> Trial:
        accuracy: dict[str, float | None] = {}
        undefended: dict[str, float | None] = {}
        rejected = (
            self._attacked(candidate, "validation", (0,))
            or self._accuracy(candidate, accuracy, undefended)
            or self._attacked(candidate, "judged", self._experiment.scale.attacked)
        )
        return Trial(
            defence=candidate.defence,
            batch_size=candidate.batch_size,
            local_steps=candidate.local_steps,
            payload_bytes=candidate.payload_bytes,
            gradients=candidate.gradients,
            verdict=rejected.verdict if rejected else "recommended",
            reason=rejected.reason if rejected else "",
            accuracy=accuracy,
            undefended=undefended,
        )

    def _attacked(
        self, candidate: Candidate, part: Literal["validation", "judged"], epochs: Sequence[int]
    ) -> _Rejection | None:
        """The first attack that brings an image back, if there is one; analytic attacks come first."""
        setup = self._setup(candidate.defence)
        tried = 0
        for epoch in epochs:
            if epoch:
                self._made(Cell(kind="training", setup=setup))
            for cell in self._attack_cells(candidate, setup, part, epoch):
                run = self._made(cell)
                assert isinstance(run, AttackRun)
                self._seconds += run.seconds
                found = score(run.victims)
                tried += found.victims
                if found.successes:
                    return _Rejection(
                        verdict="falls" if part == "validation" else "falls when judged",
                        reason=f"{words.attack_name(cell.attacks[0])} brings back {found.successes} of {found.victims} "
                        f"images under {words.protocol_name(cell.protocol).partition(' ')[0]}",
                    )
        if not tried:
            return _Rejection(verdict="cannot be judged", reason="no attack fits these updates")
        return None

    def _attack_cells(
        self, candidate: Candidate, setup: Setup, part: Literal["validation", "judged"], epoch: int
    ) -> Iterator[Cell]:
        own = self._experiment.attacks or attacks_on(candidate.defence, self._experiment.scale)
        for spec in sorted(own, key=lambda one: "iterations" in ATTACKS[one.partition(":")[0]].options):
            for protocol in PROTOCOLS:
                yield Cell(
                    kind="attack", setup=setup, protocol=protocol, batch_size=candidate.batch_size,
                    local_steps=candidate.local_steps if protocol == "fedavg" else 0, epoch=epoch, attacks=(spec,),
                    part=part,
                )  # fmt: skip

    def _accuracy(
        self, candidate: Candidate, accuracy: dict[str, float | None], undefended: dict[str, float | None]
    ) -> _Rejection | None:
        loaded = images(self._data, self._experiment.data_root)
        blind = int(loaded.test.labels.bincount().max()) / len(loaded.test)
        for protocol in PROTOCOLS:
            without = undefended[protocol] = self._final(candidate, "none", protocol)
            if without is None or without < blind + LEARNT:
                rounds = self._experiment.scale.search_rounds
                return _Rejection(
                    verdict="cannot be judged",
                    reason=f"the undefended model does not learn under {protocol} in {rounds} rounds of "
                    f"{candidate.batch_size} x {candidate.local_steps} images a client: "
                    + ("it diverges" if without is None else f"accuracy {words.percent(without)}")
                    + f", the most frequent class {words.percent(blind)}",
                )
            own = accuracy[protocol] = self._final(candidate, candidate.defence, protocol)
            if own is None or own < without - TOLERANCE:
                reached = "it does not finish" if own is None else f"accuracy {own * 100:.1f} %"
                return _Rejection(
                    verdict="costs accuracy", reason=f"{protocol}: {reached}, undefended {without * 100:.1f} %"
                )
        return None

    def _final(self, candidate: Candidate, defence: str, protocol: str) -> float | None:
        """Accuracy after the last round; None when the federation did not finish."""
        cell = Cell(
            kind="federation", setup=self._setup(defence), protocol=protocol, batch_size=candidate.batch_size,
            local_steps=candidate.local_steps if protocol == "fedavg" else 0, runtime="process",
        )  # fmt: skip
        run = self._made(cell)
        assert isinstance(run, FederationRun)
        return run.curve[-1].accuracy if run.completed else None

    def _setup(self, defence: str) -> Setup:
        return Setup(data=self._data, model=self._model, defence=defence)

    def _made(self, cell: Cell) -> Made:
        recipe = self._experiment.recipe(cell)
        found = self._store.read(cell, recipe)
        if found is None:
            make_cell(self._experiment, cell, self._store.folder)
            found = self._store.read(cell, recipe)
        assert found is not None
        return found


def _sentence(model: str, trials: Sequence[Trial], found: Trial | None, scale: Scale, bound: float) -> str:
    name = words.model_name(model)
    if found is None:
        counts = Counter(one.verdict for one in trials)
        parts = [f"{count} {_PHRASES[verdict][count > 1]}" for verdict, count in counts.items()]
        return f"{name}: no defence that was tried holds and keeps the accuracy. Of {len(trials)}, {'; '.join(parts)}."
    text = (
        f"{name}: {words.defence_name(found.defence)} with {found.batch_size} image(s) a step and {found.local_steps} "
        f"local step(s) is the cheapest of what was tried that holds. No attack reached SSIM >= {SUCCESS_THRESHOLD:g} "
        f"on any of {scale.victims} images that the search had not seen: with 95 % confidence, at most "
        f"{words.percent(bound)} of all come back to these attacks."
    )
    if found.batch_size * found.local_steps > 1:
        text += (
            f" Several images in one update are harder for searches of {scale.iterations} iterations; a patient "
            "attacker may do better."
        )
    return text


_PHRASES = {
    "falls": ("falls to an attack", "fall to an attack"),
    "falls when judged": ("falls on unseen images", "fall on unseen images"),
    "costs accuracy": ("costs too much accuracy", "cost too much accuracy"),
    "cannot be judged": ("cannot be judged", "cannot be judged"),
}
