"""Families of defences: one mechanism, clip, batch and number of steps, whose noise is what a ladder is climbed for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from torch import nn

from attacker.experiments.defence_search.ladder import RUNGS
from attacker.experiments.image_sets import images
from attacker.experiments.precode.experiment import Experiment
from fl_precode.data import ImageData
from fl_precode.defences.registry import apply_defence, check_gradient_defence
from fl_precode.models import build_model

Mechanism = Literal["example", "client", "noise"]
"""Clips the gradient of each image (DP-SGD), clips what a client sends, or adds noise without a clip."""

MECHANISMS: Final[tuple[Mechanism, ...]] = ("client", "example", "noise")
QUANTILES: Final = (1.0, 0.75, 0.5, 0.25)
"""Of the undefended norms; the clip that costs least comes first."""
BATCHES: Final = (1, 4, 16, 64)
STEPS: Final = (1, 2, 4, 8)
BESIDE: Final = ("", "precode", "cvb", "prune:share=0.9")
"""What stands beside the noise; a bottleneck in its usual place."""

_FIRST_BATCH, _FIRST_STEPS = 16, 2
"""Of the families that are tried first: noise is averaged over many images, and FedAvg is more than one step."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A way of working whose noise is still open.

    Attributes:
        mechanism: Where the noise comes in.
        quantile: Quantile of the undefended norms that is the clip; noise alone has no clip, and the median is what
            its deviation is relative to.
        beside: What else protects; empty for nothing.
        batch_size: Images of one step.
        local_steps: Local steps of a client under FedAvg.
        model: Spec of the model; not the one asked for where that has batch normalisation, which DP-SGD forbids.
    """

    mechanism: Mechanism
    quantile: float
    beside: str
    batch_size: int
    local_steps: int
    model: str

    @property
    def within(self) -> str:
        """What protects before there is any noise."""
        return self.beside or "none"

    @property
    def title(self) -> str:
        """For people."""
        way = {
            "example": f"DP-SGD clipped at the {self.quantile:g} quantile",
            "client": f"updates clipped at the {self.quantile:g} quantile, with noise",
            "noise": "noise alone",
        }[self.mechanism]
        beside = f", {self.beside}" if self.beside else ""
        return f"{way}{beside}, batch {self.batch_size} x {self.local_steps}"

    def defence(self, rung: int, norm: float) -> str:
        """Spec of the defence with this rung's noise.

        Args:
            rung: Rung of the ladder.
            norm: The undefended norm at the family's quantile.

        >>> work = {"batch_size": 1, "local_steps": 1, "model": "mlp"}
        >>> Family(mechanism="client", quantile=0.5, beside="precode", **work).defence(9, 2.0)
        'precode+clip:max_norm=2+noise:std=2'
        """
        clip, std = f"{norm:.4g}", f"{RUNGS[rung] * float(f'{norm:.4g}'):.4g}"
        own = {
            "example": f"dp:max_norm={clip},noise_multiplier={RUNGS[rung]:g}",
            "client": f"clip:max_norm={clip}+noise:std={std}",
            "noise": f"noise:std={std}",
        }[self.mechanism]
        # DP-SGD works on a step's gradient, before anything else does.
        after = self.mechanism == "example" and self.beside.startswith("prune")
        return "+".join(part for part in ((own, self.beside) if after else (self.beside, own)) if part)


def families(experiment: Experiment, data: str, model: str, *, most_images: int) -> list[Family]:
    """All families that the model can have, those first that are tried first.

    Args:
        experiment: Says where the images are.
        data: Image set.
        model: Spec.
        most_images: Maximum number of images of one client in one round: no more than there are victims.

    Raises:
        ValueError: If the model does not fit the images.
    """
    loaded = images(data, experiment.data_root)
    fitting = [
        (mechanism, beside, fits)
        for mechanism in MECHANISMS
        for beside in BESIDE
        if (fits := _model_for(mechanism, beside, model, loaded, experiment.seed))
    ]
    found = [
        Family(mechanism=mechanism, quantile=quantile, beside=beside, batch_size=batch, local_steps=steps, model=fits)
        for beside_first in (True, False)
        for mechanism, beside, fits in fitting
        if (not beside) is beside_first
        for quantile in ((0.5,) if mechanism == "noise" else QUANTILES)
        for batch in BATCHES
        for steps in STEPS
        if batch * steps <= most_images
    ]
    return sorted(found, key=_first)


def _first(family: Family) -> tuple[bool, int, int, int]:
    """Nothing beside the noise, the usual batch and steps come first; otherwise the order stays."""
    return (
        bool(family.beside),
        abs(BATCHES.index(family.batch_size) - BATCHES.index(_FIRST_BATCH)),
        abs(STEPS.index(family.local_steps) - STEPS.index(_FIRST_STEPS)),
        QUANTILES.index(family.quantile) if family.mechanism != "noise" else 0,
    )


def _model_for(mechanism: Mechanism, beside: str, model: str, data: ImageData, seed: int) -> str:
    """The model, or the same with group normalisation where only that can have the defence; empty if neither can."""
    trial = Family(mechanism=mechanism, quantile=0.5, beside=beside, batch_size=1, local_steps=1, model=model)
    for spec in (model, with_group_norm(model)):
        try:
            with _no_warnings():
                _check(spec, trial.defence(0, 1.0), data, seed)
        except ValueError:
            continue
        return spec
    return ""


def _check(model: str, defence: str, data: ImageData, seed: int) -> nn.Module:
    built = apply_defence(defence, build_model(model, data.inputs, seed=seed), data.inputs, seed=seed)
    check_gradient_defence(defence, built)
    return built


def with_group_norm(model: str) -> str:
    """The spec with the option that takes group normalisation.

    >>> with_group_norm("resnet20"), with_group_norm("convnet:norm=batch,width=8")
    ('resnet20:norm=group', 'convnet:norm=group,width=8')
    """
    if "norm=" in model:
        return model.replace("norm=batch", "norm=group")
    return f"{model}{',' if ':' in model else ':'}norm=group"


@contextmanager
def _no_warnings() -> Iterator[None]:
    """What there is to warn of is said when a family is tried, not of all that could be."""
    logger = logging.getLogger("fl_precode")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
