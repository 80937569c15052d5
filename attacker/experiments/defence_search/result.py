"""Result of a search for a defence, and its text for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.counting import RULE
from attacker.audit.record.schema import Count, Entry, Number, Share
from attacker.audit.record.trials import share_interval
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.experiments.scales import Scale


class PrivacyOfRung(Entry):
    """What one protocol's noise guarantees by formula.

    Attributes:
        protocol: Under which.
        level: Level of one image, or of one client with all of its images.
        a_round: Epsilon of one round; None where there is no guarantee.
        composed: Epsilon of all rounds of the federation that accuracy was measured on.
        delta: At which.
        upper_bound: Share of images that no attack on one round exceeds, by reconstruction robustness.
        note: What it assumes, or why there is none.
    """

    protocol: str
    level: Literal["image", "client"]
    a_round: Number | None
    composed: Number | None
    delta: Number
    upper_bound: Share | None
    note: str


class Rung(Entry):
    """One level of noise of a family.

    Attributes:
        noise: Relative to the clip; 0 for none.
        defences: By protocol the spec.
        disclosed: Validation images that the best attack reconstructed; a lower bound where a search was ended.
        victims: Victims of that attack.
        interval: Interval of the share, 95 %, exact, by updates.
        attack: Spec of that attack, or of what came closest.
        closest_ssim: The largest on any image.
        only_formulas: Whether no search was made, because formulas reconstructed images or the accuracy was lost.
        lost: By protocol the accuracy that is lost, mean over the seeds.
        spread: Its standard deviation over the seeds.
        accuracy: By protocol that of each seed; None where a federation did not finish.
        undefended: Accuracy without the defence, of the same seeds.
        privacy: What is guaranteed.
    """

    noise: Number
    defences: dict[str, str]
    disclosed: Count | None = None
    victims: Count = 0
    interval: tuple[Share, Share] | None = None
    attack: str = ""
    closest_ssim: Number | None = None
    only_formulas: bool = False
    lost: dict[str, Number] = Field(default_factory=dict)
    spread: dict[str, Number | None] = Field(default_factory=dict)
    accuracy: dict[str, list[Share | None]] = Field(default_factory=dict)
    undefended: dict[str, list[Share | None]] = Field(default_factory=dict)
    privacy: list[PrivacyOfRung] = Field(default_factory=list)


class Judged(Entry):
    """What one kind of attacks made of unseen images.

    Attributes:
        attacks: Which.
        disclosed: Images that the best of them reconstructed; None if none fits.
        victims: Images, of the attack with the fewest.
        updates: That these are of; 0 in records of before they were counted.
        closest_ssim: The largest that any reached.
    """

    attacks: str
    disclosed: Count | None
    victims: Count
    updates: Count = 0
    closest_ssim: Number | None


class Trial(Entry):
    """What became of one candidate.

    Attributes:
        defence: Spec under FedSGD, with the noise that it ended at.
        closest_ssim: The largest that any attack reached on any image, as far as the trial went; of one that is
            recommended, behind that noise.
        closest_attack: Spec of that attack; empty when none gave an image.
        accuracy: By protocol at that noise, mean over the seeds.
        undefended: Accuracy without the defence, of the same seeds.
        mechanism: What the noise belongs to: ``client``, ``example`` (DP-SGD) or ``noise``; empty in records of
            before there were ladders, as all that follows.
        model: Spec; with group normalisation where the mechanism needs it.
        quantile: Quantile of the undefended norms that is the clip.
        beside: What else protects.
        norms: By protocol the norm that is clipped at.
        defences: By protocol the spec.
        noise: Noise of the rung that it ended at.
        lowest_holding: Lowest noise from which on no validation image was reconstructed.
        highest_affordable: Noise up to which the accuracy stays.
        gap_rungs: From the one to the other; 0 where they meet.
        gap_points: Accuracy lost at the lowest that holds, in points of 100.
        not_monotone: Noise that leaked although less noise held.
        judged: What was reconstructed of unseen images, by kind of attack.
        rungs: All that was measured, by rising noise.
    """

    defence: str
    batch_size: Count
    local_steps: Count
    payload_bytes: Count
    gradients: Count
    verdict: Literal["recommended", "falls", "falls when judged", "costs accuracy", "cannot be judged"]
    reason: str
    closest_ssim: Number | None
    closest_attack: str
    accuracy: dict[str, Share | None]
    undefended: dict[str, Share | None]
    mechanism: str = ""
    model: str = ""
    quantile: Number | None = None
    beside: str = ""
    norms: dict[str, Number] = Field(default_factory=dict)
    defences: dict[str, str] = Field(default_factory=dict)
    noise: Number | None = None
    lowest_holding: Number | None = None
    highest_affordable: Number | None = None
    gap_rungs: Count | None = None
    gap_points: Number | None = None
    not_monotone: list[Number] = Field(default_factory=list)
    judged: list[Judged] = Field(default_factory=list)
    rungs: list[Rung] = Field(default_factory=list)


class Recommendation(Entry):
    """The result of a search.

    Attributes:
        victims: Unseen images that what was found is judged on.
        patient_victims: The first of these, which patient searches attack; None in records of before ladders.
        upper_bound: Largest share of images that may be reconstructed all the same, by the fewest updates judged.
        rounds: Batches of each client in the federations that accuracy was measured on; None as above.
        clients: Clients of these federations.
        seeds: How often each was run.
        best_guess: Share of images that a guess without the update reaches, the upper end of its interval.
        closest: Place in ``trials`` of the family that is recommended, or whose curves come nearest to meeting.
    """

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
    patient_victims: Count | None = None
    iterations: Count | None = None
    rounds: Count | None = None
    clients: Count | None = None
    seeds: Count | None = None
    best_guess: Share | None = None
    closest: Count | None = None


def sentence(model: str, trials: Sequence[Trial], recommended: Trial | None, scale: Scale, bound: float | None) -> str:
    """What was found, for people.

    Args:
        model: Spec of the model.
        trials: All that were made.
        recommended: The one that is recommended, or None.
        scale: Scale of the search.
        bound: Largest share of images that may be reconstructed all the same; None where nothing is recommended.
    """
    name = wording.model_name(model)
    if recommended is None or bound is None:
        return _nothing(name, trials)
    fewest = min(one.updates for one in recommended.judged if one.disclosed is not None)
    text = (
        f"{name}: {wording.defence_name(recommended.defence)} with {recommended.batch_size} image(s) a step and "
        f"{recommended.local_steps} local step(s) under FedAvg is the first of what was tried that holds. No attack "
        f"reached SSIM >= {SUCCESS_THRESHOLD:g}, {RULE}, on any of {scale.judged} images that the search had not "
        f"seen (patient searches, and trained models: the first {min(scale.patient, scale.judged)}). "
        f"Images of one update stand or fall together, and each kind of attack had {wording.counted(fewest, 'update')} "
        f"or more: with 95 % confidence, these attacks reconstruct at most {wording.percent(bound)} of all images."
    )
    if recommended.closest_ssim is not None:
        text += f" Closest came {attack_title(recommended.closest_attack)}, with SSIM {recommended.closest_ssim:.2f}."
    without = next((rung for rung in recommended.rungs if rung.noise == 0), None)
    if without is not None and without.disclosed == 0:
        text += " With these batches and steps the attacks reconstruct nothing without noise either."
    text += " No search has an end at which it is proved to fail: a more patient attacker may do better."
    return text


def upper_bound(judged: Sequence[Judged]) -> float:
    """Largest share of images that may be reconstructed all the same, by the fewest updates that any kind had."""
    fewest = min((one for one in judged if one.disclosed is not None), key=lambda one: one.updates)
    return share_interval(0, fewest.victims, fewest.updates)[1]


def _nothing(name: str, trials: Sequence[Trial]) -> str:
    counts = Counter(trial.verdict for trial in trials)
    parts = [f"{count} {_PHRASES[verdict][count > 1]}" for verdict, count in counts.items()]
    text = f"{name}: no defence that was tried holds and keeps the accuracy. Of {len(trials)}, {'; '.join(parts)}."
    near = nearest(trials)
    if near is not None and near.gap_rungs is not None and near.gap_points is not None:
        text += (
            f" Nearest comes {wording.defence_name(near.defence)}, batch {near.batch_size} x {near.local_steps}: "
            f"{near.gap_rungs} rung(s) of the ladder apart, {near.gap_points:.1f} points of accuracy where it holds."
        )
    return text


def nearest(trials: Sequence[Trial]) -> Trial | None:
    """The recommended trial, or that whose curves come nearest to meeting; None if none was measured so far."""
    found = next((trial for trial in trials if trial.verdict == "recommended"), None)
    if found is not None:
        return found
    apart = [trial for trial in trials if trial.gap_rungs is not None]
    return min(apart, key=lambda trial: (trial.gap_rungs, trial.gap_points), default=None)


_PHRASES = {
    "falls": ("falls to an attack", "fall to an attack"),
    "falls when judged": ("falls on unseen images", "fall on unseen images"),
    "costs accuracy": ("costs too much accuracy", "cost too much accuracy"),
    "cannot be judged": ("cannot be judged", "cannot be judged"),
}
