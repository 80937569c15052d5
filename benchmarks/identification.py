"""Whose image a reconstruction shows: how often by chance, and under defences beside SSIM.

    OMP_NUM_THREADS=1 python -m benchmarks.identification --out docs/results/identification.json \\
        --page docs/results/identification.md

noise     10,000 pictures that say nothing, of three kinds, each with a true image drawn by lot from 1,001 of one class:
          how often it is first, among five, and its median place; by pixels, and for noise by features where the extra
          ``identification`` is installed.
defences  Audits of LeNet's updates (one image each) without a defence and behind noise, pruning and DP-SGD of several
          strengths: SSIM, whether the image was reconstructed, and whose image it is taken for.

Rows that are in --out already are not measured again. ``--plot FILE`` draws both parts, with ``--parts`` empty from
what is there.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import tempfile
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import avg_pool2d

from attacker.audit.audit import audit
from attacker.audit.record.counting import counts
from attacker.audit.record.schema import ImageResult
from attacker.audit.settings import AuditSettings
from attacker.audit.threat_model import LABELS, Knowledge
from attacker.metrics.feature_distance import feature_distances, feature_network
from attacker.metrics.identification import crops, pixel_distances, place_of
from attacker.metrics.intervals import exact_interval, rank_correlation
from attacker.metrics.places import Place
from benchmarks.page_tables import write_between
from benchmarks.simulated_tapes import simulate
from fl_precode import TapeSource
from fl_precode.federation.config import Settings

logger = logging.getLogger("identification")

Row = dict[str, Any]

SEED = 26
CANDIDATES = 1001
DEFENCES = (
    "none",
    *(f"noise:std={std}" for std in ("0.0001", "0.001", "0.01", "0.1")),
    *(f"prune:share={share}" for share in ("0.9", "0.99", "0.999")),
    *(f"dp:max_norm=1,noise_multiplier={noise}" for noise in ("0.001", "0.01", "0.1")),
)
SEARCH = "inverting-gradients:iterations={iterations}"
MATCHED = "defence-matched:iterations={iterations}"
SETS = {"pneumoniamnist": "medmnist/pneumoniamnist.npz", "retinamnist": "medmnist/retinamnist.npz"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=("noise", "defences"), default=["noise", "defences"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--set", choices=tuple(SETS), default="pneumoniamnist")
    parser.add_argument("--tries", type=int, default=10_000)
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--defences", nargs="*", default=DEFENCES)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    content = json.loads(asked.out.read_text()) if asked.out.exists() else {"noise": {}, "defences": {}}
    rows = {"noise": lambda: noise(asked, content["noise"]), "defences": lambda: defences(asked, content["defences"])}
    for part in asked.parts:
        for name, row in rows[part]():
            machine = {"date": date.today().isoformat(), "machine": platform.machine(), "torch": torch.__version__}
            content[part][name] = {**row, "seed": SEED, **machine}
            asked.out.write_text(json.dumps(content, indent=1) + "\n")
            logger.info("%s %s %s", datetime.now(UTC).time().isoformat("seconds"), name, _short(row))
    if asked.page:
        write_between(asked.page, "noise", noise_table(content["noise"]))
        write_between(asked.page, "defences", defences_table(content["defences"]))
    if asked.plot:
        from benchmarks.plots import plot_identification

        plot_identification(content, asked.plot)


def _short(row: Row) -> str:
    return " ".join(f"{key}={value}" for key, value in row.items() if not isinstance(value, list | dict))


def images_of(asked: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """All training images of the set, (n, channels, height, width) uint8, and their labels."""
    with np.load(asked.data / SETS[asked.set], allow_pickle=False) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"].reshape(-1).astype(np.int64)
    return (images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)), labels


def noise(asked: argparse.Namespace, known: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """How often a true image that was drawn by lot is first beside pictures that say nothing."""
    images, labels = images_of(asked)
    generator = Generator().manual_seed(SEED)
    members = np.flatnonzero(labels == np.bincount(labels).argmax())
    chosen = members[torch.randperm(len(members), generator=generator)[:CANDIDATES].numpy()]
    pool = torch.from_numpy(images[chosen]).float() / 255
    mean = pool.mean(dim=0, keepdim=True)
    makers = {
        "noise": lambda n: torch.rand(n, *pool.shape[1:], generator=generator),
        "smooth noise": lambda n: avg_pool2d(torch.rand(n, *pool.shape[1:], generator=generator), 7, 1, 3),
        "mean image and noise": lambda n: mean + 0.1 * torch.randn(n, *pool.shape[1:], generator=generator),
    }
    network = feature_network()
    measures = {f"{kind}, pixels": (kind, None) for kind in makers}
    if network is not None:
        measures["noise, features"] = ("noise", network)
    for name, (kind, features) in measures.items():
        if name in known:
            continue
        rows = crops(pool) if features is None else features.features(pool)
        truth = torch.randint(len(pool), (asked.tries,), generator=generator)
        places: list[Place] = []
        for some in truth.split(250):
            pictures = makers[kind](len(some)).clamp(0, 1)
            distances = (
                pixel_distances(pictures, rows)
                if features is None
                else feature_distances(features.features(pictures), rows)
            )
            places += map(_place, distances, some.tolist())
        yield name, _counted(places, asked)


def _place(distances: Tensor, truth: int) -> Place:
    others = torch.cat([distances[:truth], distances[truth + 1 :]])
    return place_of(float(distances[truth]), others)


def _counted(places: list[Place], asked: argparse.Namespace) -> Row:
    row: Row = {"set": asked.set, "tries": len(places), "candidates": places[0].others + 1}
    for key, most in (("first", 1), ("among_five", 5)):
        found = sum(place.within(most) for place in places)
        row[key] = round(found, 3)
        row[f"{key}_interval"] = [round(end, 6) for end in exact_interval(found / len(places), len(places))]
        row[f"{key}_by_chance"] = round(len(places) * most / row["candidates"], 3)
    return {**row, "median_rank": statistics.median(place.rank for place in places)}


def defences(asked: argparse.Namespace, known: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """Audits of updates of one image each, all of the same images."""
    images, labels = images_of(asked)
    for defence in asked.defences:
        name = f"{asked.set} | {defence}"
        if name in known:
            continue
        # No attack knows DP-SGD; of one image its clip is a scale, which the plain search does not look at.
        plain = defence.partition(":")[0] in ("none", "dp")
        attack = (SEARCH if plain else MATCHED).format(iterations=asked.iterations)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            last = images.transpose(0, 2, 3, 1)
            few = {"test_images": last[:8], "test_labels": labels[:8]}
            np.savez(folder / "images.npz", images=last, labels=labels, **few)
            settings = Settings(
                dataset=f"npz:{folder / 'images.npz'}", model="lenet", defence=defence, num_clients=asked.victims,
                num_server_rounds=1, batch_size=1, seed=SEED, device="cpu", seeded_noise=True,
            )  # fmt: skip
            simulate(folder / "run", settings)
            chosen = AuditSettings(
                attacks=(attack,), victims=asked.victims, seed=SEED, control=False,
                knowledge=Knowledge.usual(know=[LABELS]),
            )  # fmt: skip
            record = audit([TapeSource(tape=folder / "run" / "tape")], chosen, out=folder / "audit", resumable=False)
        (summary,) = record.summaries
        yield (
            name,
            {
                "set": asked.set,
                "defence": defence,
                "attack": attack,
                "images": summary.images,
                "mean_ssim": summary.mean_ssim,
                "came_back": summary.successes,
                "identification": [found.model_dump() for found in summary.identification],
                "results": [_result(row, record.success_threshold) for row in record.results],
            },
        )


def _result(row: ImageResult, threshold: float) -> Row:
    return {
        "ssim": row.ssim,
        "guess_ssim": row.guess_ssim,
        "came_back": counts(row, threshold),
        "rank": row.rank,
        "identified": row.identified,
        "feature_rank": row.feature_rank,
        "feature_identified": row.feature_identified,
        "feature_distance": row.feature_distance,
    }


def noise_table(rows: dict[str, Row]) -> str:
    """Of pictures that say nothing."""
    lines = ["| pictures, compared by | tries | first | 95 % interval | by chance | among five | by chance | median |"]
    lines.append("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for name, row in rows.items():
        low, high = (100 * end for end in row["first_interval"])
        cells = (name, f"{row['tries']:,}", f"{row['first']:g}", f"{low:.3f} to {high:.3f} %",
                 f"{row['first_by_chance']:g}", f"{row['among_five']:g}", f"{row['among_five_by_chance']:g}",
                 f"{row['median_rank']:g}")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def defences_table(rows: dict[str, Row]) -> str:
    """Of audits behind defences."""
    names = (
        "images, defence | mean SSIM | reconstructed | first by pixels | median place | identified | first by features"
    )
    lines = [f"| {names} |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, row in rows.items():
        by = {found["measure"]: found for found in row["identification"]}
        pixels, features = by["pixels"], by.get("features")
        cells = (name.replace(" | ", ", "), f"{row['mean_ssim']:.2f}", f"{row['came_back']} of {row['images']}",
                 f"{pixels['first']:g}", f"{pixels['median_rank']:g}", f"{pixels['identified']}",
                 f"{features['first']:g}" if features else "–")  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    placed = [one for row in rows.values() for one in row["results"] if one["rank"] is not None]
    return "\n".join([*lines, "", _beside_ssim(placed)])


def _beside_ssim(placed: list[Row]) -> str:
    identified = [one for one in placed if one["identified"]]
    alike = [one for one in placed if one["ssim"] >= 0.6]
    back = sum(one["came_back"] for one in placed)
    unnamed = sum(one["came_back"] and not one["identified"] for one in placed)
    sentence = (
        f"Of {len(placed)} images {len(identified)} were identified by pixels, {back} were reconstructed; "
        f"{sum(not one['came_back'] for one in identified)} of the identified were not reconstructed, {unnamed} that "
        f"were reconstructed were not identified, and {sum(not one['identified'] for one in alike)} of {len(alike)} "
        "with an SSIM of 0.6 or more were not."
    )
    found = rank_correlation([one["ssim"] for one in placed], [-one["rank"] for one in placed])
    if found is None:
        return sentence
    rho, (low, high) = found
    return f"{sentence} Rank correlation of SSIM and place: {rho:.2f} ({low:.2f} to {high:.2f})."


if __name__ == "__main__":
    main()
