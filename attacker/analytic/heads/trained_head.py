"""The first layer that a client trained behind a trunk that it did not, and whether its gradient can be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from attacker.analytic.low_rank import GAP
from attacker.gradients.dropout_masks import dropout_layers
from attacker.gradients.observed import observed_gradient, steps_behind, why_not_one_step, why_scale_unknown
from attacker.gradients.trace import LayerRun, Trace
from attacker.gradients.uncompared_parameters import moves
from attacker.optim.double_precision import precise
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.observation import Observation
from fl_precode.randomness.random_layers import RandomLayer, sample_noise

TELLS_APART = 3e-8
"""Share of the largest singular value below which float32 gradients say nothing of an image."""

_STEP = 2.0
"""A singular value this many times the next one ends what as many images as were announced put into the gradient."""


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A Linear layer that gets one vector of features for each image.

    Attributes:
        name: Name of the layer.
        module: The layer.
        weight: Name of its weight, which moved.
        bias: Name of its bias; None where it has none or it did not move.
        constant: Name of a bias that did not move; None without one.
        scores: Whether what it returns are the class scores.
    """

    name: str
    module: nn.Linear
    weight: str
    bias: str | None
    constant: str | None
    scores: bool


def trained_head(victim: Victim, model_trace: Trace, *, any_trunk: bool) -> TrainedHead | Reason:
    """The first layer that moved, where it is a head behind a frozen trunk, or why it is none.

    Args:
        victim: Public knowledge about the model; what did not move is a constant of it.
        model_trace: Trace of its model.
        any_trunk: Whether the classifier is taken as the head where layers before it were trained too.
    """
    first, last = model_trace.layers[0] if model_trace.layers else None, model_trace.last_linear()
    if first is None:
        return because("no-parameters")
    if isinstance(first.module, nn.Linear) and _sees_features(first):
        run = first
    elif not any_trunk:
        return because("trunk-was-trained", name=first.name, kind=type(first.module).__name__)
    elif last is None or not _sees_features(last):
        return because("no-linear-layer")
    else:
        run = last
    return _head(victim, model_trace, run)


def _sees_features(run: LayerRun) -> bool:
    return run.inputs is not None and run.inputs.dim() == 2


def _head(victim: Victim, model_trace: Trace, run: LayerRun) -> TrainedHead | Reason:
    module = run.module
    assert isinstance(module, nn.Linear)
    if model_trace.first is run or (model_trace.first is not None and model_trace.first.name == run.name):
        return because("no-trunk", name=run.name)
    if not moves(module, "weight"):
        return because("no-linear-layer.still", names=repr(run.name))
    times = sum(other.name == run.name for other in model_trace.layers)
    if times > 1:
        return because("layer-shared.first", times=times)
    if before := _random_before(victim, model_trace, run):
        return because("features-behind-noise", name=run.name, before=before)
    prefix = f"{run.name}." if run.name else ""
    last = model_trace.last_linear()
    moving_bias = moves(module, "bias")
    return TrainedHead(
        name=run.name,
        module=module,
        weight=f"{prefix}weight",
        bias=f"{prefix}bias" if moving_bias else None,
        constant=None if moving_bias or module.bias is None else f"{prefix}bias",
        scores=last is not None and last.name == run.name and module.out_features == victim.inputs.classes > 1,
    )


def _random_before(victim: Victim, model_trace: Trace, run: LayerRun) -> str:
    """Name of the first layer before another that drops values or draws noise while clients train; else empty.

    A bottleneck draws behind its own encoder.
    """
    modules = dict(victim.model.named_modules())
    names = {*dropout_layers(victim.model), *(name for name, one in modules.items() if isinstance(one, RandomLayer))}
    names = {name for name in names if not run.name.startswith(f"{name}.")}
    order: list[str | None] = []
    handles = [
        modules[name].register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name in sorted(names)
    ]
    handles.append(run.module.register_forward_pre_hook(lambda *_: order.append(None)))
    try:
        with torch.no_grad(), sample_noise(generator=torch.Generator(model_trace.probe.device).manual_seed(0)):
            victim.model(model_trace.probe.clone())
    finally:
        for handle in handles:
            handle.remove()
    return next((name for name in order[: order.index(None)] if name), "")


def images_behind(head: TrainedHead, observation: Observation) -> int | Reason:
    """How many images the head's gradient sums, announced or by its rank; or why their features are not determined.

    A softmax classifier's gradient of B images has rank B, and at most one less than there are classes, because its
    rows sum to zero. Ranks that are lower hide images: those of one class that get the same scores share one.
    """
    size = observation.batch_size
    if size == 1:
        return 1
    gradient = precise(observed_gradient(observation)[head.weight])
    values = torch.linalg.svdvals(gradient)
    floor = float(values[0]) * TELLS_APART
    steps = values.clamp_min(floor)[:-1] / values.clamp_min(floor)[1:]
    if size is None:
        steep = torch.nonzero(steps >= GAP).flatten()
        if not len(steep):
            first, last = float(values[0]), float(values[-1])
            return because("rank-unclear", name=head.weight, rank=len(values), first=first, last=last)
        rank = int(steep[-1]) + 1
        if rank < min(gradient.shape) - head.scores:
            return rank
        return because("rank-unclear", name=head.weight, rank=rank, first=float(values[0]), last=float(values[-1]))
    if size >= min(head.module.out_features, head.module.in_features + 1):
        return because("too-many-images.classes", images=size, classes=head.module.out_features)
    rank = int((values > floor).sum())
    if rank < size:
        return because("features-share-rank", name=head.weight, rank=rank, size=size)
    if size < len(values) and float(steps[size - 1]) < _STEP:
        first, last = float(values[0]), float(values[size])
        return because("rank-unclear", name=head.weight, rank=size, first=first, last=last)
    return size


def why_no_softmax(victim: Victim, head: TrainedHead, observation: Observation, images: int) -> Reason | None:
    """Why the head's gradient is not that of a softmax of known size, which tells images apart, or None when it is."""
    if victim.why_no_loss is not None:
        return victim.why_no_loss
    if (other := victim.why_not_cross_entropy(f"telling the features of {images} image(s) apart")) is not None:
        return other
    if (unknown := why_scale_unknown(observation)) is not None:
        return because("scale-needed.features", why=unknown)
    together = observation.protocol.batch_size
    if why_not_one_step(observation) is not None and (together is None or together < images):
        return because("several-batches", steps=steps_behind(observation), images=images)
    return None
