"""The comparison of analytic inversion with searches: Chen and Campbell's (arXiv 2111.10178) and R-GAP's, re-run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from attacker.attacks.base import Outcome, Reconstruction
from attacker.attacks.registry import build_attack
from attacker.audit.execution.attack_job import Attempt
from attacker.audit.record.schema import Count, ImageScore, Number, finite
from attacker.audit.scoring.similarity import as_images, compared_updates
from attacker.audit.truth.base import Truth
from attacker.experiments.cells import Made, StoredFile
from attacker.experiments.image_sets import GUESSES, guesses_of, images, made_from
from attacker.experiments.published_nets import NETS, ONE_LOGIT, published, r_gap
from attacker.experiments.seeds import generator, seeds
from attacker.experiments.store import Store, identity
from attacker.leakage import Jacobian, layer_ranks, released, solubility, spectrum
from attacker.simulate import observe
from fl_precode.defences.on_gradients import GaussianNoise
from fl_precode.federation.federation import choose_device
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Observation

R_GAP = "layerwise-inversion"
NOISY = "dlg-lenet"
"""The net whose updates get noise."""


@dataclass(frozen=True, kw_only=True)
class InversionScale:
    """Sizes of the comparison.

    Attributes:
        name: As on the command line.
        data: Image set unless another is named.
        nets: Names in `NETS`.
        images: The first training images, one in each update.
        attacks: Specs on every net. R-GAP's net takes those that search only, and R-GAP's own entrance.
        stds: Standard deviations of Gaussian noise on updates of `NOISY`.
        noise_attacks: Specs for those.
        noise_images: The first training images.
    """

    name: str
    data: str
    nets: tuple[str, ...]
    images: int
    attacks: tuple[str, ...]
    stds: tuple[float, ...]
    noise_attacks: tuple[str, ...]
    noise_images: int


def _attacks(dlg: int, cosine: int) -> tuple[str, ...]:
    return (
        R_GAP,
        "hybrid",
        "then-refine:iterations=0",
        f"dlg:iterations={dlg}",
        f"inverting-gradients:iterations={cosine}",
    )


INVERSION_SCALES: Mapping[str, InversionScale] = MappingProxyType(
    {
        "smoke": InversionScale(
            name="smoke", data="photos", nets=("dlg-lenet", "cnn2_c1", "cnn2_c2", "cnn4_c1"), images=2,
            attacks=_attacks(100, 200), stds=(0.0, 1e-4), noise_attacks=_attacks(100, 200)[:4:2], noise_images=2,
        ),
        "small": InversionScale(
            name="small", data="cifar10", nets=tuple(NETS), images=8, attacks=_attacks(1_000, 2_000),
            stds=(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
            noise_attacks=(R_GAP, "then-refine", "dlg:iterations=1000", "inverting-gradients:iterations=2000"),
            noise_images=4,
        ),
        "paper": InversionScale(
            name="paper", data="cifar10", nets=tuple(NETS), images=64, attacks=_attacks(6_000, 24_000),
            stds=(0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2),
            noise_attacks=(R_GAP, "then-refine", "dlg:iterations=6000", "inverting-gradients:iterations=24000"),
            noise_images=64,
        ),
    }
)  # fmt: skip
"""Scales by name."""


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """One attack on the first images of one net, or what the net's equations determine (no attack).

    Attributes:
        net: Name in `NETS`.
        attack: Spec; empty for the ranks.
        std: Standard deviation of Gaussian noise on every number of the update.
        images: How many, one in each update.
        part: Part of the page.
    """

    net: str
    attack: str = ""
    std: float = 0.0
    images: int = 1
    part: Literal["nets", "noise"] = "nets"

    @property
    def stem(self) -> str:
        """Beginning of the name of its file."""
        return f"{self.net}-{self.attack or 'ranks'}-{self.std:g}"

    @property
    def title(self) -> str:
        """For people."""
        name = self.attack.partition(":")[0] or "ranks"
        return f"{self.net}: {name}" + (f", noise {self.std:g}" if self.std else "")

    @property
    def made(self) -> type[Made]:
        """What its result is."""
        return InvertedUpdates if self.attack else Ranks


class InvertedImage(ImageScore):
    """What an attack made of one update; CPU seconds are its share of those of all updates."""

    mse: Number | None = None
    baseline_ssim: Number | None = None
    matching_loss: Number | None
    cpu_seconds: Number


class InvertedUpdates(Made):
    """An attack on several updates."""

    kind: Literal["inverted"] = "inverted"
    images: list[InvertedImage]
    pictures: StoredFile | None


class Ranks(Made):
    """What the layers' equations and the whole gradient determine, at the first image."""

    kind: Literal["ranks"] = "ranks"
    unknowns: Count
    solubility: Number
    rank: Count
    missing: list[int]  # of each convolution: unknowns without an equation


