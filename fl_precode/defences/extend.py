"""Put a random layer into any model: PRECODE's bottleneck, the convolutional bottleneck, dropout."""

from __future__ import annotations

import copy
import difflib
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from fl_precode.defences import insertion
from fl_precode.defences.cvb import ConvBottleneck, check_kernel
from fl_precode.defences.insertion import CLASSIFIER, SECOND_CONVOLUTION, Place, Wanted
from fl_precode.defences.precode import VariationalBottleneck
from fl_precode.randomness.random_layers import track_kl
from fl_precode.randomness.seeding import undisturbed_rng

# The reference code counts KL in bits, so that its beta of 1e-3 weighs a nat by 1e-3 / ln 2.
PRESETS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {"precode-reference": MappingProxyType({"latent": 256, "beta": 1e-3 / math.log(2)})}
)

Before = str | Sequence[str] | None


def extend(
    model: nn.Module,
    example_input: Tensor,
    *,
    latent: int | None = None,
    beta: float | None = None,
    before: Before = None,
    preset: str | None = None,
) -> nn.Module:
    """Return a copy of a model defended by PRECODE (WACV 2022): a variational bottleneck before its last Linear layer.

    The layer, say ``fc``, becomes a Sequential of ``fc.bottleneck`` and ``fc.layer``; everything else keeps its name
    and its values. Train the model with the KL term in its loss: see `track_kl`. The bottleneck is initialised from
    torch's global generator, as any new layer; nothing else is drawn from it.

    Args:
        model: Any module that takes one tensor and returns one. Left untouched.
        example_input: A batch as in training, (batch, ...); the values do not matter.
        latent: Length of the latent vector, 256 by default.
        beta: Weight of the KL term per nat, 1e-3 by default.
        before: Dotted name of the module to put the bottleneck in front of, instead of the last Linear layer; or
            several names, for one bottleneck each. What enters it must be one tensor (batch, ...).
        preset: ``precode-reference`` for the latent and beta of the reference code, in its units; excludes both.

    Returns:
        The defended copy, in the mode (training or evaluation), dtype and device of the model.

    Raises:
        ValueError: If there is no Linear layer, the place is ambiguous, unknown or taken, or an argument does not fit.

    >>> net = nn.Sequential(OrderedDict(body=nn.Linear(4, 8), act=nn.ReLU(), head=nn.Linear(8, 2)))
    >>> defended = extend(net, torch.zeros(1, 4), latent=3)
    >>> [name for name, _ in defended.head.named_children()]
    ['bottleneck', 'layer']
    """
    size, weight = _settings(latent, beta, preset)

    def make(place: Place) -> nn.Module:
        return VariationalBottleneck(math.prod(place.shape), size, weight)

    return _guard(model, example_input, before, make, "bottleneck", CLASSIFIER)


def extend_conv(
    model: nn.Module,
    example_input: Tensor,
    *,
    latent: int | None = None,
    kernel: int = 5,
    beta: float = 0.1,
    before: Before = None,
    reference_kl: bool = False,
) -> nn.Module:
    """Return a copy of a model defended by CVB (arXiv 2309.04515): a convolutional bottleneck behind its first block.

    It goes before the second convolution that runs, or, where the output reaches around that one (a residual block),
    before the smallest module around it that everything passes. Otherwise as `extend`.

    Args:
        model: As for `extend`.
        example_input: As for `extend`.
        latent: Latent channels; half of those that enter by default, 8 when fewer than 8 enter.
        kernel: Side of the encoder's kernel, odd. The paper has 5 for CNNs and ResNet18, 3 for ViT.
        beta: Weight of the KL term per nat and position. The paper has 0.1 for CNN and ViT, 5e-5 for ResNet18.
        before: As for `extend`; feature maps (batch, channels, height, width) must enter.
        reference_kl: Weigh the KL as the authors' code does; see `ConvBottleneck`.

    Raises:
        ValueError: As `extend`, and for models without feature maps.
    """
    check_kernel(kernel)

    def make(place: Place) -> nn.Module:
        if len(place.shape) != 3:
            raise ValueError(
                f"expected feature maps (channels, height, width) to enter {place.name!r}, got {place.shape}; "
                "name another place with before=, or use precode there"
            )
        return ConvBottleneck(place.shape[0], latent, kernel, beta, reference_kl=reference_kl)

    return _guard(model, example_input, before, make, "bottleneck", SECOND_CONVOLUTION)


