"""Our own bottlenecks, recognised by the names and shapes that they leave on a tape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import nn

from fl_precode.assumption import Assumption
from fl_precode.models.layout import Shape, unwrapped
from fl_precode.randomness.random_layers import Bottleneck

_ENCODER: Final = "bottleneck.encoder.weight"
_DECODER: Final = "bottleneck.decoder.weight"


def recognised_defence(shapes: Mapping[str, Shape]) -> str | None:
    """The spec of the bottlenecks in a state dict, as `fl_precode.extend` and `extend_conv` insert them; None without.

    The weight of the KL term leaves no trace: it is taken as the default.

    >>> recognised_defence({"fc.bottleneck.encoder.weight": (8, 20), "fc.bottleneck.decoder.weight": (20, 4)})
    'precode:latent=4,before=fc'
    """
    named = {unwrapped(name): shape for name, shape in shapes.items()}
    places = [name.removesuffix(_ENCODER) for name in named if name.endswith(_ENCODER)]
    found: dict[str, tuple[list[str], int, int]] = {}
    for place in places:
        encoder, decoder = named[place + _ENCODER], named.get(place + _DECODER)
        if decoder is None or len(encoder) not in (2, 4) or len(decoder) != len(encoder):
            continue
        kind = "precode" if len(encoder) == 2 else "cvb"
        found.setdefault(kind, ([], decoder[1], encoder[-1]))[0].append(place.rstrip("."))
    specs = []
    for kind, (names, latent, kernel) in found.items():
        options = [f"latent={latent}", *([f"kernel={kernel}"] if kind == "cvb" else [])]
        options += [f"before={'|'.join(names)}"] if any(names) else []
        specs.append(f"{kind}:{','.join(options)}")
    return "+".join(specs) or None


def contained_defence(model: nn.Module) -> str | None:
    """The spec of the bottlenecks that a factory's model has already; None without."""
    if not any(isinstance(module, Bottleneck) for module in model.modules()):
        return None
    return recognised_defence({name: tuple(value.shape) for name, value in model.named_parameters()})


def recognised(defence: str) -> Assumption:
    """What is assumed of a recognised defence."""
    return Assumption(
        code="defence-recognised",
        sentence=f"the defence is taken to be {defence}, from the names and shapes of the weights, with the default "
        "weight of its penalty",
        doubt="another beta, or layers of another kind under the same names",
        line=f'defence = "{defence}"',
    )
