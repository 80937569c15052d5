"""Judging what an earlier search recommends on more unseen images, or with more patience, without the search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attacker.experiments.defence_search.climb import Climb
from attacker.experiments.defence_search.disclosure import Attacks, Disclosed
from attacker.experiments.defence_search.families import MECHANISMS, Family
from attacker.experiments.defence_search.ladder import RUNGS
from attacker.experiments.defence_search.prefetch import Ahead
from attacker.experiments.defence_search.result import Judged, Recommendation, Trial, sentence, upper_bound
from attacker.experiments.defence_search.utility import Utility
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment


def judge_again(earlier: Recommendation, experiment: Experiment, folder: Path, *, workers: int = 1) -> Recommendation:
    """Attack the unseen images of an experiment behind the defence that an earlier search recommends.

    Args:
        earlier: The search, of the same images, model and seed. What it measured by noise is taken over.
        experiment: Its scale says how many images are judged, and with what patience.
        folder: Folder of finished cells.
        workers: Processes, one thread each.

    Returns:
        The search with its verdict as it stands now.

    Raises:
        ValueError: If the search recommends nothing, or is of other images, another model or another seed.
        RuntimeError: If a worker process died.
    """
    (data,), (model,) = experiment.data, experiment.models
    same = (images(data, experiment.data_root).name, model, experiment.seed)
    trial = earlier.recommended
    if trial is None:
        raise ValueError(f"the search of {earlier.model} recommends no defence, so there is nothing to judge again")
    if (earlier.data, earlier.model, earlier.seed) != same:
        of = (earlier.data, earlier.model, earlier.seed)
        raise ValueError(f"expected a search of the images, model and seed {same}, got one of {of}")
    with Ahead(folder, workers=workers) as ahead:
        attacks = Attacks(experiment, ahead)
        utility = Utility(experiment=experiment, ahead=ahead)
        climb = Climb(family=_family(trial), norms=trial.norms, attacks=attacks, utility=utility)
        climb.judge(min(range(len(RUNGS)), key=lambda rung: abs(RUNGS[rung] - (trial.noise or 0.0))))
    return _taken_over(earlier, trial, climb, experiment, sum(attacks.seconds.values()))


def judged_entries(found: Mapping[str, Disclosed]) -> list[Judged]:
    """What each kind of attacks made of unseen images, as it is kept."""
    return [
        Judged(
            attacks=name, disclosed=one.images, victims=one.victims, updates=one.updates, closest_ssim=one.ssim
        )  # fmt: skip
        for name, one in found.items()
    ]


def _family(trial: Trial) -> Family:
    (mechanism,) = (one for one in MECHANISMS if one == trial.mechanism)
    return Family(
        mechanism=mechanism, quantile=trial.quantile or 0.0, beside=trial.beside, batch_size=trial.batch_size,
        local_steps=trial.local_steps, model=trial.model,
    )  # fmt: skip


def _taken_over(
    earlier: Recommendation, trial: Trial, climb: Climb, experiment: Experiment, seconds: float
) -> Recommendation:
    scale, stands = experiment.scale, climb.verdict == "recommended"
    rungs = [one for one in trial.rungs if one.noise == trial.noise and one.closest_ssim is not None]
    seen = [(one.closest_ssim, one.attack) for one in rungs]
    seen += [(one.ssim, one.attack) for one in climb.judged.values()]
    closest, attack = max(seen, key=lambda one: -2.0 if one[0] is None else one[0])
    judged = judged_entries(climb.judged)
    now = trial.model_copy(
        update={
            "verdict": climb.verdict, "reason": climb.reason, "judged": judged, "closest_ssim": closest,
            "closest_attack": attack if closest is not None else "",
        }
    )  # fmt: skip
    trials = [now if one == trial else one for one in earlier.trials]
    bound = upper_bound(judged) if stands else None
    recommended = now if stands else None
    return earlier.model_copy(
        update={
            "found": stands, "recommended": recommended, "trials": trials, "victims": scale.judged,
            "patient_victims": min(scale.patient, scale.judged), "upper_bound": bound, "seconds_of_attacks": seconds,
            "sentence": sentence(earlier.model, trials, recommended, scale, bound),
        }
    )  # fmt: skip
