"""The table of ``docs/results/apps.md`` from ``docs/results/apps.json``, which ``tests.apps.shelf_run`` writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    "| app | lines | moved | run, s | audit, s | images | attacks run | reconstructed | best SSIM | verdict |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- | ---: | --- |\n"
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    return HEAD + "".join(_line(one) for one in rows)


def _line(row: Mapping[str, Any]) -> str:
    attacks = ", ".join(f"`{one}`" for one in row["attacks"]) or "none"
    back = f"{row['came_back']} of {row['images']}" if row["truth"] else "–"
    ssim = f"{row['ssim']:.2f}" if row["truth"] else "–"
    verdict = row["verdict"] if row["attacks"] else "why not is said"
    cells = [f"`{row['app']}`", row["lines"], row["moved"], row["run_seconds"], row["audit_seconds"],
             row["images"] if row["attacks"] else "–", attacks, back, ssim, verdict]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |\n"
