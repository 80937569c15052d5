"""The noise that a client's bottleneck drew, and the features that entered it, in closed form from its gradient.

For one image both Linear layers of a bottleneck have gradients of rank one. With d for the gradient of a layer's
output, which is the gradient of its bias, ``dW = d x^T`` for the layer's input x, hence ``x = dW^T d / |d|^2``. The
encoder gives the features h that entered, the decoder the sample z, and ``mu, sigma = encoder(h)`` gives
``eps = (z - mu) / sigma``. The KL term changes d and nothing else. What the noise was meant to hide is in the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from attacker.analytic.rank import numerical_rank, rank_words
from attacker.gradients.observed import observed_gradient, why_not_one_step
from attacker.gradients.trace import LayerRun, Trace, trace
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.defences.precode import VariationalBottleneck
from fl_precode.observation import Gradients, Observation


@dataclass(frozen=True, kw_only=True)
class RecoveredBottleneck:
    """What one bottleneck did to the client's image, all in float64.

    Attributes:
        name: Name of the bottleneck.
        features: (1, features), h, what entered.
        latent: (1, latent), z, the sample.
        noise: (1, latent), eps.
        residual: ``|dW - d x^T| / |dW|`` (Frobenius), the larger of the two layers': what the rank-one form leaves out.
    """

    name: str
    features: Tensor
    latent: Tensor
    noise: Tensor
    residual: float


@dataclass(frozen=True, kw_only=True)
class RecoveredNoise:
    """What is recovered of each bottleneck that ran, in order of execution.

    Attributes:
        bottlenecks: The recovered ones; None for those that are not.
        reasons: Why not, in the order of execution; empty for those that are.
    """

    bottlenecks: tuple[RecoveredBottleneck | None, ...]
    reasons: tuple[Reason, ...]

    @property
    def complete(self) -> bool:
        """Whether there are bottlenecks, and the noise of all is known."""
        return bool(self.bottlenecks) and all(bottleneck is not None for bottleneck in self.bottlenecks)

    @property
    def noise(self) -> tuple[Tensor | None, ...]:
        """Eps of each bottleneck in order of execution, (1, latent), None where it is not known."""
        return tuple(None if bottleneck is None else bottleneck.noise for bottleneck in self.bottlenecks)


def recover_noise(victim: Victim, observation: Observation, model_trace: Trace | None = None) -> RecoveredNoise:
    """Recover the noise of all bottlenecks of a client with one image.

    Args:
        victim: Public knowledge about the model.
        observation: The client's gradient, or its weights after one step.
        model_trace: A trace of the model, when there is one already.

    Returns:
        What was recovered of each bottleneck, or why it was not; without any bottleneck in the model nothing.
    """
    runs = (model_trace or trace(victim)).bottlenecks
    general = _why_not_one_image(observation)
    gradient = observed_gradient(observation)
    bottlenecks: list[RecoveredBottleneck | None] = []
    reasons = []
    for run in runs:
        result = general or _recovered(victim.model, run, gradient, observation)
        bottlenecks.append(None if isinstance(result, Reason) else result)
        reasons.append(result if isinstance(result, Reason) else Reason(""))
    return RecoveredNoise(bottlenecks=tuple(bottlenecks), reasons=tuple(reasons))


def _why_not_one_image(observation: Observation) -> Reason | None:
    if observation.batch_size is not None and observation.batch_size != 1:
        return because("several-images.bottleneck", size=observation.batch_size)
    return why_not_one_step(observation)


def _recovered(
    model: nn.Module, run: LayerRun, gradient: Gradients, observation: Observation
) -> RecoveredBottleneck | Reason:
    layer = run.module
    if not isinstance(layer, VariationalBottleneck):
        return because("bottleneck-is-convolutional.positions", name=run.name, kind=type(layer).__name__)
    layer_inputs = []
    for part in ("encoder", "decoder"):
        prefix = f"{run.name}.{part}" if run.name else part
        if f"{prefix}.weight" not in gradient:
            return because("bottleneck-did-not-move.weight", name=prefix)
        weight = gradient[f"{prefix}.weight"].double()
        slope = _output_gradient(model, prefix, run.name, gradient, observation)
        if isinstance(slope, Reason):
            return slope
        entered = _rank_one_input(weight, slope, f"{prefix}.weight")
        if isinstance(entered, Reason):
            return entered
        layer_inputs.append(entered)
    (features, first), (latent, second) = layer_inputs
    prefix = f"{run.name}.encoder" if run.name else "encoder"
    values = {**observation.buffers, **observation.parameters}  # a bias that did not move is a constant
    bias = values.get(f"{prefix}.bias")
    stats = F.linear(
        features, observation.parameters[f"{prefix}.weight"].double(), None if bias is None else bias.double()
    )
    mu, stat = stats[:, : layer.latent], stats[:, layer.latent :]
    noise = (latent - mu) / F.softplus(stat)
    if not bool(noise.isfinite().all()):
        return because("bottleneck-noise-not-finite", name=run.name)
    return RecoveredBottleneck(
        name=run.name, features=features, latent=latent, noise=noise, residual=max(first, second)
    )


def _output_gradient(
    model: nn.Module, prefix: str, bottleneck: str, gradient: Gradients, observation: Observation
) -> Tensor | Reason:
    """Gradient of what a layer of the bottleneck returns, up to a factor: that of its bias, or of what follows it."""
    if f"{prefix}.bias" in gradient:
        return gradient[f"{prefix}.bias"].double()
    if prefix.endswith("encoder"):
        return because("bottleneck-without-bias", name=prefix)
    follower = _layer_behind(model, bottleneck)
    if follower is None or f"{follower}.bias" not in gradient:
        return because("bottleneck-without-bias.behind", name=prefix)
    # For a classifier this is W^T (p - y), with the gradient of its bias for p - y.
    values = {**observation.buffers, **observation.parameters}
    return values[f"{follower}.weight"].double().T @ gradient[f"{follower}.bias"].double()


def _layer_behind(model: nn.Module, bottleneck: str) -> str | None:
    """Name of the Linear layer directly behind a bottleneck, as `fl_precode.extend` puts them; None if another is."""
    parent, _, child = bottleneck.rpartition(".")
    container = model.get_submodule(parent)
    if not isinstance(container, nn.Sequential):
        return None
    names = [name for name, _ in container.named_children()]
    behind = [
        name for name in names[names.index(child) + 1 :] if not isinstance(container.get_submodule(name), nn.Flatten)
    ]
    if not behind or not isinstance(container.get_submodule(behind[0]), nn.Linear):
        return None
    return f"{parent}.{behind[0]}" if parent else behind[0]


def _rank_one_input(weight: Tensor, slope: Tensor, name: str) -> tuple[Tensor, float] | Reason:
    """X of ``weight = slope x^T`` as (1, numbers), and what that leaves out of ``weight``; or why there is none."""
    size = slope.square().sum()
    if not bool(size > 0):
        return because("gradient-is-zero.bottleneck", name=name)
    rank = numerical_rank(weight)
    if rank != 1:
        return because("several-images.bottleneck-rank", name=name, rank=rank_words(rank))
    entered = slope.unsqueeze(0) @ weight / size
    residual = float((weight - slope.unsqueeze(1) @ entered).norm() / weight.norm())
    if residual > 0.1:
        return because("no-outer-product", name=name, residual=residual)
    return entered, residual
