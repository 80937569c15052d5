"""Simulated audits with known truth: how often "leaks" and "held" are false, and what is said of updates that leak.

``python -m benchmarks.simulated_audits --processes 2
--out docs/results/simulated-audits.jsonl --page docs/results/evidence.md``

Audit i of a seed is always the same; each is a line of JSON as soon as it is done, and lines that are there are not run
again. ``--page`` also writes the tables into the page; with ``--table`` nothing is run.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacker.audit.audit import audit
from attacker.audit.record.schema import AuditRecord
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import LABELS, Knowledge
from attacker.audit.verdict.flags import LARGEST_SHARE
from benchmarks.page_tables import write_between
from benchmarks.simulated_cases import KINDS, Case, case
from benchmarks.simulated_oracle import recovered
from benchmarks.simulated_tapes import Simulated, simulate
from fl_precode import TapeSource
from fl_precode.federation.config import Settings

BUDGET = 12.0
"""Seconds for the attacks of a planned audit."""

LEAKS = ("leaks", "leaks to an adaptive attacker", "leaks in part")
HELD = "held against everything tried"
SAID = ("leaks", "held", "not shown", "not known", "refused")
Row = dict[str, Any]


def run(one: Case) -> Row:
    """Simulate, audit and judge one case; an audit that raises is a row, too."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        images, labels = one.images
        # Nobody measures an accuracy: what is given as test images leaves all others to the clients.
        few = {"test_images": images[:8], "test_labels": labels[:8]}
        np.savez(folder / "images.npz", images=images, labels=labels, **few)
        settings = Settings(dataset=f"npz:{folder / 'images.npz'}", device="cpu", **one.settings)  # type: ignore[arg-type]
        began = time.process_time()
        simulated = simulate(folder / "run", settings, alter=one.alter)
        row: Row = {
            "number": one.number,
            "kind": one.kind,
            "source": one.source,
            "model": settings.model,
            "defence": settings.defence,
            "altered": one.alter,
            "attacks": "planned" if one.attacks is None else " ".join(one.attacks),
            "truth": one.truth,
            "may_hold": one.may_hold,
        }
        taped = time.process_time()
        try:
            said = _said(_audit(one, folder, simulated))
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place_of = f"{Path(where.filename).name}:{where.lineno}"
            said = {
                "verdict": "error",
                "sentence": f"{type(error).__name__}: {str(error)[:300]} ({place_of})",
                "nodes": [],
            }
        audited = time.process_time()
        nodes = set(said.pop("nodes"))
        chosen = [seen for seen in simulated.seen if seen.node in nodes] or list(simulated.seen[:4])
        # What says nothing of the images needs no oracle; a held that is false would need one.
        share = None if one.truth == "does not" else recovered(simulated, chosen, search=one.truth == "oracle")
        seconds = [taped - began, audited - taped, time.process_time() - audited]
        return {**row, **said, "oracle": share, "seconds": [round(value, 2) for value in seconds]}


def _audit(one: Case, folder: Path, simulated: Simulated) -> AuditRecord:
    settings = AuditSettings(
        attacks=one.attacks,
        victims=one.victims,
        seed=one.number,
        knowledge=Knowledge.usual(know=[LABELS] if one.labels else []),
        budget=BUDGET if one.attacks is None else None,
    )
    return audit([TapeSource(tape=simulated.folder / "tape")], settings, out=folder / "audit")


def _said(record: AuditRecord) -> Row:
    (own,) = [one for one in record.federations if one.control_of is None]
    (verdict,) = [one for one in record.verdicts if one.federation == own.id]
    summaries = [one for one in record.summaries if one.federation == own.id]
    return {
        "verdict": verdict.verdict,
        "sentence": verdict.sentence,
        "came_back": max((one.successes or 0 for one in summaries), default=0),
        "images": max((one.images for one in summaries), default=0),
        "flags": sorted({one.name for one in record.flags if one.federation == own.id and one.weak}),
        "nodes": [one.node for one in record.victims if one.federation == own.id],
    }


def judged(row: Row) -> str:
    """``false leaks``, ``false held`` or nothing."""
    if row["verdict"] in LEAKS and row["truth"] == "does not":
        return "false leaks"
    if row["verdict"] == HELD and (leaks(row) or not row["may_hold"]):
        return "false held"
    return ""


def leaks(row: Row) -> bool:
    """Whether images are known to be reconstructed: by construction, or by more than what "held" leaves open."""
    return row["truth"] == "leaks" or (row["oracle"] or 0.0) > LARGEST_SHARE


def upper_bound(count: int, of: int) -> float:
    """95 % upper bound of a share (Clopper, Pearson 1934), one-sided.

    >>> round(upper_bound(0, 300), 4), upper_bound(3, 3)
    (0.0099, 1.0)
    """
    from scipy.stats import beta

    return 1.0 if count >= of else float(beta.ppf(0.95, count + 1, of - count))


