"""What the gradient of single images says about them, for several images at a time."""

from __future__ import annotations

import logging
import math
import multiprocessing
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from attacker.allocator import keep_freed_memory
from attacker.audit.record import finite
from attacker.jobs.workers import leave_with_parent
from attacker.leakage.defended import defence_change, sampling_change, without_noise
from attacker.leakage.jacobian import Jacobian
from attacker.leakage.released import Released, bottleneck_shapes, draw_noise, released
from attacker.leakage.spectrum import Spectrum, spectrum
from attacker.victim import Victim
from fl_precode.defences import gradient_defence

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LeakingImage:
    """One image and the weights at which its gradient is looked at.

    Attributes:
        victim: Model with the defence's bottlenecks in it.
        defence: Spec, whose own perturbation of the gradient I2F is computed for.
        parameters: That the server sent, by name.
        buffers: That the server sent, by name.
        image: (1, channels, height, width) in [0, 1].
        label: (1,) class.
        seed: Of noise.
    """

    victim: Victim
    defence: str
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    image: Tensor
    label: Tensor
    seed: int

    def released(self, generator: Generator) -> tuple[Released, Tensor]:
        """The gradient as a function of the image, and the image in the type of the weights."""
        noise = draw_noise(self.victim, 1, generator=generator)
        of = released(self.victim, self.label, noise=noise, parameters=self.parameters, buffers=self.buffers)
        return of, self.image.to(next(iter(self.parameters.values())))

    def generator(self) -> Generator:
        """Of its noise, at its beginning."""
        return Generator().manual_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class ImageLeak:
    """What a gradient says about its image.

    Attributes:
        rank: Numbers of the image that the gradient determines.
        unit_rmse: Error of pixels for noise of deviation 1 on the gradient (E-I2F).
        influence: Error that the defence's own change of the gradient leads to (I2F); None where there is no change.
    """

    rank: int
    unit_rmse: float
    influence: float | None


def leaks_of(images: Sequence[LeakingImage], *, processes: int = 1) -> list[ImageLeak | None]:
    """The leak of each image, None where the gradient is zero or not finite. The same for any number of processes.

    Args:
        images: They may be of one model or of several.
        processes: At most; what does not travel to another process, or ends one, is analysed in this one.
    """
    processes = min(processes, len(images))
    if processes > 1:
        fresh = multiprocessing.get_context("spawn")  # forked copies of a process with threads may hang
        threads = torch.get_num_threads()
        try:
            with ProcessPoolExecutor(processes, fresh, initializer=_begin, initargs=(threads,)) as pool:
                return list(pool.map(leak_of, images))
        except Exception:  # a model that does not travel, a process without memory: one after another may do
            _logger.info("images are analysed in one process", exc_info=True)
    return [leak_of(image) for image in images]


def leak_of(image: LeakingImage) -> ImageLeak | None:
    """What the gradient of one image says about it; None where that gradient is zero or not finite."""
    generator = image.generator()
    of, pixels = image.released(generator)
    noisy = bool(bottleneck_shapes(image.victim))
    try:
        at = Jacobian(of, pixels, noise_unknown=noisy)
    except ValueError:
        return None
    whole = spectrum(at)
    influence = _influence(image, of, pixels, None if noisy else whole, generator)
    return ImageLeak(rank=whole.rank, unit_rmse=whole.expected_rmse(1.0), influence=influence)


def _influence(
    image: LeakingImage, of: Released, pixels: Tensor, whole: Spectrum | None, generator: Generator
) -> float | None:
    """I2F, as RMSE, of the defence's own change of the gradient: noise in the model, then what is done to it."""
    defend = None if image.defence == "unknown" else gradient_defence(image.defence)
    change: Tensor | None = None
    at = of
    if whole is None:  # an attacker who ignores the bottleneck replays without the noise that the client drew
        at = without_noise(of)
        change = sampling_change(at, pixels, of.noise)
        whole = spectrum(Jacobian(at, pixels))
    if defend is not None:
        added = defence_change(of, pixels, defend, generator=generator)
        change = added if change is None else change + added
    if change is None:
        return None
    moved = Jacobian(at, pixels).to_image(change.to(pixels))
    return finite(float(whole.influence(moved)) / math.sqrt(pixels.numel()))


def _begin(threads: int) -> None:
    """The life of a process: it ends with the one that started it, and says nothing on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    leave_with_parent()
    torch.set_num_threads(threads)
    keep_freed_memory()
