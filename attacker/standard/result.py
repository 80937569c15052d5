"""Result of a standard on a tape: the content of ``standard.json``, which two runs write with equal bytes.

No time, date, path, version or memory stands in it; those are in the ``audit.json`` beside it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field, ValidationError

from attacker.audit.record.counting import counts, strength
from attacker.audit.record.entry import Count, Entry, Identifier, Number, PlanStatus
from attacker.audit.record.schema import AttackSummary, AuditRecord, FederationSummary, ImageResult, PlannedAttack
from attacker.standard.definition import Standard
from fl_precode.private_file import write_private

RESULT_NAME: Final = "standard.json"
SCORE_NAME: Final = "score.json"

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Update(Entry):
    """An update that was attacked."""

    round: Count
    node: str
    images: Count


class AttackedTape(Entry):
    """The tape, as far as others can check that theirs is the same."""

    sha256: _Digest = Field(description="of the header and the manifest, which lists the SHA-256 of every update")
    model: str
    defence: str
    protocol: str
    shape: tuple[int, int, int] = Field(description="channels, height, width of the images")
    updates: Count = Field(description="on the tape")


class Figures(Entry):
    """What one attack reconstructed, in the figures of an audit."""

    images: Count = Field(description="attacked, without those that the attack does not fit")
    reconstructed: Count | None = Field(
        description="SSIM at or above the threshold and beyond the best guess; null without truth"
    )
    identified: Count | None = Field(
        description="told from the candidates by pixels, by more than chance; null without truth or candidates"
    )
    mean_ssim: Number | None
    mean_psnr: Number | None = Field(description="dB, over images that have one: identical images have none")
    mean_guess_ssim: Number | None = Field(description="of the best guess without the update, and placebos")
    median_matching_loss: Number | None = Field(description="gradient distance without priors; null when not measured")
    failed: Count = Field(description="images on which it raised or diverged")


class AttackResult(Entry):
    """What became of one attack of the standard."""

    attack: str = Field(description="spec, with every setting")
    status: PlanStatus
    figures: Figures
    not_applicable: Count = Field(description="images of updates that it does not fit")
    reasons: list[str] = Field(description="why it did not run, or failed")
    reason_codes: list[Identifier] = Field(description="of these, as in docs/reference/codes.md")


class StandardResult(Entry):
    """The whole result."""

    format: Literal["fl-precode-standard"] = "fl-precode-standard"
    version: Literal[1] = 1
    standard: str
    definition: _Digest = Field(description="SHA-256 of the standard's definition")
    tape: AttackedTape
    attacked: list[Update]
    attacks: list[AttackResult]
    best: str | None = Field(description="the attack that reconstructed most images; null where none ran")
    reconstructed_by_any: Count | None = Field(description="images that at least one attack reconstructed")


class Score(Entry):
    """How good the reconstructions are that somebody else made of a tape's updates."""

    format: Literal["fl-precode-score"] = "fl-precode-score"
    version: Literal[1] = 1
    name: str = Field(description="of what made them, as it was given")
    standard: str = Field(description="whose updates and candidates were used")
    definition: _Digest
    tape: AttackedTape
    attacked: list[Update]
    reconstructions: _Digest = Field(description="SHA-256 of the file")
    figures: Figures


Result = TypeVar("Result", StandardResult, Score)


def standard_result(record: AuditRecord, standard: Standard) -> StandardResult:
    """The result of a standard run, from the record of its audit.

    Args:
        record: Record of the audit of one tape by `Standard.settings`.
        standard: That was run.
    """
    (federation,) = record.federations
    summaries = {summary.attack: summary for summary in record.summaries}
    attacks = [_attack(planned, summaries.get(planned.attack), record.results) for planned in record.plan]
    ran = [attack for attack in attacks if attack.figures.images]
    back = {row.victim_id for row in record.results if counts(row, record.success_threshold)}
    return StandardResult(
        standard=standard.name,
        definition=standard.digest,
        tape=attacked_tape(federation),
        attacked=updates(record.results),
        attacks=attacks,
        best=max(ran, key=_strength).attack if ran else None,
        reconstructed_by_any=len(back) if any(row.baseline_ssim is not None for row in record.results) else None,
    )


def _attack(planned: PlannedAttack, summary: AttackSummary | None, results: Iterable[ImageResult]) -> AttackResult:
    tried = summary if planned.status == "run" else None
    return AttackResult(
        attack=planned.attack,
        status=planned.status,
        figures=figures(summary, results),
        not_applicable=0 if summary is None else summary.not_applicable,
        reasons=[planned.reason] if tried is None else tried.reasons,
        reason_codes=planned.reason_codes if tried is None else tried.reason_codes,
    )


def figures(summary: AttackSummary | None, results: Iterable[ImageResult]) -> Figures:
    """The figures of one attack.

    Args:
        summary: Summary of the attack; None where it was not tried.
        results: Results of all attacks.
    """
    if summary is None:
        return Figures(
            images=0, reconstructed=None, identified=None, mean_ssim=None, mean_psnr=None, mean_guess_ssim=None,
            median_matching_loss=None, failed=0,
        )  # fmt: skip
    rows = [row for row in results if row.attack == summary.attack and row.outcome != "not_applicable"]
    by_pixels = next((ranks for ranks in summary.identification if ranks.measure == "pixels"), None)
    return Figures(
        images=summary.images,
        reconstructed=summary.successes,
        identified=None if by_pixels is None else by_pixels.identified,
        mean_ssim=summary.mean_ssim,
        mean_psnr=_mean(row.psnr for row in rows),
        mean_guess_ssim=_mean(row.guess_ssim for row in rows),
        median_matching_loss=_median(row.matching_loss for row in rows),
        failed=summary.failed,
    )


def attacked_tape(federation: FederationSummary) -> AttackedTape:
    """The tape of a record's federation."""
    assert federation.tape_identity is not None
    return AttackedTape(
        sha256=federation.tape_identity.sha256,
        model=federation.model,
        defence=federation.defence,
        protocol=federation.protocol,
        shape=federation.shape,
        updates=federation.updates,
    )


def updates(results: Iterable[ImageResult]) -> list[Update]:
    """The updates behind some results, in their order."""
    images: dict[tuple[int, str], set[int]] = {}
    for row in results:
        images.setdefault((row.round, row.node), set()).add(row.image)
    return [Update(round=number, node=node, images=len(some)) for (number, node), some in images.items()]


def write_result(result: StandardResult | Score, path: Path) -> Path:
    """Write a result as JSON, readable by its owner only; the absolute path.

    Raises:
        OSError: If it cannot be written.
    """
    path = path.expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, (result.model_dump_json(indent=1) + "\n").encode())
    return path


def read_result(path: Path, kind: type[Result]) -> Result:
    """Read what `write_result` wrote.

    Raises:
        ValueError: If it is something else, or damaged.
        OSError: If it cannot be read.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "file"
        wanted = json.dumps(kind.model_fields["format"].default)
        raise ValueError(f"{path} is no complete result of format {wanted}: {place}: {first['msg']}") from error


def _strength(attack: AttackResult) -> tuple[int, int, float]:
    return strength(attack.figures.reconstructed, attack.figures.images, attack.figures.mean_ssim)


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return statistics.fmean(known) if known else None


def _median(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return statistics.median(known) if known else None


def _known(values: Iterable[float | None]) -> Sequence[float]:
    return [value for value in values if value is not None]
