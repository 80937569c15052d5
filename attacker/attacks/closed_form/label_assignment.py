"""Assignment of labels to images, when both the images and their gradients in a layer are known."""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from attacker.analytic.first_linear import FirstLinear, gradient_at
from attacker.attacks.known_labels import check_labels
from attacker.gradients.observed import observed_gradient
from attacker.gradients.replay import Replay
from attacker.gradients.trace import Trace
from attacker.labels import best_labels
from attacker.optim.least_squares import least_squares
from attacker.victim import Victim
from fl_precode.observation import Observation


def labels_of_images(
    victim: Victim,
    model_trace: Trace,
    layer: FirstLinear,
    observation: Observation,
    inputs: Tensor,
    deltas: Tensor,
    granted: Tensor | None,
    generator: Generator,
) -> Tensor:
    """A label for each image: the class whose gradient at the layer's output points where the observed one does.

    Exact without a bottleneck. Behind one the client's noise blurs the directions, and the labels of the batch are
    recovered first and then distributed; so are granted ones, whose order is not that of the images found.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
        layer: Where gradients are compared.
        observation: The update.
        inputs: (images, channels, height, width), normalised.
        deltas: (images, units), the gradient of each image at the layer's output.
        granted: (batch,) labels, or None.
        generator: For label recovery.

    Returns:
        (images,) int64.

    Raises:
        ValueError: If granted labels do not fit the batch.
    """
    count, known = len(inputs), None
    if granted is not None:
        known = check_labels(granted, batch_size=observation.batch_size or count, classes=victim.label_numbers)
    elif model_trace.bottlenecks:
        sized = replace(observation, batch_size=observation.batch_size or count)
        known, _ = best_labels(victim, sized, generator=generator)
    if known is None:
        every = torch.arange(victim.inputs.classes, device=inputs.device)
        return _likeness(victim, layer, observation, inputs, deltas, every).argmax(dim=1)
    tried, places = torch.unique(known, return_inverse=True)
    likeness = _likeness(victim, layer, observation, inputs, deltas, tried)
    rows, columns = linear_sum_assignment(-likeness[:, places].cpu().numpy())
    assert list(rows) == list(range(count))
    return known[torch.as_tensor(columns).to(known.device)]


def labels_by_head(
    victim: Victim, model_trace: Trace, observation: Observation, inputs: Tensor, granted: Tensor | None
) -> Tensor | None:
    """A label for each image from the classifier's gradient: ``dL/dW = sum (p - y) f'`` is solved for ``p - y``.

    Args:
        victim: Public knowledge about the model.
        model_trace: A trace of the model.
        observation: The update.
        inputs: (images, channels, height, width), normalised.
        granted: (batch,) labels in any order, or None.

    Returns:
        (images,) int64, or None where a bottleneck stands before the classifier, or nothing that classifies is known.

    Raises:
        ValueError: If granted labels do not fit the batch.
    """
    head = model_trace.last_linear()
    if head is None or model_trace.bottlenecks or victim.why_no_loss is not None:
        return None
    weight = f"{head.name}.weight" if head.name else "weight"
    seen: list[Tensor] = []
    handle = head.module.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].detach()))
    replay = Replay(victim, observation.parameters, observation.buffers)
    try:
        with torch.no_grad():
            replay.loss(
                observation.parameters, inputs, torch.zeros(len(inputs), dtype=torch.int64).to(inputs.device), ()
            )
    finally:
        handle.remove()
    if weight not in observation.update or not seen or seen[-1].shape[:-1] != (len(inputs),):
        return None
    gradient = observed_gradient(observation)[weight].double()
    if len(gradient) != victim.inputs.classes:
        return None
    deltas: Tensor = least_squares(seen[-1].double().T, gradient.T)
    if granted is None:
        return deltas.argmin(dim=1)
    known = check_labels(granted, batch_size=observation.batch_size or len(inputs), classes=victim.label_numbers)
    if len(known) != len(inputs):
        return None
    _, columns = linear_sum_assignment(deltas[:, known].cpu().numpy())
    return known[torch.as_tensor(columns).to(known.device)]


def _likeness(
    victim: Victim, layer: FirstLinear, observation: Observation, inputs: Tensor, deltas: Tensor, tried: Tensor
) -> Tensor:
    """(images, labels): cosine of the observed gradient with that of each label that is tried."""
    cosines = []
    for label in tried.tolist():
        labels = torch.full((len(inputs),), label, device=inputs.device)
        _, gradient = gradient_at(victim, layer.module, observation, inputs, labels)
        cosines.append(torch.cosine_similarity(gradient.double().flatten(1), deltas, dim=1))
    return torch.stack(cosines, dim=1)
