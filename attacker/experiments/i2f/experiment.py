"""The comparison of influence with measured errors: Zhang, Hong, Zhou (I2F, NeurIPS 2023), re-run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from attacker.audit.record.schema import Count, Entry, Number
from attacker.experiments.cells import Made, StoredFile
from attacker.experiments.i2f.scales import InfluenceScale
from attacker.experiments.image_sets import images, made_from
from attacker.experiments.local_attack import Fitted, fit_from_random, fit_from_truth
from attacker.experiments.published_nets import INITIALISATIONS, model_of
from attacker.experiments.seeds import generator
from attacker.experiments.store import Store, identity
from attacker.leakage import (
    Jacobian,
    Spectrum,
    defence_change,
    glance,
    lower_bound,
    released,
    spectrum,
)
from attacker.leakage.released import Released
from attacker.victim import Victim
from fl_precode.defences.registry import gradient_defence
from fl_precode.federation.federation import choose_device

Way = Literal["local", "random", "products"]
LENET = "lenet"
MODEL_SEED = 1234
DAMPED = 1e-6
"""Share of the largest eigenvalue: a common damping, shown beside the undamped figure."""
_STEPS = 30
"""Of Lanczos where only products are affordable."""
_BY_PRODUCTS = 20
"""Iterations of L-BFGS where each costs seconds; the search has then hardly begun in weak directions."""


@dataclass(frozen=True, kw_only=True)
class Influenced:
    """One image whose gradient is changed in some ways.

    Attributes:
        part: Part of the page.
        data: Image set.
        model: Spec, or ``resnet18``.
        start: Name in `INITIALISATIONS`.
        image: Number of the training image.
        changes: Specs of what is done to the gradient.
        way: How the error is measured: L-BFGS from the truth on with the spectrum's help, from random pixels, or from
            the truth without a spectrum, where only products are affordable.
        iterations: Iterations of L-BFGS.
    """

    part: Literal["noise", "random", "pruning", "starts", "models"]
    data: str
    model: str = LENET
    start: str = "uniform"
    image: int
    changes: tuple[str, ...]
    way: Way = "local"
    iterations: int

    @property
    def stem(self) -> str:
        """Beginning of the name of its file."""
        return f"{self.part}-{self.model}-{self.start}-{self.image}"

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.part}: {self.model}, {self.start}, image {self.image}"

    @property
    def made(self) -> type[Made]:
        """What its result is."""
        return MeasuredInfluence


class Measured(Entry):
    """One change of the gradient; errors are root mean squares of pixels in [0, 1]."""

    change: str
    size: Number  # of the change, as a share of the gradient's norm
    i2f: Number | None
    damped: Number | None
    bound: Number
    rmse: Number
    distances: tuple[Number, Number]


class MeasuredInfluence(Made):
    """What one image's gradient determines, and what changes of it do."""

    kind: Literal["influence"] = "influence"
    label: Count
    gradient_norm: Number
    largest: Number
    unknowns: Count
    rank: Count | None
    unit_rmse: Number  # E-I2F for noise of standard deviation 1
    changes: list[Measured]
    pictures: StoredFile


