"""The judgement of one update, before it is sent: a tape of it and its true images in, a decision and a page out.

For `fl_precode.flower.guard`. What an audit needs is imported when there is something to judge.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fl_precode.randomness.seeding import undisturbed_rng

if TYPE_CHECKING:
    from fl_precode.auditing import AuditRecord


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What an audit says of one update.

    Attributes:
        passes: Whether the update may be sent; None where nobody can tell.
        finding: What was found, or why it could not be judged, as a clause without a full stop.
        page: The audit's page; None where there is none.
    """

    passes: bool | None
    finding: str
    page: Path | None = None


def judge_update(
    tape: Path, *, truth: Path, out: Path, seconds: float, max_asr: float = 0.0, defence: str | None = None
) -> Judgement:
    """Attack the update of a tape, compare with the true images, and decide; whatever goes wrong is said, not raised.

    Args:
        tape: Tape of one update.
        truth: Folder that `fl_precode.flower.record_truth` wrote into.
        out: Folder for ``audit.json`` and the page.
        seconds: Budget of the audit.
        max_asr: As of `decided`.
        defence: The defence that the attacker is taken to know of; None for what stands on the tape.
    """
    try:
        from fl_precode.auditing import audit

        # The audit works in the client's process, whose training draws from the same generators.
        with undisturbed_rng():
            record = audit(
                tape, truth=f"recorded:{truth}", victims=1, budget=seconds, out=out, control=False, defence=defence
            )
            page = record.save_report()
    except ModuleNotFoundError as error:
        why = f"the audit needs {error.name}, which is not installed: pip install 'fl-precode[audit]'"
        return Judgement(passes=None, finding=why)
    except Exception as error:  # noqa: BLE001 - a guard that stops at a surprise lets nothing pass, and says why
        return Judgement(
            passes=None, finding=f"the audit failed: {str(error).strip().rstrip('.') or type(error).__name__}"
        )
    return decided(record, max_asr, page)


def decided(record: AuditRecord, max_asr: float, page: Path | None = None) -> Judgement:
    """Decide by the verdict of an audit of one federation, and the demand that ``fl-precode check --max-asr`` makes.

    An update whose verdict is *not known* is not judged. One that *leaks in part* passes only where ``max_asr`` leaves
    room for a reconstructed image.

    Args:
        record: The audit.
        max_asr: Largest share of the judged images that may be reconstructed.
        page: Its page.
    """
    from attacker.attacks.registry import attack_title
    from attacker.audit.verdict.ci_gate import Demands, answers, images_reconstructed, judged
    from attacker.wording import counted, joined, was

    summary = judged(record)[0]
    federation = summary.id
    verdict = next(entry for entry in record.verdicts if entry.federation == federation)
    if verdict.verdict == "not known":
        why = summary.truth_note or _why_nothing_ran(record, federation)
        return Judgement(passes=None, finding=f"{verdict.sentence} {why}".strip().rstrip("."), page=page)
    met = all(answer.met for answer in answers(record, Demands(max_asr=max_asr)))
    if verdict.verdict == "leaks in part":
        return Judgement(passes=met and max_asr > 0, finding=verdict.sentence.rstrip("."), page=page)
    back, images = images_reconstructed(record, federation)
    found = [one for one in record.summaries if one.federation == federation and one.successes]
    by = f", by {joined([attack_title(one.attack) for one in found])}" if found else f" ({verdict.verdict})"
    said = f"{back} of {counted(images, 'image')} {was(back, images)} reconstructed{by}"
    return Judgement(passes=met, finding=said, page=page)


def _why_nothing_ran(record: AuditRecord, federation: str) -> str:
    """The reason that most attacks have where the plan ran none; a model that is not the app's is seen there."""
    planned = [one for one in record.plan if one.federation == federation]
    if not planned or any(one.status == "run" for one in planned):
        return ""
    ((reason, _),) = Counter(one.reason for one in planned).most_common(1)
    return f"Most attacks were left out, because {reason}"
