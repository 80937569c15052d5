"""Factories for `package.module:factory`, good and bad, that the tests of fl_precode.models name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fl_precode.models import InputSpec


def with_spec(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, spec.classes))


def with_optional_inputs(inputs=None):
    return with_spec(inputs)


class Plain(nn.Module):
    """Takes no spec; its first argument has a default that is no spec."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.head = nn.Linear(3, classes)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.head(self.drop(x.mean((2, 3))))

    @classmethod
    def quiet(cls):
        return cls().eval()


def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def normalised():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def for_one_channel():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 10))


def no_module():
    return {"not": "a module"}


def raising(spec):
    raise RuntimeError("no weights today")


def greedy(spec, depth):
    return nn.Identity()


def keyword_only(*, depth):
    return nn.Identity()


class TwoHeads(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)), torch.zeros(1)


def with_classes(num_classes):
    torch.empty(num_classes)  # as a layer would ask for it
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def get_model(num_labels: int, in_chans: int, img_size: int):
    """As vision transformers are asked for; all by position."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, num_labels))


def by_pixels(input_dim, /, hidden=7, *, n_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_dim, hidden), nn.Linear(hidden, n_classes))


def annotated(domain: InputSpec):
    return with_spec(domain)


def annotated_in_text(domain: InputSpec | None):
    return with_spec(domain)


class Sized(nn.Module):
    """A factory with settings of its own, of all kinds that are literals."""

    def __init__(self, num_classes, width=4, *, name="", sizes=(1, 2), bias=True):
        super().__init__()
        self.settings = (width, name, sizes, bias)
        self.head = nn.Linear(3, num_classes, bias=bias)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def with_transforms():
    return Plain(), "the transforms of its images"


def of_a_configuration(cfg):
    return nn.Linear(cfg.width, 10)


class Named(Plain):
    """Logits in a dict, beside a loss of no dimensions and features."""

    def forward(self, x):
        return {"loss": torch.zeros(()), "logits": super().forward(x), "features": x.mean((2, 3))}


@dataclass
class Classified:
    hidden: torch.Tensor
    logits: torch.Tensor


class InAnObject(Plain):
    def forward(self, x):
        return Classified(hidden=x.mean((2, 3)), logits=super().forward(x))


class Pair(Plain):
    def forward(self, x):
        return super().forward(x), x.mean((2, 3))


class FeaturesFirst(Plain):
    def forward(self, x):
        return x.mean((2, 3)), super().forward(x)


class OneLogit(nn.Module):
    """Flat when asked for, as models that squeeze their last axis are."""

    def __init__(self, squeezed=False):
        super().__init__()
        self.head, self.squeezed = nn.Linear(3, 1), squeezed

    def forward(self, x):
        found = self.head(x.mean((2, 3)))
        return found.squeeze(1) if self.squeezed else found


class Autoencoder(nn.Module):
    def __init__(self, flat=False):
        super().__init__()
        self.code, self.back, self.flat = nn.LazyLinear(4), nn.Linear(4, 3 * 32 * 32), flat

    def forward(self, x):
        found = self.back(self.code(x.flatten(1)))
        return found if self.flat else found.view(x.shape)


class Variational(Autoencoder):
    """Its code is as long as there are classes, and is no class score."""

    def forward(self, x):
        return super().forward(x), torch.zeros(len(x), 10), torch.ones(len(x), 10)


made = nn.Linear(2, 2)
number = 3
