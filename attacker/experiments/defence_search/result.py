"""What a search for a defence leaves behind, and how people are told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from attacker import wording
from attacker.attacks.registry import attack_title
from attacker.audit.record.counting import RULE
from attacker.audit.record.schema import Count, Entry, Number, Share
from attacker.audit.scoring.similarity import SUCCESS_THRESHOLD
from attacker.experiments.scales import Scale


class Trial(Entry):
    """What became of one candidate.

    Attributes:
        closest_ssim: The largest that any attack reached on any image, as far as the trial went.
        closest_attack: Spec of that attack; empty when none gave an image.
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


def sentence(model: str, trials: Sequence[Trial], recommended: Trial | None, scale: Scale, bound: float) -> str:
    """What was found, for people.

    Args:
        model: Spec of the model.
        trials: All that were made.
        recommended: The one that is recommended, or None.
        scale: Of the search.
        bound: Largest share of images that may come back all the same.
    """
    name = wording.model_name(model)
    if recommended is None:
        counts = Counter(trial.verdict for trial in trials)
        parts = [f"{count} {_PHRASES[verdict][count > 1]}" for verdict, count in counts.items()]
        return f"{name}: no defence that was tried holds and keeps the accuracy. Of {len(trials)}, {'; '.join(parts)}."
    text = (
        f"{name}: {wording.defence_name(recommended.defence)} with {recommended.batch_size} image(s) a step and "
        f"{recommended.local_steps} local step(s) is the cheapest of what was tried that holds. No attack reached "
        f"SSIM >= {SUCCESS_THRESHOLD:g}, {RULE}, on any of {scale.victims} images that the search had not "
        f"seen: with 95 % confidence, at most "
        f"{wording.percent(bound)} of all come back to these attacks."
    )
    if recommended.closest_ssim is not None:
        text += f" Closest came {attack_title(recommended.closest_attack)}, with SSIM {recommended.closest_ssim:.2f}."
    text += " No search has an end at which it is proved to fail: a more patient attacker may do better."
    return text


_PHRASES = {
    "falls": ("falls to an attack", "fall to an attack"),
    "falls when judged": ("falls on unseen images", "fall on unseen images"),
    "costs accuracy": ("costs too much accuracy", "cost too much accuracy"),
    "cannot be judged": ("cannot be judged", "cannot be judged"),
}
