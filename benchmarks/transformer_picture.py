"""The README's picture at 224x224: photographs, and what one update of a vision transformer behind PRECODE gives away.

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.transformer_picture --out docs/results/transformer.jpg

torchvision's ViT-B/16, untrained, with PRECODE before its head; one gradient of one photograph each, float32, the
client's noise from a seed. The attack `patch-embedding` gets the update and the model, nothing else; PSNR stands under
each picture. Photographs of scikit-image, cut square and scaled to 224x224.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attacker.simulate import observe
from benchmarks.transformers import ATTACK, PHOTOGRAPHS, photographs, victim_of
from fl_precode import Victim
from fl_precode.attacks import build_attack
from fl_precode.defences.registry import apply_defence
from fl_precode.metrics import psnr

logger = logging.getLogger("transformer_picture")

SHOWN: Final = ("astronaut", "retina", "chelsea", "coffee")
SIDE, GAP, LINE = 224, 8, 22
QUALITY: Final = 88


def guarded(name: str, defence: str, seed: int) -> Victim:
    """A transformer of the benchmark, with a bottleneck before its head."""
    plain = victim_of(name, seed)
    model = apply_defence(defence, plain.model, plain.inputs, seed=seed)
    return Victim(model=model, inputs=plain.inputs, name=name)


def reconstructed(victim: Victim, image: Tensor, label: int) -> tuple[Tensor, float]:
    """The image that the attack makes of one update, (3, 224, 224) in [0, 1], and its PSNR in dB.

    Raises:
        RuntimeError: If the attack gives none.
    """
    x = victim.inputs.normalise(image)[None]
    (seen,) = observe(
        victim, x, torch.tensor([label]), batch_size=1, noise=lambda client: torch.Generator().manual_seed(client)
    )
    (found,) = build_attack(ATTACK)(victim, [seen], generator=torch.Generator().manual_seed(0))
    if found.inputs is None:
        raise RuntimeError(f"the attack gave no image: {found.reason}")
    pixels = victim.inputs.denormalise(found.inputs).clamp(0, 1)
    logger.info("%s: %s", found.outcome.value, found.reason)
    return pixels[0], float(psnr(pixels, image[None]))


def sheet(pairs: list[tuple[Tensor, Tensor, float]]) -> Image.Image:
    """Photographs above, reconstructions below, with a line of words under each row."""
    height = 2 * (SIDE + LINE) + GAP
    canvas = Image.new("RGB", (len(pairs) * (SIDE + GAP) - GAP, height), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for column, (image, found, decibels) in enumerate(pairs):
        left = column * (SIDE + GAP)
        for row, (shown, words) in enumerate(
            ((image, "the photograph"), (found, f"from the update: {decibels:.0f} dB"))
        ):
            top = row * (SIDE + LINE + GAP)
            pixels = np.rint(shown.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
            canvas.paste(Image.fromarray(pixels), (left, top))
            draw.text((left + SIDE / 2, top + SIDE + 3), words, fill="#334155", font=font, anchor="ma")
    return canvas


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("transformer.jpg"), help="picture to write")
    parser.add_argument("--model", default="vit_b_16", help="a model of benchmarks.transformers")
    parser.add_argument("--defence", default="precode", help="defence spec")
    parser.add_argument("--seed", type=int, default=0, help="of the model")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    victim = guarded(options.model, options.defence, options.seed)
    pairs = []
    for number, image in enumerate(photographs(len(PHOTOGRAPHS))):
        if PHOTOGRAPHS[number] in SHOWN:
            pairs.append((image, *reconstructed(victim, image, number)))
            logger.info("%s: %.1f dB", PHOTOGRAPHS[number], pairs[-1][2])
    sheet(pairs).save(options.out, quality=QUALITY)


if __name__ == "__main__":
    main()
