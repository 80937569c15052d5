"""Chunks of an audit as jobs: how they are done, and how reconstructions become files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from attacker.audit.execution.attack_job import Chunk, run_chunk
from attacker.jobs.job import Job, Tell
from attacker.jobs.store import JobStore
from attacker.reasons import Reason

Results = Sequence[Reconstruction]
ChunkStore = JobStore[Results]


class AttackWork:
    """Attacks the targets of a chunk; see `Work`."""

    format = "fl-precode-chunk"
    version = 1

    def do(self, content: Mapping[str, Any], *, seconds: float | None, tell: Tell) -> Results:
        """See `Work`."""
        return run_chunk(Chunk.from_content(content), tell, seconds=seconds)

    def encode(self, result: Results) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Codec`."""
        tensors: dict[str, Tensor] = {}
        return {
            "results": [_row(reconstruction, str(number), tensors) for number, reconstruction in enumerate(result)]
        }, tensors

    def decode(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Results:
        """See `Codec`."""
        return [_reconstruction(row, str(number), tensors) for number, row in enumerate(content["results"])]


ATTACK: Final = AttackWork()


def job_of(chunk: Chunk, cost: float, phase: int = 0) -> Job:
    """The job of a chunk.

    Args:
        chunk: What is attacked, and by what.
        cost: Expected seconds of it.
        phase: See `Job`.
    """
    title = f"{chunk.federation}: {chunk.attack}"
    work = "attacker.audit.execution.work:ATTACK"
    return Job(id=chunk.id, work=work, title=title, content=chunk.to_content(), cost=cost, phase=phase)


def _row(reconstruction: Reconstruction, place: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Everything in a reconstruction that is no tensor; tensors go to ``tensors``."""
    row: dict[str, Any] = {}
    for field in fields(Reconstruction):
        value = getattr(reconstruction, field.name)
        if isinstance(value, Tensor):
            tensors[f"{place}.{field.name}"] = value
        elif isinstance(value, tuple):
            tensors |= {f"{place}.{field.name}.{number}": part for number, part in enumerate(value)}
            row[field.name] = len(value)
        else:
            row[field.name] = value.name if isinstance(value, Outcome) else value
    row["reason_codes"] = list(reconstruction.reason_codes)
    return row


def _reconstruction(row: Mapping[str, Any], place: str, tensors: Mapping[str, Tensor]) -> Reconstruction:
    values: dict[str, Any] = {**row, "outcome": Outcome[row["outcome"]]}
    values["reason"] = Reason(row["reason"], *values.pop("reason_codes", ()))
    values["noise"] = tuple(tensors[f"{place}.noise.{number}"] for number in range(row["noise"]))
    values |= {name: tensors.get(f"{place}.{name}") for name in ("inputs", "labels")}
    return Reconstruction(**values)