@dataclass(frozen=True, kw_only=True)
class Inversions:
    """The whole comparison.

    Attributes:
        scale: Sizes.
        data: Image set.
        data_root: Folder of downloaded sets.
        seed: Seed of searches and noise; the nets' weights have the papers' seeds.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        ValueError: If a net does not fit the images.
    """

    scale: InversionScale
    data: str
    data_root: str = ""
    seed: int = 0
    device: str = "auto"

    def check(self) -> None:
        """Refuse images that a net does not fit.

        Raises:
            ValueError: Naming it.
        """
        for net in self.scale.nets:
            published(net, images(self.data, self.data_root).inputs)

    def pieces(self) -> list[Inversion]:
        """Everything to be done, what is quick first."""
        scale = self.scale
        planned = [Inversion(net=net) for net in scale.nets if net != ONE_LOGIT]
        for attack in scale.attacks:
            planned += [
                Inversion(net=net, attack=attack, images=scale.images)
                for net in scale.nets
                if net != ONE_LOGIT or attack == R_GAP or searches(attack)
            ]
        return planned + [
            Inversion(net=NOISY, attack=attack, std=std, images=scale.noise_images, part="noise")
            for attack in scale.noise_attacks
            for std in scale.stds
        ]

    def recipe(self, cell: Inversion) -> dict[str, Any]:
        """What a piece's result depends on besides the piece."""
        del cell
        return made_from(self.data, self.data_root, self.seed) | {"compared with": GUESSES}

    def cost(self, cell: Inversion) -> float:
        """Expected seconds, roughly."""
        if not cell.attack:
            return 20.0
        each = {R_GAP: 0.5, "hybrid": 4.0, "then-refine": 4.0}
        name, _, options = cell.attack.partition(":")
        return cell.images * each.get(name, 0.005 * int(options.partition("iterations=")[2] or 1000))

    def make(self, cell: Inversion, store: Store) -> Made:
        """The result of a piece."""
        began = time.perf_counter()
        made = self._inverted(cell, store) if cell.attack else self._ranks(cell)
        return made.model_copy(update={"seconds": time.perf_counter() - began})

    def truth(self, count: int) -> tuple[Tensor, Tensor]:
        """The first training images in [0, 1], and their labels."""
        return images(self.data, self.data_root).train.batch(list(range(count)))

    def _ranks(self, cell: Inversion) -> Ranks:
        victim = published(cell.net, images(self.data, self.data_root).inputs)
        victim = replace(victim, model=victim.model.double().to(choose_device(self.device)))
        pixels, labels = (tensor.to(choose_device(self.device)) for tensor in self.truth(1))
        of = released(victim, labels)
        layers = [layer for layer in layer_ranks(of, pixels.double()) if layer.kind == "Conv2d"]
        return Ranks(
            unknowns=pixels.numel(),
            solubility=solubility(layers),
            rank=spectrum(Jacobian(of, pixels.double())).rank,
            missing=[int(layer.missing) for layer in layers],
            seconds=0.0,
        )

    def _inverted(self, cell: Inversion, store: Store) -> InvertedUpdates:
        device = choose_device(self.device)
        victim = published(cell.net, images(self.data, self.data_root).inputs)
        victim.model.to(device)
        truth, labels = (tensor.to(device) for tensor in self.truth(cell.images))
        if cell.net == ONE_LOGIT:
            labels = torch.ones_like(labels)
        sent = observe(victim, victim.inputs.normalise(truth), labels, batch_size=1)
        updates = [self._noisy(observation, cell) for observation in sent]
        began = time.process_time()
        if cell.net == ONE_LOGIT and cell.attack == R_GAP:
            reconstructions = [
                Reconstruction(inputs=r_gap(victim, observation), labels=None, outcome=Outcome.CONVERGED)
                for observation in updates
            ]
        else:
            reconstructions = Attempt(
                name=cell.stem,
                method=build_attack(cell.attack),
                victim=victim,
                updates=updates,
                labels=list(torch.split(labels, 1)) if cell.net == ONE_LOGIT else [None] * len(updates),
                seeds=seeds("attack", self.seed, cell.attack, count=len(updates)),
            ).results()
        seconds = (time.process_time() - began) / cell.images
        made = [as_images(reconstruction, victim.inputs) for reconstruction in reconstructions]
        kept = {str(i): restored.float().cpu() for i, restored in enumerate(made) if restored is not None}
        rows = self._rows(reconstructions, victim.inputs, seconds)
        pictures = store.keep(f"images-{identity(cell, self.recipe(cell))}", kept) if kept else None
        return InvertedUpdates(images=rows, pictures=pictures, seconds=0.0)

    def _rows(
        self, reconstructions: Sequence[Reconstruction], inputs: InputSpec, seconds: float
    ) -> list[InvertedImage]:
        """Here the truth comes in."""
        truth, labels = self.truth(len(reconstructions))
        truths = [Truth(images=truth[i : i + 1], labels=labels[i : i + 1]) for i in range(len(reconstructions))]
        rows = compared_updates(reconstructions, truths, inputs, guesses_of(images(self.data, self.data_root)))
        return [
            InvertedImage(**dict(row), matching_loss=finite(reconstruction.matching_loss), cpu_seconds=seconds)
            for reconstruction, (row,) in zip(reconstructions, rows, strict=True)
        ]

    def _noisy(self, observation: Observation, cell: Inversion) -> Observation:
        if not cell.std:
            return observation
        noise = GaussianNoise(std=cell.std)
        return replace(
            observation, update=noise(observation.update, generator=generator("noise", self.seed, observation.node))
        )


def searches(attack: str) -> bool:
    """Whether an attack starts from random pixels."""
    return attack.partition(":")[0] in ("dlg", "inverting-gradients")
