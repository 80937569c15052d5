"""Who reconstructs what: results of standard-1 and scores of peers, as a file and the table of its page.

    python benchmarks/standard_page.py collect OUT --peers PEERS \\
        --index docs/results/sealed-tapes.json --date 2026-11-30
    python benchmarks/standard_page.py table

OUT holds a folder for each tape, in which `fl-precode standard --out OUT/TAPE` wrote its result. PEERS holds for each
attempt TAPE.NAME.json, as benchmarks/peer_reconstructions.py wrote it, and TAPE.NAME.score.json by `fl-precode score`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from attacker.standard.definition import STANDARD_1, STANDARDS
from attacker.standard.result import RESULT_NAME, Score, StandardResult, read_result
from benchmarks.page_tables import write_between
from fl_precode.spec import spec_name

ROOT = Path(__file__).resolve().parents[1]
RECORD, PAGE = ROOT / "docs/results/standard.json", ROOT / "docs/results/standard.md"
KEPT = ("peer", "preset", "iterations", "preset_iterations", "cpu_seconds", "extrapolated_cpu_seconds", "problems")


def collect(out: Path, peers: Path, index: Mapping[str, Any], date: str) -> dict[str, Any]:
    """The record of everything that was run on the tapes of an index.

    Raises:
        ValueError: If a result is of another tape or another standard.
    """
    tapes = []
    for entry in index["tapes"]:
        known = ("name", "model", "defence", "dataset", "protocol", "batch_size", "updates", "fingerprint")
        tape = {key: entry[key] for key in known}
        if (file := out / entry["name"] / RESULT_NAME).exists():
            result = read_result(file, StandardResult)
            _check(file, result, entry)
            tape["standard"] = result.model_dump(mode="json", exclude={"tape", "attacked", "format", "version"})
        tape["peers"] = [_attempt(file, entry) for file in sorted(peers.glob(f"{entry['name']}.*.score.json"))]
        tapes.append(tape)
    return {"date": date, "edition": index["edition"], "key_sha256": index["key_sha256"], "torch": index["torch"],
            "tapes": tapes}  # fmt: skip


def _attempt(file: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    score = read_result(file, Score)
    _check(file, score, entry)
    about = json.loads(file.with_name(file.name.replace(".score.json", ".json")).read_text(encoding="utf-8"))
    return {**{key: about[key] for key in KEPT}, "figures": score.figures.model_dump(mode="json"),
            "reconstructions": score.reconstructions}  # fmt: skip


def _check(file: Path, result: StandardResult | Score, entry: Mapping[str, Any]) -> None:
    if result.tape.sha256 != entry["fingerprint"]:
        raise ValueError(f"{file} is of another tape than {entry['name']} of the index")
    if STANDARDS[result.standard].digest != result.definition:
        raise ValueError(f"{file} is of another definition of {result.standard}")


def table(record: Mapping[str, Any]) -> str:
    """The table of the page."""
    lines = [
        f"Tapes of edition {record['edition']}, {record['date']}; {STANDARD_1.name} is `{STANDARD_1.digest[:12]}`. "
        "In a cell: images reconstructed, identified; mean SSIM.",
        "",
        "| tape | model, defence | images | best guess | standard-1, any attack | its best attack | peers |",
        "| --- | --- | ---: | ---: | --- | --- | --- |",
    ]
    for tape in record["tapes"]:
        defence = "" if tape["defence"] == "none" else f", `{tape['defence']}`"
        local = "" if tape["protocol"] == "fedsgd" else ", FedAvg"
        images, guess, ours = _ours(tape)
        peers = "<br>".join(map(_peer, tape["peers"])) or "not run"
        lines.append(f"| {tape['name']} | `{tape['model']}`{defence}{local} | {images} | {guess} | {ours} | {peers} |")
    return "\n".join([*lines, "", *_costs(record)])


def _ours(tape: Mapping[str, Any]) -> tuple[str, str, str]:
    result = tape.get("standard")
    if result is None:
        known = next((peer["figures"] for peer in tape["peers"]), None)
        return ("–", "–", "not run | –") if known is None else (known["images"], _two(known["mean_guess_ssim"]),
                                                                 "not run | –")  # fmt: skip
    best = next(attack for attack in result["attacks"] if attack["attack"] == result["best"])
    figures = best["figures"]
    back = f"**{result['reconstructed_by_any']} of {figures['images']}**"
    return (
        str(figures["images"]),
        _two(figures["mean_guess_ssim"]),
        f"{back} | {spec_name(best['attack'])}: {_figures(figures)}",
    )


def _peer(attempt: Mapping[str, Any]) -> str:
    share = "" if attempt["iterations"] == attempt["preset_iterations"] else f" of {attempt['preset_iterations']:,}"
    failed = f"; {len(attempt['problems'])} updates without result" if attempt["problems"] else ""
    return (
        f"{attempt['peer']} `{attempt['preset']}`, {attempt['iterations']:,}{share} iterations: "
        f"{_figures(attempt['figures'])}{failed}"
    )


def _figures(figures: Mapping[str, Any]) -> str:
    identified = "–" if figures["identified"] is None else figures["identified"]
    return f"{figures['reconstructed']}, {identified}; {_two(figures['mean_ssim'])}"


def _costs(record: Mapping[str, Any]) -> Sequence[str]:
    rows = [(tape["name"], attempt) for tape in record["tapes"] for attempt in tape["peers"]]
    if not rows:
        return []
    lines = [
        "What the peers' code took, CPU seconds of one thread for all updates of a tape; the last column is reckoned "
        "from the one before, not measured:",
        "",
        "| tape | peer | iterations | CPU s | its preset | CPU s of the preset, extrapolated |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {one['peer']} | {one['iterations']:,} | {one['cpu_seconds']:.0f} | {one['preset_iterations']:,} | "
        f"≈ {one['extrapolated_cpu_seconds']:,.0f} |"
        for name, one in rows
    ]
    return lines


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    collecting = what.add_parser("collect", help="read results, write docs/results/standard.json and the table")
    collecting.add_argument("out", type=Path)
    collecting.add_argument("--peers", type=Path, required=True)
    collecting.add_argument("--index", type=Path, required=True)
    collecting.add_argument("--date", required=True, help="of the measurement, ISO 8601")
    what.add_parser("table", help="write the table of docs/results/standard.json anew")
    options = parser.parse_args()
    if options.what == "collect":
        index = json.loads(options.index.read_text(encoding="utf-8"))
        record = collect(options.out, options.peers, index, options.date)
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_between(PAGE, "who reconstructs what", table(json.loads(RECORD.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
