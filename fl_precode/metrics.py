"""How like two images are: SSIM, PSNR and mean squared error; batches matched before; shares with their intervals."""

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

__all__ = ["assign", "label_accuracy", "match_batch", "mse", "psnr", "ssim", "success_rate", "wilson_interval"]
