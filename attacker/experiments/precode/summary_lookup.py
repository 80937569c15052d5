"""Look-ups of figures and tables in a summary."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attacker.audit.record.counting import strength
from attacker.experiments.precode.summary import AttackScore, Score, SetupState, SetupSummary

NOTHING = Score(
    victims=0,
    not_applicable=0,
    failed=0,
    successes=0,
    rate=None,
    interval=None,
    ssim=None,
    psnr=None,
    mse=None,
)
"""Where no attack was tried."""


def strongest(scores: Iterable[Score]) -> Score:
    """The score with the most images."""
    return max(scores, key=score_strength, default=NOTHING)


def score_strength(score: Score) -> tuple[int, int, float]:
    """What scores are ordered by, as summaries of audits are."""
    return strength(score.successes, score.victims, score.ssim)


def worst(setup: SetupSummary, pick: Callable[[SetupState], Score | None]) -> Score:
    """What is worst for the clients over all states of the model."""
    return strongest(score for state in setup.states if (score := pick(state)) is not None)


def plain_matching(state: SetupState) -> Score | None:
    """Score of Inverting Gradients, the attack of the PRECODE paper; None where it was not run."""
    scores = [result.score for result in state.attacks if result.attack.partition(":")[0] == "inverting-gradients"]
    return strongest(scores) if scores else None


def adaptive(state: SetupState) -> AttackScore | None:
    """The adaptive attack that reconstructed most; None where none fits."""
    fitting = [result for result in state.attacks if result.adaptive and result.score.victims]
    return max(fitting, key=lambda result: score_strength(result.score), default=None)


def best_adaptive(state: SetupState) -> Score | None:
    """Its score."""
    best = adaptive(state)
    return best.score if best is not None else None
