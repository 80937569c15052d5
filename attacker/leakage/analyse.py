"""The whole analysis of one model on some images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from attacker.gradients.noise_free_layers import before_noise
from attacker.gradients.trace import trace
from attacker.leakage.defended import defence_change, sampling_change, without_noise
from attacker.leakage.exactly_determined import position_rank, span_ranks
from attacker.leakage.glance import glance
from attacker.leakage.influence import DAMPING, influence, lower_bound
from attacker.leakage.jacobian import EXACT_NUMBERS, Jacobian
from attacker.leakage.rank import layer_ranks, solubility
from attacker.leakage.record import ImageLeak, Leakage, NoiseRanks
from attacker.leakage.released import Released, bottleneck_shapes, draw_noise, released
from attacker.leakage.spectrum import Spectrum, spectrum
from attacker.victim import Victim
from fl_precode.defences.on_gradients import GradientDefence

EXACT_PARAMETERS = 500_000
"""Parameters up to which eigenvalues are computed one and all, for images of up to `EXACT_NUMBERS` numbers."""
_POINTS = 256


def analyse(
    victim: Victim,
    images: Tensor,
    labels: Tensor,
    *,
    std: float = 1e-3,
    defence: GradientDefence | None = None,
    names: tuple[str, str, str] = ("none", "as given", "as given"),
    seed: int = 0,
    exact: bool | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Leakage:
    """Ranks, spectrum and influence for each image by itself, at the weights of the victim's model.

    Args:
        victim: Model with the defence's bottlenecks in it.
        images: (n, channels, height, width) in [0, 1], in dtype and on the device of the weights.
        labels: (n,).
        std: Noise on the gradient for which errors are stated.
        defence: What is done to gradients before they leave; its change is what I2F is computed for.
        names: For people: spec of the defence, where weights and images come from.
        seed: Seed of bottleneck noise, defences and estimates.
        exact: All eigenvalues, or estimates by products; None decides by size.
        progress: Called after each image.

    Raises:
        ValueError: If there is no image, or exact analysis is asked for of what is too large.
    """
    if not len(images):
        raise ValueError("expected at least one image to analyse, got none")
    started = time.process_time()
    generator = Generator().manual_seed(seed)
    leaks: list[ImageLeak] = []
    first: Spectrum | None = None
    whole = exact
    for index, (image, label) in enumerate(zip(torch.split(images, 1), torch.split(labels, 1), strict=True)):
        noise = draw_noise(victim, 1, generator=generator)
        of = released(victim, label, noise=noise)
        if whole is None:
            whole = image.numel() <= EXACT_NUMBERS and of.gradient_numbers <= EXACT_PARAMETERS
        leak, image_spectrum = image_leak(of, image, index=index, defence=defence, generator=generator, exact=whole)
        leaks.append(leak)
        first = image_spectrum if first is None else first
        progress()
    of = released(victim, labels[:1], noise=draw_noise(victim, 1, generator=Generator().manual_seed(seed)))
    layers = layer_ranks(of, images[:1])
    return Leakage(
        model=victim.name,
        defence=names[0],
        weights=names[1],
        images_from=names[2],
        shape=victim.inputs.shape,
        parameters=of.gradient_numbers,
        std=std,
        layers=layers,
        solubility=solubility(layers),
        images=tuple(leaks),
        eigenvalues=() if first is None else _thinned(first),
        lost=() if first is None else tuple(map(tuple, first.lost()[0].mean(dim=0).tolist())),
        noise=noise_ranks(of, images[:1]) if whole and first is not None and bottleneck_shapes(victim) else None,
        positions=position_rank(of, images[:1]),
        spans=span_ranks(of, images[:1]),
        seconds=time.process_time() - started,
    )


def image_leak(
    of: Released,
    pixels: Tensor,
    *,
    index: int = 0,
    defence: GradientDefence | None = None,
    generator: Generator,
    exact: bool = True,
) -> tuple[ImageLeak, Spectrum | None]:
    """What the gradient of one image says about it, with its spectrum where that is computed.

    Images whose gradient is zero get a record with the reason instead of numbers.

    Args:
        of: The gradient as a function of the image.
        pixels: (1, channels, height, width) in [0, 1].
        index: For the record.
        defence: What is done to the gradient before it leaves.
        generator: Generator of the defence and of estimates.
        exact: All eigenvalues, or estimates by products.

    Raises:
        ValueError: If exact analysis is asked for of what is too large.
    """
    blank = ImageLeak(index=index, label=int(of.labels[0]), unknowns=pixels.numel(), gradient_norm=0.0, exact=exact)
    if exact and pixels.numel() > EXACT_NUMBERS:
        raise ValueError(
            f"exact analysis goes up to {EXACT_NUMBERS} numbers an image (3x32x32 has 3072), got {pixels.numel()}: "
            f"JJ^T would take {pixels.numel() ** 2 * 8 / 2**30:.0f} GiB; leave exact out, or take smaller images"
        )
    try:
        jacobian = Jacobian(of, pixels)
    except ValueError as error:
        return replace(blank, reason=str(error)), None
    known = replace(blank, gradient_norm=float(jacobian.gradient.norm()))
    change = None if defence is None else defence_change(of, pixels, defence, generator=generator)
    if exact:
        return _exactly(jacobian, change, known)
    estimate = glance(jacobian, generator=generator)
    top = estimate.largest
    leak = replace(
        known,
        largest=top.value,
        unit_rmse=estimate.at_least,
        influence=None if change is None else influence(jacobian, change, top.value, damping=DAMPING).rmse,
        lower_bound=_bound(jacobian, change, top.upper),
    )
    return leak, None


def noise_ranks(of: Released, pixels: Tensor) -> NoiseRanks:
    """Part of an image that the bottlenecks' noise leaves determined, in three settings; exact.

    Args:
        of: With the noise that the client drew.
        pixels: (1, channels, height, width) in [0, 1].

    Raises:
        ValueError: If the model has no bottleneck, or the image is too large.
    """
    model_trace = trace(of.replay.victim, batch_size=1)
    if not model_trace.bottlenecks:
        raise ValueError(f"expected a model with a variational bottleneck, and {of.replay.victim.name!r} has none")
    early = of.restricted(before_noise(model_trace))
    known = spectrum(Jacobian(of, pixels))
    fitted = spectrum(Jacobian(of, pixels, noise_unknown=True))
    ignorant = without_noise(of)
    guess = Jacobian(ignorant, pixels)
    change = sampling_change(ignorant, pixels, of.noise)
    sampling = float(spectrum(guess).influence(guess.to_image(change)))
    return NoiseRanks(
        unknowns=known.unknowns,
        noise=sum(value.numel() for value in of.noise),
        known=known.rank,
        fitted=fitted.rank,
        before=spectrum(Jacobian(early, pixels)).rank,
        known_rmse=known.expected_rmse(1.0),
        fitted_rmse=fitted.expected_rmse(1.0),
        sampling=sampling / math.sqrt(known.unknowns),
    )


def by_layer(jacobian: Jacobian) -> dict[str, Spectrum]:
    """The spectrum that each layer's gradient would have by itself, by name of the layer; exact.

    Args:
        jacobian: At one image; J must fit into memory.

    Raises:
        ValueError: If there are too many unknowns.
    """
    groups: dict[str, list[str]] = {}
    for name in jacobian.of.matched:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    pixels = jacobian.pixels
    return {layer: spectrum(Jacobian(jacobian.of.restricted(names), pixels)) for layer, names in groups.items()}


def _exactly(jacobian: Jacobian, change: Tensor | None, known: ImageLeak) -> tuple[ImageLeak, Spectrum]:
    image_spectrum = spectrum(jacobian)
    moved = (
        None
        if change is None
        else float(image_spectrum.influence(jacobian.to_image(change))) / math.sqrt(image_spectrum.unknowns)
    )
    leak = replace(
        known,
        rank=image_spectrum.rank,
        largest=image_spectrum.largest,
        smallest=image_spectrum.gap[0] * image_spectrum.largest,
        unit_rmse=image_spectrum.expected_rmse(1.0),
        influence=moved,
        lower_bound=_bound(jacobian, change, image_spectrum.largest),
    )
    return leak, image_spectrum


def _bound(jacobian: Jacobian, change: Tensor | None, top: float) -> float | None:
    return None if change is None else lower_bound(jacobian, change, top) / math.sqrt(jacobian.rows)


def _thinned(image_spectrum: Spectrum) -> tuple[float, ...]:
    shares: Sequence[float] = (image_spectrum.values / image_spectrum.values[0]).tolist()
    step = max(1, -(-len(shares) // _POINTS))
    return (*shares[::step], shares[-1])
