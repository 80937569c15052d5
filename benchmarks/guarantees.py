"""Deployed filters: their claim, their formula's bound, what canaries refute, and the real images reconstructed.

    OMP_NUM_THREADS=1 python -m benchmarks.guarantees --out docs/results/guarantees.json \\
        --audits docs/results/guarantee-audits.jsonl

Claims and formulas follow from the settings and from how many numbers a model's update has; nothing is drawn. Audits
are of federations whose clients make one local step of SGD on CIFAR-10 from ../shared/data, else on photographs: eight
images each, audit i of a case with the seed i, untrained weights. Each audit is a line of JSON as soon as it is done,
and lines that are there are not run again; ``--table`` runs none. ``--page`` gets the tables.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from attacker.audit.record.trials import share_interval
from attacker.wording import budget, percent
from benchmarks.command_line import parse, write_record
from benchmarks.filtered_audits import IMAGES, POOL, Case, images_of, measured
from benchmarks.images import CIFAR10, first_images
from benchmarks.page_tables import write_between
from fl_precode.models import build_model
from fl_precode.privacy import Conditions, privacy_statement
from fl_precode.privacy.released import released_by
from fl_precode.privacy.robustness import most_successes_gaussian

logger = logging.getLogger("guarantees")

PLATFORM: Final = "local-dp:clip=1,sensitivity=1e-4,epsilon=10,delta=1e-5"
RIGHT: Final = "local-dp:clip=1,sensitivity=1,epsilon=10,delta=1e-5"
SPECS: Final = (PLATFORM, "percentile", "svt", RIGHT)
"""A hospital platform's settings of Flower's mod, NVFlare's defaults, the first with the sensitivity of its clip."""

CONTROLS: Final = ("none", RIGHT)
"""Of which fewer audits say enough."""


def main() -> None:
    """Measure, and write files and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["lenet", "lenet:activation=relu", "mlp"])
    parser.add_argument("--rounds", type=int, default=100, help="that are composed")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8], help="images behind one update")
    parser.add_argument("--audits", type=Path, help="JSON lines of audits; what is there is not run again")
    parser.add_argument("--count", type=int, default=8, help="audits of a case, of eight images each")
    parser.add_argument(
        "--control-count", type=int, default=2, help="audits without a filter, and with the right noise"
    )
    parser.add_argument("--formula-count", type=int, default=1, help="audits of a case with layer-wise formulas, too")
    parser.add_argument("--iterations", type=int, default=400, help="of each search")
    parser.add_argument("--table", action="store_true", help="run no audit")
    parser.add_argument("--page", type=Path, help="page that gets the tables")
    options = parse(parser)
    audits = _audits(options) if options.audits else []
    claims = [_claimed(spec, name, options) for spec in SPECS for name in options.models]
    rows = [row for case in _cases(options, 0) if (row := _row(case, audits)) is not None]
    record = {
        "measured": date.today().isoformat(), "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {name: version(name) for name in ("dp-accounting", "torch", "numpy")},
        "seeds": sorted({one["seed"] for one in audits}), "rounds": options.rounds, "data": first_images(1)[0],
        "rows": claims, "audited": rows,
    }  # fmt: skip
    write_record(record, options)
    logger.info("%s\n\n%s", claims_table(claims), audits_table(rows))
    if options.page is not None:
        write_between(options.page, "guarantees", claims_table(claims))
        write_between(options.page, "guarantee audits", audits_table(rows))


def _cases(options: argparse.Namespace, seed: int) -> Iterator[Case]:
    """What is audited with a seed: all of it with the first ones, so that each case has its audits early."""
    for spec in dict.fromkeys((*SPECS, *CONTROLS)):
        if spec in CONTROLS and seed >= options.control_count:
            continue
        for batch in options.batches:
            yield from (Case(spec=spec, model=name, batch=batch) for name in options.models)


def _audits(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is not in the file yet, seed by seed; all lines."""
    lines = options.audits.read_text().splitlines() if options.audits.exists() else []
    found = [json.loads(line) for line in lines]
    done = {(one["spec"], one["model"], one["batch"], one["seed"]) for one in found}
    if options.table:
        return found
    warnings.filterwarnings("ignore")
    logging.getLogger("attacker").setLevel(logging.ERROR)
    pixels, labels = _pixels(options.count)
    for seed in range(options.seed, options.seed + options.count):
        for case in _cases(options, seed - options.seed):
            if (case.spec, case.model, case.batch, seed) in done:
                continue
            formulas = seed - options.seed < options.formula_count
            row = measured(case, seed, images_of(pixels, labels, seed), options.iterations, formulas=formulas)
            found.append(row)
            with options.audits.open("a") as file:
                file.write(json.dumps(row) + "\n")
            logger.info("%s, %s, batch %d, seed %d: %d of %d, %.0f s", case.spec, case.model, case.batch, seed,
                        row["back"], row["images"], row["cpu_seconds"])  # fmt: skip
    return found


