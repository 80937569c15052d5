"""Random small models of every kind that people write, and what a client of one sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fl_precode import Observation, Protocol
from fl_precode.models.input_spec import InputSpec

WIDTH = 8
ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True), "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU,
    "leaky": nn.LeakyReLU, "elu": nn.ELU, "hardswish": nn.Hardswish, "hardsigmoid": nn.Hardsigmoid,
    "prelu": nn.PReLU, "softplus": nn.Softplus, "identity": nn.Identity, "softmax": lambda: nn.Softmax(dim=1),
}  # fmt: skip
STEMS = ("linear", "conv", "grouped", "reflected", "patches", "spectral", "lazy", "standardised")
SPATIAL = (
    "conv", "depthwise", "batch-norm", "batch-norm-mean", "batch-norm-plain", "batch-norm-untracked", "group-norm",
    "instance-norm", "max-pool", "average-pool", "residual", "dropout2d", "activation", "channels-last", "squeeze",
)  # fmt: skip
FLAT = (
    "linear", "linear-without-bias", "tied", "tied-transposed", "twice", "layer-norm", "batch-norm-1d", "dropout",
    "functional-dropout", "attention", "fused-attention", "encoder-layer", "checkpoint", "spectral", "old-spectral",
    "weight-norm", "old-weight-norm", "complex", "residual", "activation", "adapter", "lazy", "embedding", "recurrent",
    "slice",
)  # fmt: skip
EXTRAS = ("scale", "empty", "unused", "integer", "float-buffer", "complex-unused", "unused-tied", "empty-buffer")
OUTPUTS = (
    "logits",
    "logits",
    "logits",
    "logits",
    "softmax",
    "log-softmax",
    "tuple",
    "dict",
    "without-bias",
    "one-more",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides about a drawn model and its client."""

    channels: int
    height: int
    width: int
    classes: int
    double: bool
    stem: str
    spatial: tuple[str, ...]
    flat: tuple[str, ...]
    activation: str
    extras: tuple[str, ...]
    output: str
    frozen: int
    images: int
    steps: int
    kind: str
    momentum: float
    batch_norm: str | None
    announced: bool
    seed: int

    @property
    def inputs(self) -> InputSpec:
        """The images' domain."""
        mean, std = (0.4,) * self.channels, (0.3,) * self.channels
        return InputSpec(
            channels=self.channels, height=self.height, width=self.width, classes=self.classes, mean=mean, std=std
        )


