"""Defences by name: a spec such as ``precode:latent=128+ppp:std=0.01`` to a model and a gradient defence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from inspect import getdoc, isabstract
from typing import Any, Final, TypeVar

import torch
from torch import Generator, Tensor, nn

from fl_precode.defences.dp_sgd import DpSgd
from fl_precode.defences.flower_dp import CentralDp, LocalDp
from fl_precode.defences.in_model import Cvb, CvbReference, Dropout, ModelDefence, Precode, PrecodeReference, Undefended
from fl_precode.defences.nvflare_filters import PercentileFilter, SvtFilter
from fl_precode.defences.on_gradients import (
    Batch,
    Clip,
    GaussianNoise,
    GradientDefence,
    LaplaceNoise,
    Prune,
    Quantise,
    Sign,
)
from fl_precode.defences.ppp import PartialNoise
from fl_precode.defences.soteria import Soteria
from fl_precode.defences.update_filters import UpdateFilter
from fl_precode.import_path import load
from fl_precode.models.input_spec import InputSpec
from fl_precode.observation import Gradients
from fl_precode.plugins import Registry
from fl_precode.randomness.seeding import seeded
from fl_precode.spec import Spec, names_class, parse_spec, split_parts

Settings = type[ModelDefence] | type[GradientDefence]
Kind = TypeVar("Kind", bound=Settings)

GROUP: Final = "fl_precode.defences"
"""Entry points by which other packages add defences."""


@dataclass(frozen=True)
class DefenceEntry:
    """A defence that can be named.

    Attributes:
        description: One line.
        settings: Frozen dataclass; its fields are the options that the spec may carry.
        title: Its name for people, as it stands within a sentence; empty for the name that specs use.
    """

    description: str
    settings: Settings
    title: str = ""


def _check_kind(kind: object) -> None:
    """Refuse what is no class of defences.

    Raises:
        TypeError: If it is none, a method is missing, or it is no dataclass.
    """
    name = getattr(kind, "__name__", repr(kind))
    if not (isinstance(kind, type) and issubclass(kind, ModelDefence | GradientDefence)):
        raise TypeError(f"expected a subclass of GradientDefence or ModelDefence (fl_precode.defences), got {name}")
    if isabstract(kind) or not is_dataclass(kind):
        page = "docs/how-to/adding-a-defence.md"
        raise TypeError(f"the defence {name} lacks __call__, or is no frozen dataclass: see {page}")


def _entry_of_class(name: str, kind: object, package: str) -> DefenceEntry:
    """What is known of a class that does not register itself."""
    del name
    _check_kind(kind)
    assert isinstance(kind, type)
    line = (getdoc(kind) or kind.__name__).partition("\n")[0].rstrip(".")
    return DefenceEntry(f"{line} ({package})" if package else line, kind, kind.__name__)


DEFENCES: Registry[DefenceEntry] = Registry("defence", GROUP, _entry_of_class)
"""Defences by name; those of plug-ins too."""


def register_defence(name: str, *, description: str, title: str = "") -> Callable[[Kind], Kind]:
    """Register the decorated class as a defence that specs, clients and reports know by name.

    It stands above ``@dataclass``, whose fields become the options of the spec.

    Args:
        name: By which specs call it.
        description: One line for the list of defences.
        title: Its name for people, as it stands within a sentence.

    Raises:
        ValueError: If the name is taken by another class, or is no name for a spec.
        TypeError: If what is decorated is no defence.
    """

    def decorate(kind: Kind) -> Kind:
        _check_kind(kind)
        DEFENCES.add(name, DefenceEntry(description, kind, title), f"{kind.__module__}:{kind.__qualname__}")
        return kind

    return decorate


register_defence("none", title="no defence", description="No defence: the model as it is")(Undefended)
register_defence(
    "precode",
    title="PRECODE",
    description="PRECODE, a variational bottleneck before the classifier; latent=256, beta=0.001 per nat, "
    "before=module",
)(Precode)
register_defence(
    "precode-reference",
    title="PRECODE (reference settings)",
    description="PRECODE with the reference code's units: latent 256, beta 1e-3 per bit; before=module|...",
)(PrecodeReference)
register_defence(
    "cvb",
    title="CVB",
    description="Convolutional variational bottleneck behind the first block; latent=channels/2, kernel=5, beta=0.1",
)(Cvb)
register_defence(
    "cvb-reference",
    title="CVB (reference KL)",
    description="The same with the KL term of the authors' code; same options",
)(CvbReference)
register_defence(
    "dropout", title="dropout", description="Dropout before the classifier while training; p=0.5, before=module|..."
)(Dropout)
register_defence("noise", title="Gaussian noise", description="Gaussian noise on what is sent; std")(GaussianNoise)
register_defence("laplace", title="Laplace noise", description="Laplace noise on what is sent; std")(LaplaceNoise)
register_defence(
    "ppp",
    title="PPP",
    description="Gaussian noise only where a bottleneck leaves gradients nearly deterministic; std, threshold=0.5",
)(PartialNoise)
register_defence("prune", title="pruning", description="Zero for the smallest numbers of each tensor; share")(Prune)
register_defence(
    "clip", title="clipping", description="A largest L2 norm for the whole update (not differential privacy); max_norm"
)(Clip)
register_defence(
    "quantise", title="quantisation", description="Stochastic rounding to 2^bits - 1 values for each tensor; bits"
)(Quantise)
register_defence("sign", title="signs", description="Signs times each tensor's mean magnitude (not a privacy defence)")(
    Sign
)
register_defence(
    "soteria",
    title="Soteria",
    description="Zero columns in a Linear layer's weight gradient, by how features depend on the input; share=0.6, "
    "layer",
)(Soteria)
register_defence(
    "dp", title="DP-SGD", description="DP-SGD: clips each example's gradient and adds noise; max_norm, noise_multiplier"
)(DpSgd)
register_defence(
    "local-dp",
    title="Flower's LocalDpMod",
    description="Flower's LocalDpMod: clips the whole reply and adds noise; clip, sensitivity, epsilon, delta",
)(LocalDp)
register_defence(
    "central-dp",
    title="Flower's central DP",
    description="Flower's central DP as the server holds it before its own noise; clip, side=client, "
    "noise_multiplier=0, clients=0, quantile=0",
)(CentralDp)
register_defence(
    "percentile",
    title="NVFlare's percentile filter",
    description="NVFlare's PercentilePrivacy: the largest numbers, cut to gamma (no randomness); share=90, gamma=0.01, "
    "steps=1",
)(PercentileFilter)
register_defence(
    "svt",
    title="NVFlare's sparse vectors",
    description="NVFlare's SVTPrivacy: a share of the numbers with noise, others as they are; fraction=0.1, "
    "epsilon=0.1, noise_var=0.1, gamma=1e-5, tau=1e-6, steps=1",
)(SvtFilter)

__all__ = [
    "DEFENCES",
    "Batch",
    "DefenceEntry",
    "GradientDefence",
    "ModelDefence",
    "apply_defence",
    "changes_model",
    "check_defence",
    "check_gradient_defence",
    "gradient_defence",
    "register_defence",
]

_BOTTLENECKS = ({"precode", "precode-reference"}, {"cvb", "cvb-reference"})
_NOISES = {"noise", "laplace", "ppp", "local-dp", "svt"}


@dataclass(frozen=True)
class DefenceChain(GradientDefence):
    """Gradient defences one after another, in the order in which the spec names them.

    Attributes:
        parts: At least one.
    """

    parts: tuple[GradientDefence, ...]

    def __call__(
        self,
        gradients: Gradients,
        *,
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """See `GradientDefence`."""
        defended = dict(gradients)
        for part in self.parts:
            before, defended = defended, part(defended, generator=generator, model=model, batch=batch)
            _check_shapes(part, before, defended)
        return defended

    def check(self, model: nn.Module) -> None:
        """See `GradientDefence`."""
        for part in self.parts:
            part.check(model)

    @property
    def bounds_examples(self) -> bool:
        """Whether it is DP-SGD, so that nothing else may be sent that depends on the images."""
        return any(isinstance(part, DpSgd) for part in self.parts)

    @property
    def filters_reply(self) -> bool:
        """Whether a part changes buffers and counters as well, so that the chain must be given the whole reply."""
        return any(isinstance(part, UpdateFilter) for part in self.parts)

    def on_reply(
        self,
        received: Gradients,
        sent: Gradients,
        *,
        parameters: Collection[str],
        generator: Generator | None = None,
        model: nn.Module | None = None,
        batch: Batch | None = None,
    ) -> dict[str, Tensor]:
        """A client's reply as it leaves the client: parts of the whole reply change it all, others the parameters.

        Args:
            received: What the client was sent, by name.
            sent: What it would reply, under the same names.
            parameters: Names whose change is the update.
            generator: As in `GradientDefence`.
            model: Likewise.
            batch: Likewise.
        """
        reply = dict(sent)
        for part in self.parts:
            if isinstance(part, UpdateFilter):
                reply = part.on_reply(received, reply, generator)
                continue
            update = {name: reply[name] - received[name] for name in parameters}
            changed = DefenceChain((part,))(update, generator=generator, model=model, batch=batch)
            reply |= {name: received[name] + value for name, value in changed.items()}
        return reply

    def of_steps(self) -> DefenceChain | None:
        """The parts that belong to each step of local training, or None."""
        return _chain([part for part in self.parts if part.per_step])

    def of_update(self) -> DefenceChain | None:
        """The parts that belong to the update after local training, or None."""
        return _chain([part for part in self.parts if not part.per_step])


def _check_shapes(part: GradientDefence, before: Gradients, after: object) -> None:
    """Refuse what a defence must not do, anyone's own above all: the server could not use what is sent.

    Raises:
        ValueError: If names or shapes are not what they were.
    """
    shapes = {name: tuple(value.shape) for name, value in before.items()}
    found = {name: tuple(value.shape) for name, value in after.items()} if isinstance(after, Mapping) else {}
    if found != shapes:
        odd = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise ValueError(
            f"the defence {type(part).__name__} must return every gradient under its name and in its shape; expected "
            f"{odd[0]!r} of shape {shapes.get(odd[0], 'none')}, got {found.get(odd[0], 'none')}"
        )


def _chain(parts: Sequence[GradientDefence]) -> DefenceChain | None:
    return DefenceChain(tuple(parts)) if parts else None


def defence_parts(spec: str) -> list[Spec]:
    """The parts of a defence spec, in order; names and options are not checked.

    >>> [part.name for part in defence_parts("precode+noise:std=1e+2")]
    ['precode', 'noise']
    """
    return [parse_spec(part) for part in split_parts(spec)]


def check_defence(spec: str) -> None:
    """Refuse a defence spec that no model could have, before anything is built.

    Raises:
        ValueError: If a name, an option or a value is not one that exists (the message lists those that do), or parts
            contradict one another.
    """
    _parse(spec)


def apply_defence(spec: str, model: nn.Module, inputs: InputSpec, *, seed: int = 0) -> nn.Module:
    """Return the defended copy of a model; the model itself is left untouched.

    Args:
        spec: ``none``, ``precode``, ``precode:latent=128,beta=0.01,before=classifier``, ``cvb+noise:std=0.01``. Parts
            that act on gradients change nothing here: see `gradient_defence`.
        model: Takes (batch, channels, height, width) of ``inputs``.
        inputs: Input domain.
        seed: Seed of the defence's own layers; torch's global generators are left as they were.

    Raises:
        ValueError: If the spec is unknown or the model cannot carry the defence (see `fl_precode.extend`).
    """
    parts = [part for part in _parse(spec) if isinstance(part, ModelDefence)] or [Undefended()]
    like = next(model.parameters(), torch.empty(0))
    example = torch.zeros(1, *inputs.shape, dtype=like.dtype, device=like.device)
    # Not the model's own stream: with equal seeds the bottleneck would repeat the first layer's random numbers.
    digest = hashlib.sha256(f"defence {seed}".encode()).digest()
    with seeded(int.from_bytes(digest[:7], "big")):
        for part in parts:
            model = part(model, example)
    return model


def gradient_defence(spec: str) -> DefenceChain | None:
    """Defence of a client's gradients by the spec, or None when it leaves them alone.

    >>> gradient_defence("precode+clip:max_norm=1").parts
    (Clip(max_norm=1.0),)
    >>> gradient_defence("precode") is None
    True

    Raises:
        ValueError: As `check_defence`.
    """
    return _chain([part for part in _parse(spec) if isinstance(part, GradientDefence)])


def changes_model(spec: str) -> bool:
    """Whether a part of the spec changes the model.

    Raises:
        ValueError: As `check_defence`.
    """
    return any(isinstance(part, ModelDefence) and not isinstance(part, Undefended) for part in _parse(spec))


def check_gradient_defence(spec: str, model: nn.Module) -> None:
    """Refuse a model that cannot have the spec's gradient defences, before anything is trained.

    Args:
        spec: Spec of the whole defence.
        model: The defended model.

    Raises:
        ValueError: Naming what does not fit, with advice.
    """
    chain = gradient_defence(spec)
    if chain is not None:
        chain.check(model)


def perturbation_generator(*identity: int | str) -> Generator:
    """A CPU generator for a gradient defence, of its own for every identity (seed, client, round, ...).

    For tests and repeatable experiments only: whoever knows the identity, or tries all 2^32 streams that torch has,
    takes the noise away. Protected clients give their defences no generator.

    Its stream has nothing in common with torch's global one under the same seed, from which bottlenecks draw.
    """
    digest = hashlib.sha256(f"gradient defence {identity!r}".encode()).digest()
    return Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _parse(text: str) -> list[ModelDefence | GradientDefence]:
    specs = defence_parts(text)
    for spec in specs:
        if spec.name not in DEFENCES and not names_class(spec.text):
            raise ValueError(DEFENCES.why_unknown(spec.name))
    parts = [_settings(spec) for spec in specs]
    problem = _contradiction([spec.name for spec in specs]) or _wrong_order(specs, parts)
    if problem:
        raise ValueError(f"{text!r}: {problem}")
    return parts


def _kind(spec: Spec) -> Settings:
    """The class of a name, or at a place.

    Raises:
        ValueError: If there is no class of defences at the place.
    """
    if spec.name in DEFENCES:
        return DEFENCES[spec.name].settings
    kind: Settings = load(spec.text, "defence")
    try:
        _check_kind(kind)
    except TypeError as error:
        raise ValueError(f"defence {spec.text!r}: {error}") from None
    return kind


def _settings(spec: Spec) -> ModelDefence | GradientDefence:
    settings = _kind(spec)
    known = {field.name: field for field in fields(settings)}  # type: ignore[arg-type]  # all are dataclasses
    spec.check_options(known)
    missing = [name for name, field in known.items() if field.default is MISSING and name not in spec.options]
    if missing:
        raise ValueError(
            f"{spec.text!r}: {spec.name!r} needs {', '.join(missing)}; write {spec.name}:"
            + ",".join(f"{name}=..." for name in missing)
        )
    values = {name: _value(spec, name, str(field.type)) for name, field in known.items() if name in spec.options}
    try:
        return settings(**values)
    except ValueError as error:
        raise ValueError(f"{spec.text!r}: {error}") from None


def _value(spec: Spec, name: str, kind: str) -> Any:
    if kind.startswith("int"):
        return spec.integer(name)
    return spec.number(name) if kind.startswith("float") else spec.options[name]


def _contradiction(names: Sequence[str]) -> str | None:
    """Why these defences do not go together, with advice, or None."""
    has = set(names)
    if "none" in has and len(names) > 1:
        return "'none' stands alone; leave it out"
    for one in sorted(has):
        if names.count(one) > 1:
            several = ", for several bottlenecks write before=a|b" if one in ("precode", "cvb") else ""
            return f"{one!r} is given twice; give it once{several}"
    for kin in _BOTTLENECKS:
        if kin <= has:
            both = " and ".join(sorted(kin))
            return f"{both} are one bottleneck with two settings; choose one (before=a|b names several places)"
    if len(has & _NOISES) > 1:
        return f"{' and '.join(sorted(has & _NOISES))} both add noise; choose one, with a larger std"
    if "ppp" in has and not any(has & kin for kin in _BOTTLENECKS):
        return "ppp adds noise to what a bottleneck leaves deterministic, and there is none; use precode+ppp, or noise"
    if "dp" in has and has & _NOISES:
        return f"dp adds noise already; leave {', '.join(has & _NOISES)} out and raise noise_multiplier"
    if {"dp", "soteria"} <= has:
        return "soteria looks at the images once more, which dp's epsilon does not count; choose one"
    return "sign is the quantisation to one bit; choose quantise or sign" if {"quantise", "sign"} <= has else None


def _wrong_order(specs: Sequence[Spec], parts: Sequence[object]) -> str | None:
    later = False
    for spec, part in zip(specs, parts, strict=True):
        if isinstance(part, GradientDefence):
            if part.per_step and later:
                return f"{spec.name} works on the gradient of a batch, before anything else does; name it first"
            later = later or not part.per_step
    return None
