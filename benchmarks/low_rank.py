"""What LoRA hides: the frozen layers' gradients from those of their branches, and what these give.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/low_rank.py --out docs/results/low-rank.json

perceptron  3072-512-512-100 (GELU), branches of rank r beside both hidden layers, images of CIFAR-100.
tokens      A small vision transformer at 32x32: branches beside the two layers of a block's perceptron. Of the first
            block all tokens enter them, of the last one gradients reach the class tokens alone. Tokens that were
            found, and images that are named by the class token's features among all images at hand.

Branches have been trained for a round: B is random, as large as A. Float32 gradients, CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import command_line
from attacker.analytic.branches.frozen_gradient import without_branches
from attacker.analytic.branches.low_rank_branch import low_rank_branches
from attacker.analytic.spans.batch_search import find_inputs
from attacker.analytic.spans.observed_layers import two_layers
from attacker.analytic.spans.stacked_layers import stacked_layers
from attacker.gradients.trace import trace
from attacker.gradients.uncompared_parameters import settled
from fl_precode import Victim
from fl_precode.attacks import build_attack
from fl_precode.metrics import match_batch, psnr, ssim
from heads import INPUTS, cifar100, seen_of
from page_tables import write_between

SAME = 1e-2


class LowRank(nn.Module):
    """A frozen Linear layer with a trained branch."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.up(self.down(x))
        return out