@dataclass(frozen=True, kw_only=True)
class Influences:
    """The whole comparison.

    Attributes:
        scale: Sizes.
        data: Image sets.
        data_root: Folder of downloaded sets.
        seed: Seed of noise and random starts; the models' weights have a seed of their own.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    scale: InfluenceScale
    data: tuple[str, ...]
    data_root: str = ""
    seed: int = 0
    device: str = "auto"

    def check(self) -> None:
        """Refuse images that a model does not fit.

        Raises:
            ValueError: Naming it.
        """
        for piece in self.pieces():
            if piece.image == 0:
                model_of(piece.model, images(piece.data, self.data_root).inputs, start=piece.start, seed=MODEL_SEED)

    def pieces(self) -> list[Influenced]:
        """Everything to be done."""
        scale, first = self.scale, self.data[0]
        noises = tuple(f"noise:std={std:g}" for std in scale.stds)
        shares = tuple(f"prune:share={share:g}" for share in scale.shares)
        planned = []
        for data in self.data:
            count = scale.images if data == first else scale.others
            planned += self._several(count, part="noise", data=data, changes=noises)
        planned += self._several(scale.few, part="pruning", changes=shares)
        for start in INITIALISATIONS:
            planned += self._several(scale.few, part="starts", start=start)
        for model in scale.models:
            for start in ("uniform", "default"):
                planned += self._several(scale.few, part="models", model=model, start=start)
        planned += self._several(
            scale.random_images, part="random", changes=("noise:std=0.001",), way="random",
            iterations=scale.random_iterations,
        )  # fmt: skip
        for model in scale.large:
            planned += self._several(
                scale.few, part="models", model=model, start="default", way="products", iterations=_BY_PRODUCTS
            )
        return planned

    def _several(self, count: int, **fields: Any) -> list[Influenced]:
        common = {"data": self.data[0], "changes": ("noise:std=0.0001",), "iterations": self.scale.iterations}
        return [Influenced(**{**common, "image": image, **fields}) for image in range(count)]

    def recipe(self, cell: Influenced) -> dict[str, Any]:
        """What a piece's result depends on besides the piece."""
        return made_from(cell.data, self.data_root, self.seed)

    def cost(self, cell: Influenced) -> float:
        """Expected seconds, roughly."""
        numbers = images(cell.data, self.data_root).inputs.shape
        exact = 0.0 if cell.way == "products" else 8.0 * (numbers[0] * numbers[1] * numbers[2] / 3072) ** 2
        each = {"resnet18": 1.0, "resnet20": 0.3, "convnet": 1.0}.get(cell.model, 0.01)
        return exact + each * cell.iterations * len(cell.changes)

    def truth(self, cell: Influenced) -> tuple[Tensor, Tensor]:
        """The image, (1, channels, height, width) in [0, 1], and its label, (1,)."""
        return images(cell.data, self.data_root).train.batch([cell.image])

    def make(self, cell: Influenced, store: Store) -> MeasuredInfluence:
        """The result of a piece."""
        began = time.perf_counter()
        device = choose_device(self.device)
        inputs = images(cell.data, self.data_root).inputs
        model = model_of(cell.model, inputs, start=cell.start, seed=MODEL_SEED)
        victim = Victim(model=model.double().to(device), inputs=inputs, name=cell.model)
        pixels, label = self.truth(cell)
        pixels, label = pixels.double().to(device), label.to(device)
        of = released(victim, label)
        jacobian = Jacobian(of, pixels)
        exact_spectrum = None if cell.way == "products" else spectrum(jacobian)
        top, unit = self._risk(jacobian, exact_spectrum)
        rows, kept = [], {}
        for number, change in enumerate(cell.changes):
            row, fitted = self._changed(cell, of, jacobian, exact_spectrum, change, top)
            rows.append(row)
            kept[str(number)] = fitted.pixels.float()
        return MeasuredInfluence(
            label=int(label),
            gradient_norm=float(jacobian.gradient.norm()),
            largest=top,
            unknowns=jacobian.rows,
            rank=None if exact_spectrum is None else exact_spectrum.rank,
            unit_rmse=unit,
            changes=rows,
            pictures=store.keep(f"images-{identity(cell, self.recipe(cell))}", kept),
            seconds=time.perf_counter() - began,
        )

    def _risk(self, jacobian: Jacobian, exact_spectrum: Spectrum | None) -> tuple[float, float]:
        """The largest eigenvalue, and E-I2F for noise of standard deviation 1."""
        if exact_spectrum is not None:
            return exact_spectrum.largest, exact_spectrum.expected_rmse(1.0)
        quick = glance(jacobian, generator=generator("products", self.seed), steps=_STEPS)
        return quick.largest.upper, quick.at_least

    def _changed(
        self,
        cell: Influenced,
        of: Released,
        jacobian: Jacobian,
        exact_spectrum: Spectrum | None,
        change: str,
        top: float,
    ) -> tuple[Measured, Fitted]:
        defence = gradient_defence(change)
        assert defence is not None
        delta = defence_change(of, jacobian.pixels, defence, generator=generator(change, self.seed, cell.image))
        target, pixels, root = jacobian.gradient + delta, jacobian.pixels, jacobian.rows**0.5
        if cell.way == "random":
            source = generator("start", self.seed, cell.image)
            fitted = fit_from_random(of, pixels, target, iterations=cell.iterations, generator=source)
        else:
            fitted = fit_from_truth(of, pixels, target, exact_spectrum, iterations=cell.iterations)
        i2f = damped = None
        if exact_spectrum is not None:
            product = jacobian.to_image(delta)
            i2f = float(exact_spectrum.influence(product)) / root
            damped = float(exact_spectrum.influence(product, damping=DAMPED)) / root
        row = Measured(
            change=change,
            size=float(delta.norm() / jacobian.gradient.norm()),
            i2f=i2f,
            damped=damped,
            bound=lower_bound(jacobian, delta, top) / root,
            rmse=fitted.rmse,
            distances=fitted.distances,
        )
        return row, fitted
