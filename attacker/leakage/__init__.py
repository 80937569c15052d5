"""Leakage of images by a released gradient, before any attack is run: ranks, spectra and influence."""

from attacker.leakage.analyse import analyse, by_layer, image_leak, noise_ranks
from attacker.leakage.defended import defence_change, sampling_change, without_noise
from attacker.leakage.exactly_determined import position_rank, span_ranks
from attacker.leakage.glance import Glance, glance
from attacker.leakage.influence import ExpectedError, Influence, expected_error, influence, largest, lower_bound
from attacker.leakage.jacobian import EXACT_NUMBERS, Jacobian
from attacker.leakage.rank import layer_ranks, solubility
from attacker.leakage.record import ImageLeak, LayerRank, Leakage, NoiseRanks, PositionRank, SpanRank, outliers
from attacker.leakage.released import Released, draw_noise, released
from attacker.leakage.spectrum import Eigenvalues, Spectrum, eigenvalues, spectrum

__all__ = [
    "EXACT_NUMBERS",
    "ExpectedError",
    "Glance",
    "ImageLeak",
    "Influence",
    "Jacobian",
    "LayerRank",
    "Leakage",
    "NoiseRanks",
    "PositionRank",
    "Released",
    "SpanRank",
    "Eigenvalues",
    "Spectrum",
    "analyse",
    "by_layer",
    "defence_change",
    "draw_noise",
    "expected_error",
    "glance",
    "image_leak",
    "influence",
    "largest",
    "layer_ranks",
    "lower_bound",
    "noise_ranks",
    "outliers",
    "position_rank",
    "released",
    "sampling_change",
    "solubility",
    "span_ranks",
    "eigenvalues",
    "spectrum",
    "without_noise",
]