def _pixels(audits: int) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels, in the official order; those of one audit do not stand in another."""
    if not CIFAR10.exists():
        _, images, labels, _ = first_images(8 * IMAGES)
        return images, labels
    import numpy as np

    with np.load(CIFAR10) as arrays:
        order = np.argsort(arrays["train_index"])[: audits * POOL]
        pixels, labels = arrays["train_images"][order], arrays["train_labels"][order]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(labels).long()


def _claimed(spec: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Claim and formula, for one image and one client, a round and all rounds."""
    inputs = first_images(1)[3]
    numbers = sum(p.numel() for p in build_model(model, inputs, seed=0).parameters())
    said = privacy_statement(spec, Conditions(rounds=options.rounds, numbers=numbers))
    return {
        "spec": spec, "model": model, "numbers": numbers, "claimed": None if said.claim is None else said.claim.epsilon,
        "holds": said.holds, "why_not": said.why_not, "guarantees": [asdict(one) for one in said.guarantees],
    }  # fmt: skip


def _row(case: Case, audits: list[dict[str, Any]]) -> dict[str, Any] | None:
    """All audits of a case together; None where there is none."""
    own = [one for one in audits if (one["spec"], one["model"], one["batch"]) == (case.spec, case.model, case.batch)]
    if not own:
        return None
    images, back, guessed = (sum(one[key] for one in own) for key in ("images", "back", "guessed"))
    updates = sum(one["updates"] for one in own)
    prior = share_interval(guessed, images, updates)[1]
    released = released_by(case.spec)
    canaries = [one["canaries"] for one in own if "canaries" in one]
    return {
        "spec": case.spec, "model": case.model, "batch": case.batch, "images": images, "updates": updates,
        "back": back, "interval": share_interval(back, images, updates), "guessed": guessed, "prior": prior,
        "most": None if released is None else most_successes_gaussian(prior, released.mu),
        "best": _best_attack(own),
        "ssim": statistics.median(one[0] or 0.0 for audit in own for one in audit["each"]),
        "as_it_was": statistics.median(one["as_it_was"] for one in own),
        "audited": [one["epsilon"] for one in canaries],
        "counted": [one["counted"] for one in canaries],
        "right": [f"{one['right']} of {one['guesses']}" for one in canaries],
        "canary_codes": sorted({code for one in canaries for code in one["codes"]}),
        "cpu_seconds": round(sum(one["cpu_seconds"] for one in own)),
    }  # fmt: skip


def _best_attack(audits: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The attack that reconstructed most alone."""
    total: dict[str, list[int]] = {}
    for audit in audits:
        for spec, one in audit["attacks"].items():
            if one["images"]:
                back, images = total.setdefault(spec, [0, 0])
                total[spec] = [back + (one["back"] or 0), images + one["images"]]
    if not total:
        return None
    spec = max(total, key=lambda name: (total[name][0], name))
    return {"attack": spec, "back": total[spec][0], "images": total[spec][1]}


def claims_table(rows: list[dict[str, Any]]) -> str:
    """Claim and formula, of the smallest model where the models differ."""
    lines = [
        "| spec | model | claimed | classical formula, right sensitivity | client, one round | client, 100 rounds | "
        "image, one round | image, 100 rounds | holds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    said: dict[str, list[str]] = {}
    for row in rows:
        by_level = {one["level"]: one for one in row["guarantees"]}
        figures = [
            budget(by_level[level][key]) if level in by_level and by_level[level][key] is not None else "none"
            for level in ("client", "image")
            for key in ("a_round", "composed")
        ]
        classical = by_level.get("client", {}).get("classical")
        cells = [
            "–" if row["claimed"] is None else f"{row['claimed']:g}", "–" if classical is None else f"{classical:,.0f}",
            *figures, "yes" if row["holds"] else "no",
        ]  # fmt: skip
        said.setdefault(f"`{row['spec']}` | {{}} | {' | '.join(cells)}", []).append(row["model"])
    for text, models in said.items():
        lines.append("| " + text.format(", ".join(models) if len(models) < 3 else "each") + " |")
    return "\n".join(lines)


def audits_table(rows: list[dict[str, Any]]) -> str:
    """Lower bound, upper bound and what was reconstructed."""
    lines = [
        "| spec | model | images an update | sent as it was | canaries: epsilon at least | a guess reaches | "
        "any attack at most | reconstructed | 95 % | median SSIM | best attack alone |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        low, high = row["interval"]
        best = row["best"]
        cells = [
            f"`{row['spec']}`", row["model"], str(row["batch"]), percent(row["as_it_was"]),
            f"{budget(statistics.median(row['audited']))} ({row['right'][0]} right)" if row["audited"] else "–",
            f"{row['guessed']} of {row['images']}, at most {percent(row['prior'])}",
            "no bound" if row["most"] is None else percent(row["most"]),
            f"**{row['back']} of {row['images']}**", f"{percent(low)} to {percent(high)}", f"{row['ssim']:.2f}",
            "–" if best is None or not best["back"]
            else f"`{best['attack'].partition(':')[0]}` {best['back']} of {best['images']}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
