"""Which defence holds for which model, and where none does by how much the curves fail to meet.

    OMP_NUM_THREADS=1 python benchmarks/recommendations.py --data npz:cifar10.npz --models mlp lenet:activation=relu \\
        --work outputs/recommendations --out docs/results/recommendations.json --page docs/results/reproduce.md

Each model is a search as `fl-precode recommend` makes it, with sizes of its own; finished pieces are kept in --work, so
that the same command goes on where it was stopped. With --again what an earlier run recommends is judged on more images
without the search. Beside the JSON stands the plot of all models, privacy-utility.svg
and .csv. The JSON keeps what was found; --page has the tables that are made from it, with --models empty from --join.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import re
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import command_line
from attacker.experiments.defence_search.figures import closest_trial, family_name, keep_figures
from attacker.experiments.defence_search.judged_again import judge_again
from attacker.experiments.defence_search.result import Judged, Recommendation, Rung, Trial
from attacker.experiments.defence_search.search import DefenceSearch
from attacker.experiments.precode.experiment import Experiment, default_root
from attacker.experiments.scales import SCALES, Scale
from page_tables import write_between

logger = logging.getLogger("recommendations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["lenet:activation=relu", "mlp"])
    parser.add_argument("--data", default="photos", help="image set, as fl-precode recommend takes it")
    parser.add_argument("--data-root", default="", help="folder of downloaded image sets")
    parser.add_argument("--scale", default="smoke", choices=list(SCALES))
    parser.add_argument("--families", type=int, default=3, help="that each model tries at most")
    for name, about in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=0, help=f"{about}; 0 takes the scale's")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--again", type=Path, help="file of an earlier run, whose recommendations are judged again")
    parser.add_argument("--join", nargs="+", type=Path, default=[], help="files of earlier runs, whose models are kept")
    parser.add_argument("--page", type=Path, help="page of documentation whose tables are written anew")
    parser.add_argument("--work", type=Path, required=True, help="folder of finished pieces")
    options = command_line.parse(parser)
    scale = sized(SCALES[options.scale], {name: getattr(options, name) for name in SIZES})
    earlier = {} if options.again is None else {one.model: one for one in joined(options.again)}
    found = [kept for path in options.join for kept in joined(path)]
    for model in options.models:
        experiment = Experiment(
            scale=scale, data=(options.data,), models=(model,), defences=("none",), seed=options.seed, device="cpu",
            data_root=default_root(options.data_root),
        )  # fmt: skip
        folder = options.work / re.sub(r"[^a-z0-9]+", "-", model)
        if options.again:
            found.append(judge_again(earlier[model], experiment, folder, workers=options.workers))
        else:
            search = DefenceSearch(experiment, folder, tell, workers=options.workers)
            found.append(search.run(at_most=options.families))
        logger.info(found[-1].sentence)
        command_line.write_record(record(found, options), options)  # what is known so far
    command_line.write_record(record(found, options), options)
    keep_figures(found, options.work)
    if options.page:
        write_between(options.page, "recommendations", families_table(found))
        write_between(options.page, "rungs", rungs_table(found))
        write_between(options.page, "judged", judged_table(found))


def joined(path: Path) -> list[Recommendation]:
    """The searches of an earlier run."""
    return [Recommendation.model_validate(one) for one in json.loads(path.read_text(encoding="utf-8"))["models"]]


SIZES = {
    "iterations": "of searches",
    "search_rounds": "batches of each client in a federation",
    "search_clients": "of a federation",
    "search_seeds": "of each federation",
    "search_victims": "validation images",
    "judged": "unseen images",
    "patient": "of them, for patient searches",
}
"""Sizes of a scale that can be chosen."""


def sized(scale: Scale, chosen: dict[str, Any]) -> Scale:
    """The scale with the sizes that are not 0."""
    return replace(scale, **{name: value for name, value in chosen.items() if value})


def tell(text: str, share: float) -> None:
    logger.info("%3.0f %% %s", 100 * share, text)


def record(found: list[Recommendation], options: argparse.Namespace) -> dict[str, Any]:
    """What is kept: every search, which says its own sizes."""
    return {
        "measured": date.today().isoformat(), "machine": f"{platform.machine()}, {platform.system()}, one core",
        "versions": {name: version(name) for name in ("dp-accounting", "optuna", "torch")}, "seed": options.seed,
        "models": [one.model_dump(mode="json") for one in found],
    }  # fmt: skip


def families_table(found: list[Recommendation]) -> str:
    """A line for each family that was tried."""
    head = [
        "model", "family, images a step x steps", "under FedSGD; under FedAvg", "nothing reconstructed from noise",
        "accuracy stays up to noise, at least", "points lost, FedSGD", "points lost, FedAvg", "epsilon, image",
        "epsilon, client", "bound on any attack", "verdict",
    ]  # fmt: skip
    rows = [family_row(one, trial) for one in found for trial in one.trials]
    return "\n".join([line(head), line(["---"] * len(head)), *rows])


def family_row(found: Recommendation, trial: Trial) -> str:
    rung = next((one for one in trial.rungs if one.noise == trial.noise), None)
    return line([
        f"`{trial.model}`", f"{family_name(trial)}, {trial.batch_size} x {trial.local_steps}",
        "; ".join(f"`{one}`" for one in trial.defences.values()),
        noise(trial.lowest_holding), noise(trial.highest_affordable), lost(rung, "fedsgd"), lost(rung, "fedavg"),
        epsilon(rung, "image"), epsilon(rung, "client"), bound(rung),
        f"**{trial.verdict}**" if trial == closest_trial(found) else trial.verdict,
    ])  # fmt: skip


def rungs_table(found: list[Recommendation]) -> str:
    """What the attacks made of validation images, untrained weights, by noise."""
    head = [
        "model",
        "noise over the clip",
        "reconstructed",
        "closest SSIM",
        "points lost, FedSGD",
        "points lost, FedAvg",
    ]
    rows = [
        line([f"`{trial.model}`", f"{rung.noise:g}", f"{rung.disclosed} of {rung.victims}",
              "–" if rung.closest_ssim is None else f"{rung.closest_ssim:.2f} by `{rung.attack.partition(':')[0]}`",
              lost(rung, "fedsgd"), lost(rung, "fedavg")])
        for one in found
        if (trial := closest_trial(one)) is not None
        for rung in trial.rungs
        if rung.disclosed is not None
    ]  # fmt: skip
    return "\n".join([line(head), line(["---"] * len(head)), *rows])


def judged_table(found: list[Recommendation]) -> str:
    """What the attacks made of unseen images, of the family that is shown of each model."""
    head = ["model", "attacks", "reconstructed", "updates, at least", "closest SSIM"]
    rows = [
        line([f"`{trial.model}`", kind.attacks, judged(kind), str(kind.updates) if kind.updates else "–", ssim(kind)])
        for one in found
        if (trial := closest_trial(one)) is not None
        for kind in trial.judged
    ]  # fmt: skip
    return "\n".join([line(head), line(["---"] * len(head)), *rows])


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def ssim(kind: Judged) -> str:
    return "–" if kind.closest_ssim is None else f"{kind.closest_ssim:.2f}"


def judged(one: Judged) -> str:
    return "do not fit" if one.disclosed is None else f"{one.disclosed} of {one.victims}"


def noise(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def lost(rung: Rung | None, protocol: str) -> str:
    if rung is None or protocol not in rung.lost:
        return "–"
    spread = rung.spread.get(protocol)
    return f"{100 * rung.lost[protocol]:.1f}" + (f" ± {100 * spread:.1f}" if spread is not None else "")


def epsilon(rung: Rung | None, level: str) -> str:
    known = [] if rung is None else [one.composed for one in rung.privacy if one.level == level and one.composed]
    return f"{max(known):.2g}" if known else "none"


def bound(rung: Rung | None) -> str:
    known = [] if rung is None else [one.upper_bound for one in rung.privacy if one.upper_bound is not None]
    return f"{max(known):.3g}" if known else "none"


if __name__ == "__main__":
    main()
