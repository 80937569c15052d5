"""Label recovery by name, with one way to call every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor

from attacker.labels.bias_corrected import bias_corrected_labels
from attacker.labels.counts import count_labels
from attacker.labels.evidence import ClassifierGradient, classifier_gradient, known_batch_size
from attacker.labels.idlg import idlg_label
from attacker.labels.llg import llg_labels
from attacker.labels.llg_white_box import llg_white_box_labels
from attacker.labels.rows import row_label
from attacker.labels.unique import unique_labels
from attacker.labels.yin import yin_labels
from attacker.victim import Victim
from fl_precode.observation import Observation


@dataclass(frozen=True, kw_only=True)
class LabelRecovery:
    """A method of label recovery that can be named.

    Attributes:
        description: One line.
        assumes: What must hold for the labels to be right, beyond softmax cross-entropy on the last Linear layer.
        source: Where it was published.
        function: Takes victim, observation, generator and number of probes; gives (batch,) sorted labels or None when
            the update shows none, and raises ValueError where the method cannot apply. Methods without random inputs
            leave the generator untouched.
    """

    description: str
    assumes: str
    source: str
    function: Callable[[Victim, Observation, torch.Generator, int], Tensor | None] = field(repr=False)


def _idlg(victim: Victim, observation: Observation) -> Tensor | None:
    evidence = classifier_gradient(victim, observation)
    batch = known_batch_size(observation, method="idlg")
    if batch != 1:
        raise ValueError(f"label recovery 'idlg' finds the label of one image, and this update comes from {batch}")
    gradient = evidence.gradient if evidence.bias is not None else _without_bias(evidence)
    return idlg_label(evidence.layer, gradient, classes=evidence.classes)


def _without_bias(evidence: ClassifierGradient) -> dict[str, Tensor]:
    """The gradient without a bias of which pruning left nothing."""
    return {name: value for name, value in evidence.gradient.items() if not name.endswith("bias")}


def _alone(
    function: Callable[[Victim, Observation], Tensor | None],
) -> Callable[[Victim, Observation, torch.Generator, int], Tensor | None]:
    """A method that needs the update only, called like one that probes the model."""
    return lambda victim, observation, _generator, _probes: function(victim, observation)


_WAINAKH = "Wainakh et al., PoPETs 2022"

LABEL_RECOVERY: Mapping[str, LabelRecovery] = MappingProxyType(
    {
        "idlg": LabelRecovery(
            description="the class whose gradient is negative",
            assumes="one image",
            source="Zhao, Mopuri, Bilen 2020",
            function=_alone(_idlg),
        ),
        "rows": LabelRecovery(
            description="the class whose row of the weight gradient points against all others",
            assumes="one image, three or more classes",
            source="this project",
            function=_alone(row_label),
        ),
        "unique": LabelRecovery(
            description="all classes whose gradient is negative",
            assumes="distinct labels, a model not yet confident",
            source="Zhao, Mopuri, Bilen 2020, for batches",
            function=_alone(unique_labels),
        ),
        "yin": LabelRecovery(
            description="the classes whose rows of the weight gradient have the most negative minima",
            assumes="distinct labels, features that are not negative",
            source="Yin et al., CVPR 2021",
            function=_alone(yin_labels),
        ),
        "llg": LabelRecovery(
            description="row sums of the weight gradient, read off one label at a time",
            assumes="an untrained model, features that are not negative and of similar sum",
            source=_WAINAKH,
            function=_alone(llg_labels),
        ),
        "bias-corrected": LabelRecovery(
            description="bias gradient, read off one label at a time",
            assumes="an untrained model, a classifier with a bias",
            source=f"{_WAINAKH}, as varied in breaching",
            function=_alone(bias_corrected_labels),
        ),
        "llg-white-box": LabelRecovery(
            description="row sums, with impact and offset measured on random inputs",
            assumes="features that are not negative, random inputs treated as the client's, a known scale",
            source=f"{_WAINAKH} (LLG*)",
            function=lambda victim, observation, generator, probes: llg_white_box_labels(
                victim, observation, generator=generator, probes=probes
            ),
        ),
        "counts": LabelRecovery(
            description="batch * (p_c - db_c) with p_c measured on random inputs",
            assumes="a classifier with a bias, random inputs treated as the client's, a known scale",
            source="Geng et al. 2021",
            function=lambda victim, observation, generator, probes: count_labels(
                victim, observation, generator=generator, probes=probes
            ),
        ),
    }
)
"""Methods of label recovery by name."""


def recover_labels(
    method: str, victim: Victim, observation: Observation, *, generator: torch.Generator, probes: int = 256
) -> Tensor | None:
    """Labels of a batch by the named method.

    Args:
        method: One of `LABEL_RECOVERY`.
        victim: Public knowledge about the model.
        observation: A gradient, or local steps of plain SGD, which each method treats as their mean gradient.
        generator: Source of the random inputs of the methods that probe the model.
        probes: Number of those inputs, 1 or more.

    Returns:
        (batch,) sorted labels, or None when the update shows none.

    Raises:
        ValueError: If there is no such method, or it cannot apply (each method's own docstring says when).
    """
    if method not in LABEL_RECOVERY:
        raise ValueError(f"unknown label recovery {method!r}; there are {', '.join(LABEL_RECOVERY)}")
    return LABEL_RECOVERY[method].function(victim, observation, generator, probes)