def tables(rows: Sequence[Row]) -> str:
    """The page's two tables: what was said of each kind, and how often it was false."""
    names = SAID
    lines = ["| kind of audit | audits | truth | " + " | ".join(names) + " | false | seconds |"]
    lines.append("| --- | ---: | --- | " + "---: | " * len(names) + "---: | ---: |")
    for kind in KINDS:
        for truth in ("does not leak", "leaks", "not known"):
            own = [row for row in rows if row["kind"] == kind and _truth(row) == truth]
            if own:
                said = Counter(_short(row["verdict"]) for row in own)
                false = sum(bool(judged(row)) for row in own)
                seconds = sum(row["seconds"][1] for row in own) / len(own)
                cells = [kind, len(own), truth, *(said[name] or "" for name in names), false, f"{seconds:.1f}"]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", *_counts(rows)])


def _counts(rows: Sequence[Row]) -> Iterator[str]:
    found = Counter(judged(row) for row in rows)
    yield "| | of | count | share | 95 % upper bound |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    independent = [row for row in rows if row["truth"] == "does not"]
    leaking = [row for row in rows if leaks(row)]
    open_to = [row for row in rows if leaks(row) or not row["may_hold"]]
    yield _line('false "leaks", of all audits', found["false leaks"], len(rows))
    yield _line(
        'false "leaks", of audits whose updates say nothing of the images', found["false leaks"], len(independent)
    )
    yield _line('false "held", of all audits', found["false held"], len(rows))
    yield _line('false "held", of audits that leak or have too few images', found["false held"], len(open_to))
    for name in SAID:
        count = sum(_short(row["verdict"]) == name for row in leaking)
        yield f'| audits that leak, said "{name}" | {len(leaking)} | {count} | {_percent(count, len(leaking))} | |'
    held = [row for row in rows if row["verdict"] == HELD]
    right = sum(not judged(row) for row in held)
    yield f'| "held", not shown false | {len(held)} | {right} | {_percent(right, len(held))} | |'


def _line(words: str, count: int, of: int) -> str:
    return f"| {words} | {of} | {count} | {_percent(count, of)} | {100 * upper_bound(count, of):.1f} % |"


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "–"


def _truth(row: Row) -> str:
    return "does not leak" if row["truth"] == "does not" else "leaks" if leaks(row) else "not known"


def _short(verdict: str) -> str:
    if verdict in LEAKS:
        return "leaks"
    return {HELD: "held", "not shown to leak": "not shown", "error": "refused"}.get(verdict, verdict)


def read(out: Path) -> list[Row]:
    """Rows that are there already, in order."""
    if not out.exists():
        return []
    rows = [json.loads(line) for line in out.read_text().splitlines() if line]
    return sorted(rows, key=lambda row: row["number"])


def numbers(count: int, only: Iterable[str]) -> list[tuple[int, str]]:
    """Number and kind of each audit: the kinds take turns."""
    names = list(KINDS)
    wanted = set(only) or set(names)
    return [(one, names[one % len(names)]) for one in range(count) if names[one % len(names)] in wanted]


def _prepare() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)


def _work(number: int, kind: str, seed: int, shared: bool) -> Row:
    return run(case(kind, number, seed, shared=shared))


def results(todo: Sequence[tuple[int, str]], *, seed: int, shared: bool, processes: int) -> Iterator[Row]:
    """Rows as they are done."""
    if processes == 1:
        _prepare()
        for number, kind in todo:
            yield _work(number, kind, seed, shared)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    # Not an executor: Python 3.11's waits for ever when all of its processes have had their tasks.
    with context.Pool(processes, _prepare, maxtasksperchild=50) as pool:
        yield from pool.imap_unordered(_spread, [(number, kind, seed, shared) for number, kind in todo])


def _spread(task: tuple[int, str, int, bool]) -> Row:
    return _work(*task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="audits; the kinds take turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=[], choices=list(KINDS), metavar="KIND", help="of these kinds only"
    )
    parser.add_argument("--number", type=int, nargs="+", help="these audits only")
    parser.add_argument("--offline", action="store_true", help="leave ../shared/data out")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables of --out, and run nothing")
    parser.add_argument("--page", type=Path, help="page that gets the tables")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; what is there is not run again")
    options = parser.parse_args()
    rows = read(options.out)
    if not options.table:
        there = {row["number"] for row in rows}
        todo = [one for one in numbers(options.count, options.only) if one[0] not in there]
        todo = [one for one in todo if options.number is None or one[0] in options.number]
        found = results(todo, seed=options.seed, shared=not options.offline, processes=options.processes)
        with options.out.open("a") as file:
            for row in found:
                note = judged(row) or ("ERROR " + row["sentence"] if row["verdict"] == "error" else "")
                # What was said is worth keeping where it is false, or where nothing was.
                kept = row if note else {key: value for key, value in row.items() if key != "sentence"}
                file.write(json.dumps(kept) + "\n")
                file.flush()
                print(row["number"], row["kind"], "|", row["verdict"], "|", row["seconds"], note, flush=True)
    rows = read(options.out)
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(tables(rows))
    if options.page is not None:
        write_between(options.page, "simulated audits", tables(rows))


if __name__ == "__main__":
    main()
