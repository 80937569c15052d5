"""Under which assumption each defence falls, from the figures alone."""

from __future__ import annotations

from collections.abc import Sequence

from attacker import wording
from attacker.attacks.registry import attack_title, entry_of
from attacker.experiments.precode.summary import Assumption, AttackScore, Fall, Score, SetupState, SetupSummary
from attacker.experiments.precode.summary_lookup import score_strength

Tried = tuple[SetupState, AttackScore]


def falls(setups: Sequence[SetupSummary]) -> list[Fall]:
    """One entry for each defended model, undefended ones included.

    A defence falls to an attack when an image is reconstructed, beyond the best guess without the update. A plain
    attack does not know the defence, the weaker assumption; an adaptive one uses that it was announced. Where nothing
    is reconstructed although the undefended model is reconstructed, the attacks tried were stopped, which proves
    nothing more.
    """
    return [_fall(setup, setups) for setup in setups]


def broken(result: AttackScore) -> bool:
    """Whether an image was reconstructed."""
    return result.score.successes > 0


def _fall(setup: SetupSummary, setups: Sequence[SetupSummary]) -> Fall:
    tried = [(state, result) for state in setup.states for result in state.attacks if result.score.victims]
    for assumption, adaptive in (("plain", False), ("adaptive", True)):
        won = [(state, result) for state, result in tried if result.adaptive is adaptive and broken(result)]
        if won:
            return _entry(setup, "plain" if assumption == "plain" else "adaptive", max(won, key=_strength))
    if setup.defence == "none" or not _undefended_falls(setup, setups):
        return _entry(setup, "cannot tell", max(tried, key=_strength) if tried else None)
    return _entry(setup, "none tried", max(tried, key=_strength) if tried else None)


def _strength(tried: Tried) -> tuple[int, int, float]:
    return score_strength(tried[1].score)


def _undefended_falls(setup: SetupSummary, setups: Sequence[SetupSummary]) -> bool:
    return any(
        broken(result)
        for other in setups
        if (other.data, other.model, other.defence) == (setup.data, setup.model, "none")
        for state in other.states
        for result in state.attacks
    )


def _entry(setup: SetupSummary, assumption: Assumption, tried: Tried | None) -> Fall:
    state, result = tried if tried is not None else (None, None)
    return Fall(
        data=setup.data,
        model=setup.model,
        defence=setup.defence,
        assumption=assumption,
        attack=result.attack if result else "",
        epoch=state.epoch if state else 0,
        score=result.score if result else None,
        sentence=_sentence(setup, assumption, state, result),
    )


def _sentence(setup: SetupSummary, assumption: Assumption, state: SetupState | None, result: AttackScore | None) -> str:
    defence = wording.capitalised(wording.defence_name(setup.defence))
    if state is None or result is None:
        return f"{defence}: no attack fits these updates, so nothing is known."
    score = result.score
    back = _reconstructed_text(score)
    when = state_name(state.epoch)
    name = attack_title(result.attack)
    if assumption == "plain":
        return f"Falls to {name}, which knows nothing of a defence: {back}, {when}."
    if assumption == "adaptive":
        return f"Stops the plain attacks and falls to {name} ({knowledge(result.attack)}): {back}, {when}."
    if assumption == "none tried":
        adaptive = any(other.adaptive and other.score.victims for other_state in setup.states
                       for other in other_state.attacks)  # fmt: skip
        which = "plain and adaptive attacks" if adaptive else "plain attacks; no adaptive one was run"
        return f"Stood the {which}. That proves nothing about others. The nearest was {name}: {back}, {when}."
    if setup.defence == "none":
        return f"The attacks are too weak: without any defence {back}, {when}."
    return f"Cannot tell: the attacks reconstruct nothing from the undefended model either; {back}, {when}."


def _reconstructed_text(score: Score) -> str:
    low, high = score.interval or (0.0, 1.0)
    sure = f"95 % interval {wording.interval(low, high)}"
    text = f"{score.successes} of {score.victims} images were reconstructed ({sure})"
    if score.not_applicable:
        text += f", {score.not_applicable} not attacked because it does not fit them"
    return text


def knowledge(spec: str) -> str:
    """What an adaptive attack makes use of, in the registry's words."""
    return entry_of(spec).description


def state_name(epoch: int) -> str:
    """When in training.

    >>> state_name(0), state_name(1), state_name(3)
    ('untrained', 'after 1 epoch', 'after 3 epochs')
    """
    return "untrained" if epoch == 0 else f"after {epoch} epoch{'' if epoch == 1 else 's'}"