@st.composite
def recipes(draw: Any) -> Recipe:
    """Drawn recipes; small ones first."""
    kind = draw(st.sampled_from(["weights", "gradient"]))
    return Recipe(
        channels=draw(st.sampled_from([1, 2, 3])),
        height=draw(st.integers(5, 9)),
        width=draw(st.integers(5, 9)),
        classes=draw(st.integers(2, 4)),
        double=draw(st.booleans()),
        stem=draw(st.sampled_from(STEMS)),
        spatial=tuple(draw(st.lists(st.sampled_from(SPATIAL), max_size=2))),
        flat=tuple(draw(st.lists(st.sampled_from(FLAT), max_size=3))),
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        extras=tuple(draw(st.lists(st.sampled_from(EXTRAS), max_size=2, unique=True))),
        output=draw(st.sampled_from(OUTPUTS)),
        frozen=draw(st.sampled_from([0, 0, 1, 2, 3, 5, 6, 10, 255, 0b10101010, 0b1111111111])),
        images=draw(st.integers(1, 2)),
        steps=1 if kind == "gradient" else draw(st.integers(1, 2)),
        kind=kind,
        momentum=draw(st.sampled_from([0.0, 0.0, 0.9])),
        batch_norm=draw(st.sampled_from([None, "batch", "buffers"])),
        announced=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


class Drawn(nn.Module):
    """The model of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe, own = recipe, recipe
        inputs = own.channels * own.height * own.width
        self.act = ACTIVATIONS[own.activation]()
        self.stem: nn.Module
        if own.stem in ("linear", "standardised"):
            self.stem = nn.Linear(inputs, WIDTH)
        elif own.stem == "lazy":
            self.stem = nn.LazyLinear(WIDTH)
        elif own.stem == "patches":
            self.stem = nn.Linear(own.channels * 4, WIDTH)
        elif own.stem == "spectral":
            self.stem = nn.utils.parametrizations.spectral_norm(nn.Conv2d(own.channels, WIDTH, 3, stride=2))
        else:
            mode = "reflect" if own.stem == "reflected" else "zeros"
            groups = own.channels if own.stem == "grouped" else 1
            out = 6 if own.stem == "grouped" else WIDTH
            self.stem = nn.Conv2d(own.channels, out, 3, stride=2, padding=1, padding_mode=mode, groups=groups)
        self.spatial = nn.ModuleList(_spatial(name) for name in own.spatial) if self._pictured else nn.ModuleList()
        self.bridge = nn.LazyLinear(WIDTH) if self._pictured or own.stem == "patches" else nn.Identity()
        self.flat = nn.ModuleList(_flat(name) for name in own.flat)
        self.head = nn.Linear(WIDTH, own.classes + (own.output == "one-more"), bias=own.output != "without-bias")
        self._extras()

    @property
    def _pictured(self) -> bool:
        return self.recipe.stem in ("conv", "grouped", "reflected", "spectral")

    def _extras(self) -> None:
        chosen = self.recipe.extras
        if "scale" in chosen:
            self.scale = nn.Parameter(torch.tensor(1.3))
        if "empty" in chosen:
            self.empty = nn.Parameter(torch.empty(0, 4))
        if "unused" in chosen:
            self.unused = nn.Linear(3, 3)
        if "integer" in chosen:
            self.integer = nn.Parameter(torch.arange(3), requires_grad=False)
        if "float-buffer" in chosen:
            self.register_buffer("offset", torch.full((1, 1), 0.1))
        if "complex-unused" in chosen:
            self.spectrum = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        if "unused-tied" in chosen:
            self.alias = self.head
        if "empty-buffer" in chosen:
            self.register_buffer("nothing", torch.empty(0))

    def forward(self, x: Tensor) -> Any:
        own = self.recipe
        if own.stem in ("linear", "lazy", "standardised"):
            if own.stem == "standardised":
                x = (x - x.mean(dim=(1, 2, 3), keepdim=True)) / (x.std(dim=(1, 2, 3), keepdim=True) + 0.1)
            h = self.act(self.stem(x.reshape(len(x), -1)))
        elif own.stem == "patches":
            tokens = self.act(self.stem(F.unfold(x, 2, stride=2).transpose(1, 2)))
            h = self.bridge(tokens.flatten(1))
        else:
            h = self.act(self.stem(x))
            for name, layer in zip(own.spatial, self.spatial, strict=True):
                h = h + 0.5 * torch.tanh(layer(h)) if name == "residual" else layer(h)
            h = self.bridge(h.flatten(1))
        for name, layer in zip(own.flat, self.flat, strict=True):
            h = _applied(name, layer, h, self.training)
        if "float-buffer" in own.extras:
            h = h + self.offset
        logits = self.head(h)
        if "scale" in own.extras:
            logits = logits * self.scale
        if own.output == "tuple":
            return logits, h
        if own.output == "dict":
            return {"logits": logits, "features": h}
        return {"softmax": F.softmax, "log-softmax": F.log_softmax}.get(own.output, lambda z, dim: z)(logits, dim=1)


def _spatial(name: str) -> nn.Module:
    lazily = {
        "conv": lambda: nn.LazyConv2d(WIDTH, 3, padding=1), "depthwise": lambda: nn.LazyConv2d(WIDTH, 1, bias=False),
        "batch-norm": nn.LazyBatchNorm2d, "batch-norm-mean": lambda: nn.LazyBatchNorm2d(momentum=None),
        "batch-norm-plain": lambda: nn.LazyBatchNorm2d(affine=False),
        "batch-norm-untracked": lambda: nn.LazyBatchNorm2d(track_running_stats=False),
        "group-norm": lambda: nn.GroupNorm(1, WIDTH), "instance-norm": lambda: nn.LazyInstanceNorm2d(affine=True),
        "max-pool": lambda: nn.MaxPool2d(2, ceil_mode=True), "average-pool": lambda: nn.AdaptiveAvgPool2d(2),
        "residual": lambda: nn.LazyConv2d(WIDTH, 1), "dropout2d": lambda: nn.Dropout2d(0.2), "activation": nn.Tanh,
        "channels-last": lambda: nn.LazyConv2d(WIDTH, 2, padding=1), "squeeze": lambda: nn.LazyConv2d(WIDTH, 1),
    }  # fmt: skip
    return lazily[name]()


class Complex(nn.Module):
    """A layer in the Fourier domain, as FNet and neural operators have it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(WIDTH // 2 + 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.w, n=WIDTH)


class TiedPair(nn.Module):
    """Two layers that share a weight, the second one transposed or not."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.one, self.two, self.transposed = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), transposed
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sigmoid(self.one(x))
        return F.linear(h, self.one.weight.T, self.two.bias) if self.transposed else self.two(h)


class FusedAttention(nn.Module):
    """torch's fused kernel over four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(len(x), 4, 2)).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(q, k, v).reshape(len(x), WIDTH)


def _flat(name: str) -> nn.Module:
    made = {
        "linear-without-bias": lambda: nn.Linear(WIDTH, WIDTH, bias=False), "complex": Complex,
        "tied": lambda: TiedPair(transposed=False), "tied-transposed": lambda: TiedPair(transposed=True),
        "layer-norm": lambda: nn.LayerNorm(WIDTH), "batch-norm-1d": lambda: nn.BatchNorm1d(WIDTH),
        "dropout": lambda: nn.Dropout(0.3), "functional-dropout": nn.Identity, "fused-attention": FusedAttention,
        "attention": lambda: nn.MultiheadAttention(2, 1, batch_first=True), "slice": nn.Identity,
        "encoder-layer": lambda: nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True),
        "spectral": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        "old-spectral": lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        "weight-norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH)),
        "old-weight-norm": lambda: nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH)), "activation": nn.Softplus,
        "adapter": lambda: nn.ModuleList([nn.Linear(WIDTH, 2, bias=False), nn.Linear(2, WIDTH, bias=False)]),
        "lazy": lambda: nn.LazyLinear(WIDTH), "embedding": lambda: nn.Embedding(4, 2),
        "recurrent": lambda: nn.GRU(2, 2, batch_first=True),
    }  # fmt: skip
    return made.get(name, lambda: nn.Linear(WIDTH, WIDTH))()


