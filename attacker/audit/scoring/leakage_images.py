"""Leakage of single images by their gradients, for several images at a time."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Generator, Tensor

from attacker.audit.execution.attack_job import Site, opened
from attacker.audit.record.schema import finite
from attacker.gradients.uncompared_parameters import settled
from attacker.jobs.job import Job, Tell
from attacker.jobs.run import hire_for, run_jobs
from attacker.jobs.store import FolderStore
from attacker.leakage.defended import defence_change, sampling_change, without_noise
from attacker.leakage.jacobian import Jacobian
from attacker.leakage.released import Released, bottleneck_shapes, draw_noise, released
from attacker.leakage.spectrum import Spectrum, eigenvalues, spectrum
from attacker.victim import Victim
from fl_precode.defences.registry import DefenceChain, gradient_defence
from fl_precode.observation import Observation

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the update of an image is: other processes open it there.

    Attributes:
        site: The tape.
        file: File of the update on it.
    """

    site: Site
    file: str


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
        seed: Seed of noise.
        origin: Where other processes find its update; None where they cannot.
    """

    victim: Victim
    defence: str
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    image: Tensor
    label: Tensor
    seed: int
    origin: Origin | None = None

    def released(self, generator: Generator) -> tuple[Released, Tensor]:
        """The gradient as a function of the image, and the image in the type of the weights."""
        noise = draw_noise(self.victim, 1, generator=generator)
        of = released(self.victim, self.label, noise=noise, parameters=self.parameters, buffers=self.buffers)
        return of, self.image.to(next(iter(self.parameters.values())))

    def generator(self) -> Generator:
        """Random generator of its noise, at its beginning."""
        return Generator().manual_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class GradientLeak:
    """What a gradient says about its image.

    Attributes:
        rank: Numbers of the image that the gradient determines.
        unit_rmse: Error of pixels for noise of deviation 1 on the gradient (E-I2F).
        influence: Error that the defence's own change of the gradient leads to (I2F); None where there is no change.
    """

    rank: int
    unit_rmse: float
    influence: float | None


class LeakWork:
    """Analyses one image; see `Work`."""

    format = "fl-precode-leak"
    version = 1

    def do(self, content: Mapping[str, Any], *, seconds: float | None, tell: Tell) -> GradientLeak | None:
        """See `Work`; an image is analysed whole, whatever time it takes."""
        torch.set_num_threads(content["threads"])
        origin = Origin(site=Site.from_content(content["site"]), file=content["file"])
        subject = opened(origin.site)
        (entry,) = (candidate for candidate in subject.tape.entries if candidate.file == origin.file)
        image, label = torch.tensor(content["image"]), torch.tensor(content["label"])
        observation = subject.tape.load(entry)
        return leak_of(
            leaking_image(subject.victim, content["defence"], observation, image, label, seed=content["seed"])
        )

    def encode(self, result: GradientLeak | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See `Codec`."""
        return {"leak": None if result is None else asdict(result)}, {}

    def decode(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GradientLeak | None:
        """See `Codec`."""
        return None if content["leak"] is None else GradientLeak(**content["leak"])


LEAK: Final = LeakWork()


def leaking_image(
    victim: Victim,
    defence: str,
    observation: Observation,
    image: Tensor,
    label: Tensor,
    *,
    seed: int,
    origin: Origin | None = None,
) -> LeakingImage:
    """One image of an update, with what of the victim its gradient moves.

    Args:
        victim: Model with the defence's bottlenecks in it.
        defence: Spec.
        observation: The update that it is in.
        image: (1, channels, height, width) in [0, 1].
        label: (1,) class.
        seed: Seed of noise.
        origin: Where other processes find the update; None where they cannot.

    Raises:
        ValueError: If no parameter moved.
    """
    victim, observation = settled(victim, observation)
    if not observation.parameters:
        raise ValueError("no parameter of the model moved, so that there is no gradient")
    return LeakingImage(
        victim=victim,
        defence=defence,
        parameters=dict(observation.parameters),
        buffers=dict(observation.buffers),
        image=image,
        label=label,
        seed=seed,
        origin=origin,
    )


def leaks_of(images: Sequence[LeakingImage], *, processes: int = 1) -> list[GradientLeak | None]:
    """The leak of each image, None where the gradient is zero or not finite. The same for any number of processes.

    Args:
        images: They may be of one model or of several.
        processes: At most; what other processes do not find or cannot open, or ends one, is analysed in this one.
    """
    processes = min(processes, len(images))
    origins = [image.origin for image in images if image.origin is not None]
    if processes > 1 and len(origins) == len(images):
        try:
            return _by_workers(images, origins, processes)
        except Exception:  # a model that only this process has, too little memory: one after another may do
            _logger.info("images are analysed in one process", exc_info=True)
    return [leak_of(image) for image in images]


def _by_workers(images: Sequence[LeakingImage], origins: Sequence[Origin], processes: int) -> list[GradientLeak | None]:
    jobs = [_job(number, *pair) for number, pair in enumerate(zip(images, origins, strict=True))]
    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(Path(folder) / "leaks", LEAK)
        run_jobs(jobs, store, hire_for(store, workers=processes))
        return [store.load(job.id) for job in jobs]


def _job(number: int, image: LeakingImage, origin: Origin) -> Job:
    content = {
        "site": asdict(origin.site),
        "file": origin.file,
        "defence": image.defence,
        "image": image.image.tolist(),
        "label": image.label.tolist(),
        "seed": image.seed,
        "threads": torch.get_num_threads(),
    }
    return Job(
        id=f"image-{number}", work="attacker.audit.scoring.leakage_images:LEAK", title="leakage", content=content
    )


def leak_of(image: LeakingImage) -> GradientLeak | None:
    """What the gradient of one image says about it; None where that gradient is zero or not finite."""
    generator = image.generator()
    of, pixels = image.released(generator)
    noisy = bool(bottleneck_shapes(image.victim))
    try:
        at = Jacobian(of, pixels, noise_unknown=noisy)
    except ValueError:
        return None
    defend = None if image.defence == "unknown" else gradient_defence(image.defence)
    # Eigenvectors are most of the work, and without a defence to reckon with nobody asks for them.
    known = None if defend is None or noisy else spectrum(at)
    whole = known or eigenvalues(at)
    influence = _influence(of, pixels, defend, known, generator)
    return GradientLeak(rank=whole.rank, unit_rmse=whole.expected_rmse(1.0), influence=influence)


def _influence(
    of: Released, pixels: Tensor, defend: DefenceChain | None, known: Spectrum | None, generator: Generator
) -> float | None:
    """I2F, as RMSE, of the defence's own change of the gradient: noise in the model, then what is done to it.

    Args:
        of: The gradient as a function of the image.
        pixels: The image.
        defend: What is done to the gradient; None for nothing.
        known: Spectrum of the gradient without noise, where it is known already.
        generator: Draws what the defence draws.
    """
    change: Tensor | None = None
    at = of
    if of.noise:  # an attacker who ignores the bottleneck replays without the noise that the client drew
        at = without_noise(of)
        change = sampling_change(at, pixels, of.noise)
    if defend is not None:
        added = defence_change(of, pixels, defend, generator=generator)
        change = added if change is None else change + added
    if change is None:
        return None
    there = Jacobian(at, pixels)
    whole = known or spectrum(there)
    return finite(float(whole.influence(there.to_image(change.to(pixels)))) / math.sqrt(pixels.numel()))
