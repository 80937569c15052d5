"""Nets of the papers on analytic inversion and on influence functions, by name, with the weights they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.analytic.classifier_inputs import enter_one_logit
from attacker.analytic.known_quantities import Leaked
from attacker.analytic.layer_chain import chain
from attacker.analytic.layer_inversion import invert_chain
from attacker.victim import Victim
from fl_precode.models import build_model
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.lenet import init_uniform
from fl_precode.observation import Observation
from fl_precode.randomness.seeding import seeded

Shape = tuple[int, int, int, int]
"""Of a convolution: channels that it makes, kernel, stride, padding."""

ONE_LOGIT = "cnn6"
"""R-GAP's net: one logit, logistic loss, no biases; every image has the label 1."""
INITIALISATIONS = ("uniform", "normal", "kaiming", "xavier", "default")


@dataclass(frozen=True, kw_only=True)
class Net:
    """Convolutions with an activation behind each, then one fully connected layer.

    Attributes:
        shapes: Shapes of the convolutions.
        activation: Behind each.
        bias: Whether the convolutions have one; the classifier has one unless there is a single logit.
        seed: Seed of torch's generator before the weights are drawn.
        mean: Subtracted from pixels in [0, 1].
    """

    shapes: Sequence[Shape]
    activation: Callable[[], nn.Module] = nn.Tanh
    bias: bool = False
    seed: int = 10
    mean: float = 0.5


LENET: tuple[Shape, ...] = ((12, 5, 2, 2), (12, 5, 2, 2), (12, 5, 1, 2))
NETS: Mapping[str, Net] = MappingProxyType(
    {
        ONE_LOGIT: Net(
            shapes=((12, 4, 2, 2), (36, 3, 2, 1), (36, 3, 1, 1), (36, 3, 1, 1), (64, 3, 2, 1), (128, 3, 1, 1)),
            activation=lambda: nn.LeakyReLU(0.2), seed=0, mean=0.0,
        ),
        "dlg-lenet": Net(shapes=LENET, activation=nn.Sigmoid, bias=True, seed=1234, mean=0.0),
        "cnn2_c1": Net(shapes=((6, 3, 1, 0),)),
        "cnn2_c2": Net(shapes=((6, 4, 2, 0),)),
        "cnn3_c1": Net(shapes=((6, 3, 1, 0), (3, 4, 2, 0))),
        "cnn3_c2": Net(shapes=((6, 4, 2, 0), (3, 3, 2, 0))),
        "cnn4_c1": Net(shapes=((6, 3, 1, 0), (5, 4, 2, 0), (3, 4, 1, 0))),
        "cnn4_c3": Net(shapes=((6, 5, 1, 0), (16, 5, 2, 0), (16, 5, 1, 2))),
    }
)  # fmt: skip
"""R-GAP's CNN6, DLG's sigmoid LeNet with weights from U(-0.5, 0.5), and Chen and Campbell's nets (arXiv 2111.10178)."""


class OneLogit(nn.Module):
    """The logits 0 and f, so that cross-entropy with the label 1 is the logistic loss of the one logit f."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, 1) to (n, 2)."""
        return torch.cat([torch.zeros_like(x), x], dim=1)


def convolutions(channels: int, net: Net) -> list[nn.Module]:
    """The layers up to the features."""
    layers: list[nn.Module] = []
    for made, kernel, stride, padding in net.shapes:
        convolution = nn.Conv2d(channels, made, kernel, stride=stride, padding=padding, bias=net.bias)
        layers += [convolution, net.activation()]
        channels = made
    return [*layers, nn.Flatten()]


def published(name: str, inputs: InputSpec) -> Victim:
    """A net of `NETS` for images of this shape, with its first weights.

    Raises:
        ValueError: If there is no such net, or the images are too small for it.
    """
    if name not in NETS:
        raise ValueError(f"unknown net {name!r}; there are {', '.join(NETS)}")
    net, logits = NETS[name], 1 if name == ONE_LOGIT else inputs.classes
    with seeded(net.seed):
        layers = convolutions(inputs.channels, net)
        try:
            features = nn.Sequential(*layers)(torch.zeros(1, *inputs.shape)).shape[1]
        except RuntimeError as error:
            raise ValueError(f"the net {name!r} does not fit images of {inputs.shape}: {error}") from None
        layers.append(nn.Linear(features, logits, bias=logits > 1))
        model = nn.Sequential(*layers, *([OneLogit()] if logits == 1 else []))
        if name == "dlg-lenet":
            init_uniform(model)
    domain = replace(inputs, mean=(net.mean,) * inputs.channels, std=(1.0,) * inputs.channels, classes=max(2, logits))
    return Victim(model=model, inputs=domain, name=name)


def r_gap(victim: Victim, observation: Observation) -> Tensor:
    """The image of one update of `ONE_LOGIT` (Zhu, Blaschko, ICLR 2021), matrix-free; the label 1 is known.

    The margin is not: of the roots of its equation that image is taken whose equations hold best.

    Returns:
        (1, channels, height, width), float32.
    """
    assert isinstance(victim.model, nn.Sequential)
    steps = chain(Victim(model=victim.model[:-1], inputs=victim.inputs)).steps
    values = {name: value.double()[None] for name, value in observation.parameters.items()}
    gradients = {name: value.double()[None] for name, value in observation.update.items()}
    last = steps[-1].parameter("weight")
    tried = []
    for entry in enter_one_logit(values[last][0], gradients[last][0], 1):
        leaked = Leaked(
            parameters=values, gradients=gradients, buffers={}, features=entry.features[None],
            gradient=entry.gradient[None],
        )  # fmt: skip
        inversion = invert_chain(steps[:-1], leaked)
        tried.append((sum(float(report.residuals) for report in inversion.reports), inversion.inputs))
    return min(tried, key=lambda pair: pair[0])[1].float()


def initialised(model: nn.Module, start: str, seed: int) -> nn.Module:
    """The model, redrawn: uniform U(-0.5, 0.5), normal N(0, 0.5²), kaiming, xavier (biases uniform), or left alone.

    The four of Zhang et al., I2F (NeurIPS 2023).

    Raises:
        ValueError: If there is no such initialisation.
    """
    if start not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {start!r}; there are {', '.join(INITIALISATIONS)}")
    with seeded(seed):
        for parameter in model.parameters() if start != "default" else ():
            if start == "normal":
                nn.init.normal_(parameter, std=0.5)
            elif start == "uniform" or parameter.dim() == 1:
                nn.init.uniform_(parameter, -0.5, 0.5)
            elif start == "kaiming":
                nn.init.kaiming_uniform_(parameter, nonlinearity="sigmoid")
            else:
                nn.init.xavier_uniform_(parameter)
    return model


def model_of(spec: str, inputs: InputSpec, *, start: str, seed: int) -> nn.Module:
    """A model of the factory, or ``resnet18``, with weights drawn in one of `INITIALISATIONS`.

    Raises:
        ValueError: If there is no such model or initialisation, or the model does not fit the images.
    """
    if spec == "resnet18":
        with seeded(seed):
            return initialised(resnet18(inputs.channels, inputs.classes), start, seed)
    return initialised(build_model(spec, inputs, seed=seed), start, seed)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.shortcut: nn.Module = nn.Identity() if same else shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, height, width) to (n, after, height / stride, width / stride)."""
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def resnet18(channels: int, classes: int) -> nn.Sequential:
    """ResNet18 for images of 32x32: a 3x3 stem without pooling, 64 to 512 channels, 11.2 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model
