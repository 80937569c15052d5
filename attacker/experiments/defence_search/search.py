"""The search for a defence that stands every attack without costing accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from attacker import wording
from attacker.audit.record.trials import share_interval
from attacker.experiments.defence_search.chooser import FamilyChooser
from attacker.experiments.defence_search.climb import Climb
from attacker.experiments.defence_search.disclosure import PROTOCOLS, Attacks, Disclosed, Which
from attacker.experiments.defence_search.families import Family, families
from attacker.experiments.defence_search.guarantees import Guaranteed
from attacker.experiments.defence_search.judged_again import judged_entries
from attacker.experiments.defence_search.ladder import RUNGS, TOP
from attacker.experiments.defence_search.norms import undefended_norm
from attacker.experiments.defence_search.prefetch import Ahead
from attacker.experiments.defence_search.result import Recommendation, Rung, Trial, nearest, sentence, upper_bound
from attacker.experiments.defence_search.utility import Lost, Utility
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from fl_precode.defences.registry import apply_defence
from fl_precode.models import build_model
from fl_precode.private_file import write_private

RECOMMENDATION_NAME = "recommendation.json"

_TOO_WEAK = (
    "the attacks reconstruct nothing without any defence either{reached}, so they cannot tell defences apart. Take "
    "more iterations (--scale), other attacks (--attacks) or another model."
)

Teller = Callable[[str, float], None]


class DefenceSearch:
    """Climbs the ladders of families; the first that holds on images the search has not seen is recommended.

    Args:
        experiment: One image set and one model; its scale says how many victims, iterations and rounds.
        folder: Folder of finished cells; a search that was stopped goes on where it was.
        tell: Hears of the work at hand and the share of the families that are done.
        workers: Processes, one thread each. What is found does not depend on them.
    """

    def __init__(self, experiment: Experiment, folder: Path, tell: Teller | None = None, *, workers: int = 1) -> None:
        self._experiment = experiment
        self._folder = folder
        self._ahead = Ahead(folder, workers=workers)
        self._tell = tell or (lambda text, share: None)
        (self._data,), (self._model,) = experiment.data, experiment.models
        self._attacks = Attacks(experiment, self._ahead)
        self._utility = Utility(experiment=experiment, ahead=self._ahead)
        self._guaranteed = Guaranteed(experiment)

    def run(self, *, at_most: int) -> Recommendation:
        """Search, and keep the result as ``recommendation.json``.

        Args:
            at_most: Families to try.

        Raises:
            ValueError: If model and images do not fit, or a finished cell was altered.
            RuntimeError: If a worker process died.
            ModuleNotFoundError: If Optuna is not installed.
        """
        with self._ahead:
            return self._run(at_most)

    def _run(self, at_most: int) -> Recommendation:
        most_images = self._experiment.scale.judged
        known = families(self._experiment, self._data, self._model, most_images=most_images)
        chooser = FamilyChooser(known, self._experiment.seed)
        self._tell("without a defence", 0.0)
        bare = self._bare()
        if not bare.images:
            reached = "" if bare.ssim is None else f" (SSIM {bare.ssim:.2f} at most)"
            return self._kept([], f"{wording.model_name(self._model)}: {_TOO_WEAK.format(reached=reached)}")
        climbs: list[Climb] = []
        while len(climbs) < at_most and (family := chooser.next()) is not None:
            self._tell(family.title, len(climbs) / at_most)
            climbs.append(self._climb(family))
            if climbs[-1].verdict == "recommended":
                break
            lost, disclosed = climbs[-1].values()
            chooser.tell(family, lost=lost, disclosed=disclosed)
            self._kept([self._trial(climb) for climb in climbs])
        self._complete(climbs)
        return self._kept([self._trial(climb) for climb in climbs])

    def _bare(self) -> Disclosed:
        """Single images reconstructed without a defence: one local step sends the same under either protocol."""
        family = Family(mechanism="noise", quantile=0.5, beside="", batch_size=1, local_steps=1, model=self._model)
        found = Disclosed()
        asked: list[tuple[Which, Sequence[int]]] = [("quick", (0,)), ("searches", (0,))]
        for which, epochs in (*asked, ("patient", self._experiment.scale.attacked)):
            if not found.images:
                undefended = {PROTOCOLS[0]: "none"}
                seen = self._attacks.on(family, undefended, part="validation", which=which, epochs=epochs)
                found = found.joined(seen)
        return found

    def _climb(self, family: Family) -> Climb:
        norms = {protocol: undefended_norm(self._experiment, self._ahead, family, protocol) for protocol in PROTOCOLS}
        climb = Climb(family=family, norms=norms, attacks=self._attacks, utility=self._utility)
        climb.run()
        return climb

    def _complete(self, climbs: Sequence[Climb]) -> None:
        """Measure of the family that is shown what its curves lack: both figures at every rung, and without noise."""
        trials = [self._trial(climb) for climb in climbs]
        shown = nearest(trials)
        if shown is None:
            return
        climb = climbs[trials.index(shown)]
        self._tell("the curves of what is shown", 1.0)
        climb.without_noise()
        for rung in sorted({*climb.formulas, *(rung for _, rung in climb.lost)}):
            if climb.lowest is not None and rung <= climb.lowest + 1:
                climb.at(rung)
                climb.points(rung)

    def _kept(self, trials: Sequence[Trial], text: str = "") -> Recommendation:
        result = self._result(trials, text)
        write_private(self._folder / RECOMMENDATION_NAME, (result.model_dump_json(indent=1) + "\n").encode())
        return result

    def _result(self, trials: Sequence[Trial], text: str) -> Recommendation:
        recommended = next((trial for trial in trials if trial.verdict == "recommended"), None)
        scale, shown = self._experiment.scale, nearest(trials)
        bound = None if recommended is None else upper_bound(recommended.judged)
        return Recommendation(
            data=images(self._data, self._experiment.data_root).name,
            model=self._model,
            scale=scale.name,
            seed=self._experiment.seed,
            found=recommended is not None,
            sentence=text or sentence(self._model, trials, recommended, scale, bound),
            recommended=recommended,
            trials=list(trials),
            victims=scale.judged,
            upper_bound=bound,
            seconds_of_attacks=sum(self._attacks.seconds.values()),
            patient_victims=min(scale.patient, scale.judged),
            iterations=scale.iterations,
            rounds=scale.search_rounds,
            clients=scale.search_clients,
            seeds=scale.search_seeds,
            best_guess=self._guaranteed.best_guess,
            closest=None if shown is None else list(trials).index(shown),
        )

    def _trial(self, climb: Climb) -> Trial:
        family, rung = climb.family, _ended(climb)
        loaded = images(self._data, self._experiment.data_root)
        plain = build_model(family.model, loaded.inputs, seed=self._experiment.seed)
        sent = apply_defence(family.within, plain, loaded.inputs, seed=self._experiment.seed).state_dict().values()
        closest = max(_seen(climb), key=lambda one: -2.0 if one.ssim is None else one.ssim, default=Disclosed())
        costs = {protocol: climb.lost.get((protocol, rung)) for protocol in PROTOCOLS}
        apart = climb.verdict in ("costs accuracy", "recommended") and climb.lowest is not None
        below = -1 if climb.affordable is None else climb.affordable
        return Trial(
            defence=climb.defences(rung)["fedsgd"],
            batch_size=family.batch_size,
            local_steps=family.local_steps,
            payload_bytes=sum(value.numel() * value.element_size() for value in sent),
            gradients=family.batch_size * family.local_steps,
            verdict=climb.verdict,
            reason=climb.reason,
            closest_ssim=closest.ssim,
            closest_attack=closest.attack if closest.ssim is not None else "",
            accuracy={protocol: _mean(lost.defended) for protocol, lost in costs.items() if lost},
            undefended={protocol: _mean(lost.undefended) for protocol, lost in costs.items() if lost},
            mechanism=family.mechanism,
            model=family.model,
            quantile=family.quantile,
            beside=family.beside,
            norms=dict(climb.norms),
            defences=dict(climb.defences(rung)),
            noise=RUNGS[rung],
            lowest_holding=None if climb.lowest is None else RUNGS[climb.lowest],
            highest_affordable=None if climb.affordable is None else RUNGS[climb.affordable],
            gap_rungs=max(0, climb.lowest - below) if apart and climb.lowest is not None else None,
            gap_points=_points(climb, climb.lowest) if apart and climb.lowest is not None else None,
            not_monotone=[RUNGS[one] for one in climb.leaked],
            judged=judged_entries(climb.judged),
            rungs=self._rungs(climb),
        )

    def _rungs(self, climb: Climb) -> list[Rung]:
        known = sorted({*climb.formulas, *climb.searches, *(rung for _, rung in climb.lost)})
        bare = [] if climb.bare is None else [_rung(0.0, dict.fromkeys(PROTOCOLS, climb.family.within), climb.bare, {})]
        rungs = []
        for rung in known:
            formulas = climb.formulas.get(rung)
            found = climb.at(rung) if rung in climb.searches else formulas
            lost = {protocol: climb.lost[protocol, rung] for protocol in PROTOCOLS if (protocol, rung) in climb.lost}
            entry = _rung(RUNGS[rung], dict(climb.defences(rung)), found, lost)
            privacy = self._guaranteed.at(climb.family, climb.defences(rung))
            rungs.append(entry.model_copy(update={"only_formulas": rung not in climb.searches, "privacy": privacy}))
        return [*bare, *rungs]


def _seen(climb: Climb) -> list[Disclosed]:
    """What attacks made of its images; of a family that is recommended, behind the noise that is."""
    rungs = [climb.formulas, climb.searches]
    if climb.verdict == "recommended":
        seen = [one[climb.judged_rung] for one in rungs if climb.judged_rung in one]
    else:
        seen = [found for one in rungs for found in one.values()]
    return [*seen, *climb.judged.values()]


def _ended(climb: Climb) -> int:
    """The rung that a climb ended at: judged, or the lowest that holds, or the top."""
    if climb.judged_rung is not None:
        return climb.judged_rung
    return TOP if climb.lowest is None else climb.lowest


def _points(climb: Climb, rung: int) -> float | None:
    known = [climb.lost[protocol, rung].mean for protocol in PROTOCOLS if (protocol, rung) in climb.lost]
    return 100 * max(known) if known else None


def _rung(noise: float, defences: dict[str, str], found: Disclosed | None, lost: dict[str, Lost]) -> Rung:
    fits = found is not None and found.images is not None and found.victims
    return Rung(
        noise=noise,
        defences=defences,
        disclosed=found.images if found else None,
        victims=found.victims if found else 0,
        interval=share_interval(found.images or 0, found.victims, found.updates) if found and fits else None,
        attack=found.attack if found else "",
        closest_ssim=found.ssim if found else None,
        lost={protocol: one.mean for protocol, one in lost.items()},
        spread={protocol: one.spread for protocol, one in lost.items()},
        accuracy={protocol: list(one.defended) for protocol, one in lost.items()},
        undefended={protocol: list(one.undefended) for protocol, one in lost.items()},
    )


def _mean(accuracies: Sequence[float | None]) -> float | None:
    """None where one of the federations did not finish."""
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return statistics.fmean(known) if len(known) == len(accuracies) else None
