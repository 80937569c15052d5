"""Entry layer of a model from behind: a fully connected layer that determines its input, fed by a chain of layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from attacker.analytic.layer_chain import LayerChain, Step, chain
from attacker.analytic.layer_inversion import why_not_inverted
from attacker.analytic.skip_connections import why_bypassed
from attacker.gradients.uncompared_parameters import moves
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.defences.precode import VariationalBottleneck
from fl_precode.randomness.random_layers import Bottleneck


@dataclass(frozen=True, kw_only=True)
class Entrance:
    """A Linear layer and the layers from the image up to it.

    Attributes:
        steps: Each of which can be gone through backwards.
        layer: The Linear layer.
        weight: Name of its weight.
        bias: Name of its bias; None for a classifier whose bias does not move, or is absent: the model's last layer.
        constant: Name of a bias that does not move; None without one.
    """

    steps: tuple[Step, ...]
    layer: nn.Linear
    weight: str
    bias: str | None
    constant: str | None = None

    @property
    def parameters(self) -> list[str]:
        """Names of all parameters that moved from the image up to the layer, the layer's included."""
        names = [name for step in self.steps for name, _ in step.module.named_parameters(prefix=step.name)]
        return [*names, self.weight] if self.bias is None else [*names, self.weight, self.bias]

    @property
    def buffers(self) -> list[str]:
        """Names of the buffers of the layers up to the Linear one, constants among them."""
        names = [name for step in self.steps for name, _ in step.module.named_buffers(prefix=step.name)]
        return names if self.constant is None else [*names, self.constant]


def entrance(victim: Victim, *, through_bottleneck: bool = False) -> Entrance | Reason:
    """The first place from which everything before can be recovered, or why there is none.

    A Linear layer with a bias tells its input and the gradient there whatever stands behind it, so that the first one
    is the best: fewest layers are left. One whose weight or bias did not move tells only one of the two. PRECODE's
    encoder is such a layer. A classifier without a bias under softmax cross-entropy will do when it is the only one.

    Args:
        victim: Public knowledge about the model, as its clients ran it.
        through_bottleneck: Enter at the encoder of the first variational bottleneck, and nowhere else.

    Returns:
        The entrance; or a sentence that names the layer that stands in the way.
    """
    model_chain = chain(victim)
    entry_layer = _encoder(model_chain) if through_bottleneck else _linear(victim, model_chain)
    if isinstance(entry_layer, Reason):
        return entry_layer
    reasons = [reason for reason in map(why_not_inverted, entry_layer.steps) if reason is not None]
    return (reasons[-1] if reasons else why_bypassed(victim, entry_layer.steps, entry_layer.layer)) or entry_layer


def _encoder(model_chain: LayerChain) -> Entrance | Reason:
    for place, step in enumerate(model_chain.steps):
        if isinstance(step.module, VariationalBottleneck) and isinstance(step.module.encoder, nn.Linear):
            name = step.parameter("encoder")
            if not (moves(step.module.encoder, "weight") and moves(step.module.encoder, "bias")):
                return because("bottleneck-did-not-move", name=name)
            return Entrance(
                steps=model_chain.steps[:place],
                layer=step.module.encoder,
                weight=f"{name}.weight",
                bias=f"{name}.bias",
            )
        if isinstance(step.module, Bottleneck):
            return because("bottleneck-is-convolutional", name=step.name, kind=step.kind)
    return model_chain.ends or because("no-bottleneck")


def _linear(victim: Victim, model_chain: LayerChain) -> Entrance | Reason:
    still: list[str] = []
    for place, step in enumerate(model_chain.steps):
        if isinstance(step.module, Bottleneck):
            return because("bottleneck-noise-unknown", name=step.name, kind=step.kind)
        if type(step.module) is not nn.Linear or len(step.input_shape) != 1:
            continue
        last = model_chain.ends is None and place == len(model_chain.steps) - 1
        has_bias = moves(step.module, "bias")
        if not moves(step.module, "weight"):
            still.append(step.name)
            continue
        if step.shared:
            return because("layer-shared", name=step.name)
        scores = last and victim.why_no_loss is None and step.module.out_features == victim.inputs.classes
        if scores and not has_bias and (other := victim.why_not_cross_entropy(f"{step.name!r}, which has no bias,")):
            return other
        if has_bias or scores:
            return Entrance(
                steps=model_chain.steps[:place],
                layer=step.module,
                weight=step.parameter("weight"),
                bias=step.parameter("bias") if has_bias else None,
                constant=None if has_bias or step.module.bias is None else step.parameter("bias"),
            )
    if still:
        return because("no-linear-layer.still", names=", ".join(map(repr, still[:4])))
    return model_chain.ends or because("no-linear-layer")


def has_gradient(entry_layer: Entrance, gradient: Mapping[str, Tensor]) -> bool:
    """Whether the Linear layer's gradient is not zero everywhere."""
    return bool((gradient[entry_layer.bias or entry_layer.weight] != 0).any())
