"""Every table under docs/results, from the file that holds its figures: ``python -m benchmarks.result_tables``.

``python -m benchmarks.result_tables PAGE`` writes those of one page. A table stands between the marks ``<!-- NAME -->``
and ``<!-- end of NAME -->``. Most come from the file that a benchmark wrote and from this benchmark's own function.
Those of benchmarks that kept no file are recorded: ``recorded/PAGE.json`` holds their cells with date, machine and
command, and their marks are called ``recorded: NAME``. `tests/test_result_tables.py` compares all with the pages.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.page_tables import write_between

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "docs" / "results"
RECORDED: Final = "recorded: "


@dataclass(frozen=True)
class Table:
    """A table of a page under Results.

    Attributes:
        page: Name of the page without its ending.
        mark: Name between its marks.
        file: File with its figures, below docs/results.
        make: Makes it of what the file holds.
    """

    page: str
    mark: str
    file: str
    make: Callable[[Any], str]

    def text(self) -> str:
        """The table in Markdown, with what else stands between its marks."""
        return self.make(read(RESULTS / self.file)).strip()


def by(function: str, *keys: str) -> Callable[[Any], str]:
    """A benchmark's own function, ``module:function``, of a part of the file; imported when it is called."""

    def made(content: Any) -> str:
        for key in keys:
            content = content[key]
        module, _, name = function.partition(":")
        return str(getattr(_benchmark(module), name)(content))

    return made


def part_of_scale(mark: str) -> Callable[[Any], str]:
    """One of the tables that are made together."""
    return lambda content: str(_benchmark("scale_tables").tables(content)[mark])


def recommended(function: str) -> Callable[[Any], str]:
    """A table of the searches for a defence, whose records are validated first."""

    def made(content: Any) -> str:
        benchmark = _benchmark("recommendations")
        found = [benchmark.Recommendation.model_validate(one) for one in content["models"]]
        return str(getattr(benchmark, function)(found))

    return made


def _benchmark(module: str) -> Any:
    # Some benchmarks are programs that import each other as neighbours.
    if (own := str(ROOT / "benchmarks")) not in sys.path:
        sys.path.append(own)
    return import_module(f"benchmarks.{module}")


_MADE: Final = (
    Table("activation-span", "figures", "activation-span.json", by("activation_span:table")),
    Table("apps", "apps", "apps.json", by("apps_table:table")),
    *(
        Table("architectures", mark, "architectures.json", by(f"architecture_map:{function}"))
        for mark, function in (
            ("counts", "counted"), ("map", "table"), ("controls", "controls"), ("equations", "equations"),
            ("peers", "peers"),
        )
    ),
    Table("canaries", "canaries", "canaries.json", by("canaries:table", "rows")),
    Table("defences", "guarantees", "guarantees.json", by("guarantees:claims_table", "rows")),
    Table("defences", "guarantee audits", "guarantees.json", by("guarantees:audits_table", "audited")),
    Table("evidence", "simulated audits", "simulated-audits.jsonl", by("simulated_audits:tables")),
    Table("evidence", "time to verdict", "time-to-verdict.json", by("time_to_verdict:table")),
    Table("heads", "heads", "heads.json", by("heads:table")),
    Table("heads", "low rank", "low-rank.json", by("low_rank:table")),
    Table("heads", "heads at 224", "heads-224.json", by("heads_at_224:table")),
    Table("identification", "noise", "identification.json", by("identification:noise_table", "noise")),
    Table("identification", "defences", "identification.json", by("identification:defences_table", "defences")),
    Table("labels", "label disclosure", "label-disclosure.json", by("label_disclosure:table", "rows")),
    Table("losses", "losses", "losses.json", by("losses:table")),
    *(
        Table("reproduce", mark, "recommendations.json", recommended(function))
        for mark, function in (
            ("recommendations", "families_table"), ("rungs", "rungs_table"), ("judged", "judged_table")
        )
    ),
    *(
        Table("scale", mark, "scale.json", part_of_scale(mark))
        for mark in ("measured", "fitted", "server alone", "cost model")
    ),
    Table("speed", "speed", "speed.json", by("speed_summary:table")),
    Table("speed", "time to quality", "time-to-quality.json", by("time_to_quality:table")),
    Table("speed", "search starts", "search-starts.json", by("search_starts:table")),
    Table("standard", "who reconstructs what", "standard.json", by("standard_page:table")),
    Table("transformers", "transformers", "transformers.json", by("transformers:table")),
    Table("transformers", "transformer-defences", "transformer-defences.json", by("transformer_defences:table")),
)  # fmt: skip


def read(file: Path) -> Any:
    """What a file of figures holds: one object, or one on each line."""
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def tables() -> Iterator[Table]:
    """All of them."""
    yield from _MADE
    for file in sorted((RESULTS / "recorded").glob("*.json")):
        for name in read(file):
            where = (file.stem, f"{RECORDED}{name}", f"recorded/{file.name}")
            yield Table(*where, partial(recorded, name))


def recorded(name: str, content: Any) -> str:
    """A table whose cells were kept as they stand, with the line before it where there is one."""
    entry = content[name]
    columns, rows = entry["columns"], entry["rows"]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"expected {len(columns)} cells in each row")
    below = ["---:" if side == "right" else "---" for side in entry["align"]]
    lines = ["| " + " | ".join(line) + " |" for line in (columns, below, *rows)]
    return "\n".join([entry.get("caption") or said(entry), "", *lines])


def said(entry: dict[str, Any]) -> str:
    """When a recorded table was measured, and by which command.

    >>> said({"measured": "2026-11-22", "dated_by": "the page", "command": None})
    '*Measured on 2026-11-22.*'
    """
    when = f"Measured {'on' if entry['dated_by'] == 'the page' else 'by'} {entry['measured']}"
    return f"*{when}*: `{entry['command']}`" if entry["command"] else f"*{when}.*"


def marked(page: str) -> dict[str, str]:
    """What stands between the marks of a page, by their names."""
    found = re.findall(r"<!-- (?!end of )(.*?) -->\n(.*?)\n<!-- end of \1 -->", page, re.DOTALL)
    return dict(found)


def main() -> None:
    """Command line."""
    for table in tables():
        if table.page in sys.argv[1:] or not sys.argv[1:]:
            write_between(RESULTS / f"{table.page}.md", table.mark, table.text())


if __name__ == "__main__":
    main()
