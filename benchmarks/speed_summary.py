"""The table of speed in docs/results/speed.md: median and range over all runs that docs/results/speed.json holds.

``python -m benchmarks.result_tables speed`` writes it. A new measurement by `benchmarks/speed.py` is one more run.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Final

_ORDER: Final = ("LeNet", "MLP", "ResNet20-4")


def table(content: dict[str, Any]) -> str:
    """One row for each model and number of candidates."""
    lines = [
        "| model | candidates in one pass | runs | reference, ms | ours, ms | times faster |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    measured = [(run, entry) for run in content["runs"] for entry in run["entries"]]
    contenders = dict.fromkeys(entry["what"] for _, entry in measured)
    for model in _ORDER:
        for what in sorted(contenders, key=_size):
            found = [(run, entry) for run, entry in measured if (run["model"], entry["what"]) == (model, what)]
            if found:
                reference = spread([run["reference_ms"] for run, _ in found])
                cells = [model, what, len(found), reference, spread([one["ms"] for _, one in found])]
                lines.append(f"| {' | '.join(map(str, cells))} | **{spread([one['times'] for _, one in found])}** |")
    return "\n".join(lines)


def spread(values: list[float | None]) -> str:
    """Median and range of what was written down.

    >>> spread([3.2, None, 2.9, 5.0])
    '3.2 (2.9 to 5)'
    >>> spread([12.0]), spread([None])
    ('12', '–')
    """
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    if len(known) == 1:
        return f"{known[0]:.3g}"
    return f"{median(known):.3g} ({min(known):.3g} to {max(known):.3g})"


def _size(what: str) -> tuple[int, str]:
    """Candidates first; the plain loop has none."""
    first = what.partition(" ")[0]
    return (int(first), what) if first.isdigit() else (0, what)