def _applied(name: str, layer: Any, h: Tensor, training: bool) -> Tensor:
    tokens = h.reshape(len(h), 4, 2)
    ways = {
        "twice": lambda: layer(torch.sigmoid(layer(h))),
        "functional-dropout": lambda: F.dropout(h, 0.3, training),
        "attention": lambda: layer(tokens, tokens, tokens, need_weights=False)[0],
        "encoder-layer": lambda: layer(tokens),
        "recurrent": lambda: layer(tokens)[0],
        "checkpoint": lambda: checkpoint(lambda z: torch.tanh(layer(z)), h, use_reentrant=False),
        "residual": lambda: h + torch.relu(layer(h)),
        "adapter": lambda: h + layer[1](layer[0](h)),
        "embedding": lambda: tokens + layer(torch.arange(4)),
        "slice": lambda: torch.cat([h[:, 4:], h[:, :4]], dim=1),
    }
    return ways.get(name, lambda: layer(h))().reshape(len(h), WIDTH)


CURRENT: list[Recipe] = []
"""The recipe that `current` builds; tapes name models by import path, which has no room for one."""


def current() -> nn.Module:
    """The drawn model, every layer made, in its type; the same numbers each time."""
    return build(CURRENT[-1])


def build(recipe: Recipe) -> nn.Module:
    """The model of a recipe.

    Raises:
        RuntimeError: If its layers do not fit the image's size.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = Drawn(recipe)
        with torch.no_grad():
            model(torch.zeros(2, *recipe.inputs.shape))
        if recipe.double:
            model = model.to(torch.float64)  # complex parameters stay as they are: `double` would not touch them
        if "channels-last" in recipe.spatial:
            model = model.to(memory_format=torch.channels_last)
    names = [name for name, _ in model.named_parameters()]
    for place, name in enumerate(names[:-1]):
        if recipe.frozen >> (place % 10) & 1:
            model.get_parameter(name).requires_grad_(False)
    if not any(one.requires_grad for one in model.parameters()):
        model.head.weight.requires_grad_(True)
    return model


def train(recipe: Recipe, model: nn.Module) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """What a client sends: its state after local steps, or gradients in the places of parameters; and its batch."""
    generator = torch.Generator().manual_seed(recipe.seed)
    like = next(one for one in model.parameters() if one.is_floating_point())
    pixels = torch.rand(recipe.images, *recipe.inputs.shape, generator=generator).to(like.dtype)
    labels = torch.randint(recipe.classes, (recipe.images,), generator=generator)
    model.train()
    for module in model.modules():
        small = recipe.images == 1 and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (recipe.batch_norm == "buffers" or small):
            module.eval()
    moving = [one for one in model.parameters() if one.requires_grad]
    steps = torch.optim.SGD(moving, lr=0.1, momentum=recipe.momentum)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        for _ in range(recipe.steps):
            steps.zero_grad()
            _loss(model(recipe.inputs.normalise(pixels)), labels).backward()
            if recipe.kind == "weights":
                steps.step()
    sent = {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}
    if recipe.kind == "gradient":
        for name, value in model.named_parameters():
            sent[name] = torch.zeros_like(value) if value.grad is None else value.grad.detach().clone()
    return sent, pixels, labels


def _loss(found: Any, labels: Tensor) -> Tensor:
    logits = found["logits"] if isinstance(found, dict) else found[0] if isinstance(found, tuple) else found
    return F.cross_entropy(logits, labels)


def protocol(recipe: Recipe) -> Protocol:
    """What is announced of the client's work."""
    if not recipe.announced:
        return Protocol()
    return Protocol(
        name="fedavg" if recipe.kind == "weights" else "fedsgd",
        local_steps=recipe.steps,
        learning_rate=0.1,
        batch_size=recipe.images,
        momentum=recipe.momentum,
        weight_decay=0.0,
        defence="none",
        batch_norm=recipe.batch_norm,  # type: ignore[arg-type]
    )


def observation(recipe: Recipe, before: dict[str, Tensor], sent: dict[str, Tensor], model: nn.Module) -> Observation:
    """The update as a reader of the tape makes it: what is known not to have moved is frozen."""
    names = [name for name, _ in model.named_parameters()]
    moved = [name for name in names if recipe.kind == "gradient" or not torch.equal(before[name], sent[name])]
    frozen = frozenset(names) - frozenset(moved)
    known = {name: value for name, value in before.items() if name in frozen} | {
        name: before[name] for name, _ in model.named_buffers() if name in before
    }
    return Observation(
        parameters={name: before[name] for name in moved},
        buffers=known,
        update={name: sent[name] - (before[name] if recipe.kind == "weights" else 0) for name in moved},
        kind=recipe.kind,  # type: ignore[arg-type]
        batch_size=recipe.images,
        protocol=protocol(recipe),
        round=1,
        node="1",
        frozen=frozen,
    )
