"""Which label belongs to which image, when both the images and their gradients in a layer are known."""

from __future__ import annotations

from dataclasses import replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from attacker.analytic.first_linear import FirstLinear, gradient_at
from attacker.attacks.known_labels import check_labels
from attacker.gradients.trace import Trace
from attacker.labels import best_labels
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
