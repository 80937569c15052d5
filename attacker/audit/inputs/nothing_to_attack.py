"""A tape on which there is nothing to attack, and what would change that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attacker.wording import counted, joined
from fl_precode.tape import Tape, TapeFailure

_REASON = 160
"""Characters of a client's own error text that are said again."""


class NothingToAttack(ValueError):
    """No attack can begin on a tape: it holds no update, or what an update means is not known.

    Args:
        sentence: What is so, and what was expected.
        tape: Folder of the tape.
        mends: Codes of `attacker.audit.record.mends.MENDS` that would change it.
        masked: Whether the clients' replies are masked for secure aggregation, as they should be.
    """

    def __init__(self, sentence: str, *, tape: Path, mends: Sequence[str] = (), masked: bool = False) -> None:
        super().__init__(sentence)
        self.tape = tape
        self.mends = tuple(mends)
        self.masked = masked


def no_update(tape: Tape) -> NothingToAttack:
    """The error for a tape that lists no client update; it says in one sentence what it holds."""
    masked = [failure for failure in tape.failures if _is_masked(failure)]
    if masked:
        return NothingToAttack(
            f"masked, no update: the tape {tape.path} holds {counted(len(masked), 'masked reply', 'masked replies')} "
            "of secure aggregation, of which the server learns the sum alone, and no update of a single client",
            tape=tape.path,
            masked=True,
        )
    return NothingToAttack(
        f"the tape {tape.path} has nothing to attack: {holdings(tape)}. Expected the tape of a run in which clients "
        "trained and replied",
        tape=tape.path,
    )


def holdings(tape: Tape) -> str:
    """What a tape without an update holds, in a sentence.

    >>> from types import SimpleNamespace as Fake  # some attributes of a tape are enough here
    >>> failed = TapeFailure(round=1, node="7", reason="no disk")
    >>> holdings(Fake(failures=[failed], rounds={1, 2}, evaluations=[], samplings=[]))
    'it holds no client update, but what the server sent in 2 rounds and 1 failed reply (no disk)'
    """
    parts = []
    if tape.rounds:
        parts.append(f"what the server sent in {counted(len(tape.rounds), 'round')}")
    if tape.failures:
        parts.append(f"{counted(len(tape.failures), 'failed reply', 'failed replies')} ({_commonest(tape.failures)})")
    if tape.samplings:
        parts.append(f"the note that none of {counted(tape.updates_seen, 'update')} was kept ({tape.sampled_by})")
    if rounds := {evaluation.round for evaluation in tape.evaluations}:
        parts.append(f"{counted(len(rounds), 'round')} in which clients only evaluated")
    return "it holds no client update" + (f", but {joined(parts)}" if parts else ", and nothing else")


def _commonest(failures: Sequence[TapeFailure]) -> str:
    counts = Counter(failure.reason for failure in failures)
    (reason, number), *others = counts.most_common()
    text = reason if len(reason) <= _REASON else f"{reason[:_REASON]}..."
    return f"{number} times: {text}" if others else text


def _is_masked(failure: TapeFailure) -> bool:
    """Whether the reply was a vector of masked parameters; the tape keeps this in the words of the reason alone."""
    return "masked" in failure.reason.lower()