def extend_dropout(model: nn.Module, example_input: Tensor, *, p: float, before: Before = None) -> nn.Module:
    """Return a copy of a model with dropout before its last Linear layer, the defence that DIA attacks.

    Scheliga, Mäder, Seeland: Dropout is NOT All You Need to Prevent Gradient Leakage. AAAI 2023 (arXiv 2208.06163).
    Active in training mode, in which clients compute gradients, and only there. Otherwise as `extend`, with
    ``fc.dropout`` in place of ``fc.bottleneck``.

    Args:
        model: As for `extend`.
        example_input: As for `extend`.
        p: Share of the features set to zero, more than 0 and less than 1.
        before: As for `extend`.

    Raises:
        ValueError: As `extend`, and for a p outside (0, 1).
    """
    if not 0 < p < 1:
        raise ValueError(f"expected a dropout p between 0 and 1, exclusively, got {p}")
    behind_anything = Wanted(**{**vars(CLASSIFIER), "guarded": False})
    return _guard(model, example_input, before, lambda _place: nn.Dropout(p), "dropout", behind_anything)


def _settings(latent: int | None, beta: float | None, preset: str | None) -> tuple[int, float]:
    if preset is None:
        return 256 if latent is None else latent, 1e-3 if beta is None else beta
    if preset not in PRESETS:
        near = difflib.get_close_matches(preset, PRESETS)
        raise ValueError(f"there is no preset {preset!r}; expected one of {', '.join(PRESETS)}{_meant(near)}")
    if latent is not None or beta is not None:
        raise ValueError(f"the preset {preset!r} sets latent and beta; give either the preset or the values")
    return int(PRESETS[preset]["latent"]), PRESETS[preset]["beta"]


def _meant(near: list[str]) -> str:
    return f" (did you mean {near[0]!r}?)" if near else ""


def _guard(
    model: nn.Module,
    example_input: Tensor,
    before: Before,
    make: Callable[[Place], nn.Module],
    role: str,
    wanted: Wanted,
) -> nn.Module:
    """Put a guard in front of each named module, or of the wanted one."""
    insertion.check_model(model)
    if before is None or isinstance(before, str):
        return _guard_one(model, example_input, before, make, role, wanted)
    twice = [name for name, times in Counter(before).items() if times > 1]
    if twice or not before:
        raise ValueError(f"expected different places in before=, at least one; got {list(before)}")
    # The deepest first: a guard in front of a module renames what lies inside it.
    for name in sorted(before, key=lambda name: -name.count(".")):
        model = _guard_one(model, example_input, name, make, role, wanted)
    return model


def _guard_one(
    model: nn.Module,
    example_input: Tensor,
    before: str | None,
    make: Callable[[Place], nn.Module],
    role: str,
    wanted: Wanted,
) -> nn.Module:
    place = insertion.find(model, example_input, before, wanted)
    guard = make(place).to(device=place.device, dtype=place.dtype)
    defended = copy.deepcopy(model)
    target = defended.get_submodule(place.name)
    guarded = nn.Sequential(OrderedDict([(role, guard), ("layer", target)]))
    for module in (guarded, *guard.modules()):  # one by one: `train` would reach into the target
        module.training = target.training
    if target is defended:
        defended = guarded
    _replace(defended, target, guarded)
    _check(defended, example_input, place, role)
    return defended


def _replace(model: nn.Module, target: nn.Module, guarded: nn.Module) -> None:
    """Put ``guarded`` wherever ``target`` is registered: a tied module may have several names."""
    for parent in list(model.modules()):
        # Not named_children: it passes over the second name of a module.
        for child, module in list(parent._modules.items()):
            if module is target and parent is not guarded:
                setattr(parent, child, guarded)


def _check(defended: nn.Module, example_input: Tensor, place: Place, role: str) -> None:
    """Run the defended model once, in a copy: the guard must be passed, and the output keep its shape."""
    trial = copy.deepcopy(defended).eval()
    passed: list[bool] = []
    guard = trial.get_submodule(f"{place.name}.{role}" if place.name else role)
    guard.register_forward_hook(lambda *_: passed.append(True))
    try:
        with undisturbed_rng(), torch.no_grad(), track_kl():
            out = trial(example_input)
    except Exception as error:
        raise ValueError(
            f"the model does not run with a {role} before {place.name!r}: {type(error).__name__}: {error}. "
            "Probably its code reaches into that module by attribute; name another place with before="
        ) from error
    if len(passed) != place.calls:
        raise ValueError(
            f"the model runs {place.name!r} through a reference that extend cannot replace (a list or an attribute of "
            f"another object), so the {role} would be passed by; register the module, or name another with before="
        )
    if not isinstance(out, Tensor) or out.shape != place.output_shape:
        raise ValueError(f"the {role} before {place.name!r} changed the output; expected {tuple(place.output_shape)}")
