"""Similarity of two images, and identification of one; batches matched before; shares with their intervals."""

from attacker.metrics.identification import places_among
from attacker.metrics.intervals import exact_interval
from attacker.metrics.places import Place
from attacker.metrics.similarity import (
    assign,
    label_accuracy,
    match_batch,
    mse,
    psnr,
    ssim,
    success_rate,
    wilson_interval,
)

__all__ = [
    "Place",
    "assign",
    "exact_interval",
    "label_accuracy",
    "match_batch",
    "mse",
    "places_among",
    "psnr",
    "ssim",
    "success_rate",
    "wilson_interval",
]