class Transformer(nn.Module):
    """Patches, a class token, learned positions, blocks with separate layers, a head."""

    def __init__(self, patch: int, width: int = 192, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (32 // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(TransformerBlock(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, INPUTS.classes)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(images), -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        scores: Tensor = self.head(self.norm(tokens)[:, 0])
        return scores


class TransformerBlock(nn.Module):
    """Pre-norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 3, batch_first=True)
        self.fc1: nn.Module = nn.Linear(width, 4 * width)
        self.fc2: nn.Module = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        seen = self.norm1(tokens)
        tokens = tokens + self.attention(seen, seen, seen, need_weights=False)[0]
        out: Tensor = tokens + self.fc2(nn.functional.gelu(self.fc1(self.norm2(tokens))))
        return out


def perceptron(rank: int, size: int, seed: int) -> dict[str, Any]:
    """Images of one batch."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), LowRank(nn.Linear(3072, 512), rank), nn.GELU(), LowRank(nn.Linear(512, 512), rank), nn.GELU(),
        nn.Linear(512, INPUTS.classes).requires_grad_(False),
    ).eval()  # fmt: skip
    pool, labels = cifar100()
    images, y = pool[100 : 100 + size], labels[100 : 100 + size]
    victim, seen = Victim(model=model, inputs=INPUTS), seen_of(model, INPUTS.normalise(images), y)
    began = time.process_time()
    (found,) = build_attack("through-branches")(victim, [seen], generator=torch.Generator().manual_seed(seed))
    row: dict[str, Any] = {"reason": str(found.reason), "codes": list(found.reason_codes)}
    row["cpu_seconds"] = round(time.process_time() - began, 1)
    if found.inputs is None:
        return row
    known = found.inputs[found.inputs.flatten(1).isfinite().all(dim=1)]
    restored = INPUTS.denormalise(torch.cat([known, known.new_zeros(size - len(known), *INPUTS.shape)])).clamp(0, 1)
    restored = restored[match_batch(restored, images)]
    quality = psnr(restored, images)
    return row | {
        "found": len(known),
        "recovered": int((ssim(restored, images) >= 0.6).sum()),
        "psnr_median": round(float(quality.median()), 1),
        "psnr_least": round(float(quality.min()), 1),
    }


def tokens(rank: int, size: int, block: int, patch: int, seed: int) -> dict[str, Any]:
    """What enters a block's perceptron."""
    torch.manual_seed(seed)
    model = Transformer(patch).requires_grad_(False).eval()
    place = model.blocks[block]
    assert isinstance(place, TransformerBlock)
    for name in ("fc1", "fc2"):
        base = getattr(place, name)
        assert isinstance(base, nn.Linear)
        setattr(place, name, LowRank(base, rank))
    pool, labels = cifar100()
    images, y = pool[100 : 100 + size], labels[100 : 100 + size]
    victim, seen = settled(Victim(model=model, inputs=INPUTS), seen_of(model, INPUTS.normalise(images), y))
    began = time.process_time()
    plain = without_branches(victim, low_rank_branches(victim, seen), seen)
    row: dict[str, Any] = {"vectors": size * ((32 // patch) ** 2 + 1) if block == 0 else size}
    if len(plain.solved) < 2:
        return row | {"reason": str(plain.lost[0]), "codes": list(plain.lost[0].codes)}
    fixed, moving = settled(plain.victim, plain.observation)
    pair = stacked_layers(fixed, trace(fixed), fixed.model.get_submodule(f"blocks.{block}.fc1"))
    assert not isinstance(pair, str), pair
    layers = two_layers(moving, pair, 160, expected=row["vectors"])
    if isinstance(layers, str):
        return row | {"reason": str(layers), "codes": list(layers.codes)}
    found = find_inputs(layers, torch.Generator().manual_seed(seed))
    row |= {"error": plain.error, "found": len(found.inputs), "cpu_seconds": round(time.process_time() - began, 1)}
    if not len(found.inputs):
        return row
    own, everything = entering(model, place, images, block), entering(model, place, pool, len(model.blocks) - 1)
    apart = torch.cdist(own.flatten(0, -2), found.inputs).min(dim=1).values / own.flatten(0, -2).norm(dim=1)
    row |= {"right": int((apart < SAME).sum()), "median_error": float(apart.median())}
    if block:
        nearest = torch.cdist(found.inputs, everything).argmin(dim=1)
        row |= {"candidates": len(pool), "identified": len({*range(100, 100 + size)} & {*nearest.tolist()})}
    return row


def entering(model: nn.Module, place: TransformerBlock, images: Tensor, block: int) -> Tensor:
    """What enters a block's perceptron: (images, tokens, width) of the first, (images, width) of class tokens else."""
    caught: list[Tensor] = []
    handle = place.fc1.register_forward_pre_hook(lambda _, given: caught.append(given[0].double()))
    with torch.no_grad():
        for part in INPUTS.normalise(images).split(256):
            model(part)
    handle.remove()
    received = torch.cat(caught)
    return received if block == 0 else received[:, 0]


def table(record: dict[str, Any]) -> str:
    """That of docs/results/heads.md."""
    lines = [
        "| layers with branches | rank | images | vectors | found | what they give | CPU s |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: |",
    ]
    for row in record["rows"]:
        case = row["case"]
        where, given = "first two of a perceptron, 3072-512-512", ""
        if case["part"] == "tokens":
            where = f"perceptron of the {'first' if case['block'] == 0 else 'last'} block, patches of {case['patch']}"
        if "found" not in row:
            given = f"`{row['codes'][0]}`"
        elif case["part"] == "perceptron":
            given = f"{row['recovered']} images, PSNR {row['psnr_median']:.0f}, the worst {row['psnr_least']:.0f} dB"
        elif "identified" in row:
            given = (
                f"features of {row['right']} images (median error {row['median_error']:.0e}), {row['identified']} named"
            )
        else:
            given = f"{row['right']} tokens (median error {row['median_error']:.0e})"
        cells = [
            where, case["rank"], case["batch"], row.get("vectors", case["batch"]), row.get("found", 0), given,
            row.get("cpu_seconds", ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, help="page whose table is replaced")
    options = command_line.parse(parser)
    rows: list[dict[str, Any]] = []
    for rank, sizes in ((4, (1, 4, 5)), (16, (1, 8, 16, 17)), (64, (32,))):
        for size in sizes:
            case = {"part": "perceptron", "rank": rank, "batch": size}
            rows.append({"case": case, **perceptron(rank, size, options.seed)})
    for rank, size, block, patch in (
        (8, 1, 0, 4), (16, 1, 0, 8), (32, 1, 0, 8), (64, 2, 0, 8), (16, 1, -1, 4), (16, 8, -1, 4), (16, 16, -1, 4),
        (16, 17, -1, 4),
    ):  # fmt: skip
        number = block % 3
        case = {"part": "tokens", "rank": rank, "batch": size, "block": number, "patch": patch}
        rows.append({"case": case, **tokens(rank, size, number, patch, options.seed)})
    record = {"measured": date.today().isoformat(), "torch": torch.__version__, "seed": options.seed, "rows": rows}
    command_line.write_record(record, options)
    if options.table:
        write_between(options.table, "low rank", table(record))


if __name__ == "__main__":
    main()
