"""What an attacker who knows more than audits grant gets from an update: the judge of "held", apart from the attacks.

None of this is the project's own attack code. Formulas: the first trained Linear layer's gradient is the sum of outer
products, so that its input is a quotient whatever is done behind it; what pruning left is enough. The search is cosine
matching with the true labels, without frozen parameters, at several weights of the smoothness prior, of which the best
counts: an attacker could not choose so well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import avg_pool2d, cross_entropy

from attacker.audit.record.counting import needed
from benchmarks.simulated_tapes import Seen, Simulated
from fl_precode.metrics import ssim
from fl_precode.models.input_spec import InputSpec

THRESHOLD = 0.6
WEIGHTS = (1e-4, 1e-2, 1e-1)
"""Of total variation, each a candidate of its own."""

SAME = 1e-3
"""Largest difference of a pixel, on the [0, 1] scale, up to which two images are the same: half of an 8-bit step."""

SEARCHED = 4
"""Updates that the search is tried on at most."""


def best_guesses(images: Tensor, known: Tensor, labels: Tensor) -> list[float]:
    """SSIM of the best guess that needs no update: means, constants, and any other training image.

    Args:
        images: (n, channels, height, width) in [0, 1], the truth.
        known: (m, channels, height, width), the training images.
        labels: (m,) their classes.
    """
    means = [known.mean(dim=0), *(known[labels == one].mean(dim=0) for one in labels.unique())]
    found = []
    for image in images:
        levels = [image.mean(dim=(1, 2), keepdim=True).expand_as(image)]
        levels += [torch.full_like(image, level / 10) for level in range(11)]
        others = [one for one in known if float((one - image).abs().max()) > SAME]
        guesses = torch.stack([*means, *levels, *others])
        found.append(float(ssim(guesses, image.expand_as(guesses)).max()))
    return found


def recovered(simulated: Simulated, chosen: Sequence[Seen], *, search: bool) -> float | None:
    """Share of single images that are reconstructed by a formula or, where ``search`` says so, by the search.

    None where no oracle fits: the update is of several images, or of a random model without a Linear layer first.
    """
    if not chosen or any(len(one.labels) != 1 for one in chosen):
        return None
    inputs, model = simulated.federation.data.inputs, simulated.federation.model()
    images = torch.cat([one.images for one in chosen])
    candidates: list[Tensor] = []
    if (layers := _leading(model)) is not None:
        candidates += _by_formula(layers, chosen, inputs)
    elif search:
        chosen, images = chosen[:SEARCHED], images[:SEARCHED]
        candidates += _by_search(model, chosen, inputs)
    if not candidates:
        return None
    best = torch.stack([ssim(inputs.denormalise(one).clamp(0, 1), images) for one in candidates]).amax(dim=0)
    worth = [number for number, value in enumerate(best.tolist()) if value >= THRESHOLD]
    train = simulated.federation.data.train
    guesses = best_guesses(images[worth], train.images.float() / 255, train.labels) if worth else []
    count = sum(
        float(best[number]) >= needed(guess, THRESHOLD) and float(best[number]) > guess
        for number, guess in zip(worth, guesses, strict=True)
    )
    return count / len(images)


def _leading(model: nn.Module) -> list[tuple[str, nn.Linear]] | None:
    """Linear layers with ReLU between from the image on, up to the first that trains; None where there is none."""
    found: list[tuple[str, nn.Linear]] = []
    for name, layer in model.named_modules():
        if list(layer.children()) or isinstance(layer, nn.Flatten | nn.ReLU):
            continue
        if not isinstance(layer, nn.Linear):
            return None
        found.append((name, layer))
        if layer.weight.requires_grad:
            return found
    return None


def _by_formula(layers: list[tuple[str, nn.Linear]], chosen: Sequence[Seen], inputs: InputSpec) -> list[Tensor]:
    """The input of the first Linear layer that trains, carried back to the image; as it is and smoothed."""
    name = layers[-1][0]
    found = torch.stack([_quotient(one.update[f"{name}.weight"], one.update[f"{name}.bias"]) for one in chosen])
    for _, layer in reversed(layers[:-1]):
        found = torch.stack([_before_relu(layer, one) for one in found])
    images = found.reshape(len(chosen), *inputs.shape)
    return [images, avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)]


def _quotient(weight: Tensor, bias: Tensor) -> Tensor:
    """Least squares of ``weight = bias x``, by those entries that are not zero."""
    left = (weight != 0).to(weight.dtype)
    above = (weight * bias[:, None] * left).sum(dim=0)
    return above / (bias[:, None].square() * left).sum(dim=0).clamp_min(1e-30)


def _before_relu(layer: nn.Linear, after: Tensor) -> Tensor:
    """What went into a Linear layer whose ReLU's output is known: the rows that are positive are equations."""
    on = after > 1e-4 * after.abs().max()
    left = layer.weight.detach()[on].double()
    right = (after - layer.bias.detach())[on].double()
    return torch.linalg.lstsq(left, right[:, None], driver="gelsd").solution[:, 0].to(after.dtype)


def _by_search(model: nn.Module, chosen: Sequence[Seen], inputs: InputSpec, iterations: int = 300) -> list[Tensor]:
    """Cosine matching with true labels by signed Adam; one candidate for each weight of the prior."""
    model.eval()
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    names = [name for name in chosen[0].update if name in trained and bool(chosen[0].update[name].any())]
    if not names:
        return []
    sent = {name: torch.stack([one.update[name] for one in chosen for _ in WEIGHTS]) for name in names}
    norm = sum(value.flatten(1).square().sum(dim=1) for value in sent.values()).sqrt()
    labels = torch.cat([one.labels for one in chosen]).repeat_interleave(len(WEIGHTS))
    weights = torch.tensor(WEIGHTS).repeat(len(chosen))
    parameters = {name: chosen[0].parameters[name] for name in trained}
    fixed = {name: value for name, value in chosen[0].parameters.items() if name not in trained}

    def loss(own: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, {**fixed, **own}, (image[None],)), label[None])

    gradient = vmap(grad(loss), in_dims=(None, 0, 0))
    images = torch.randn(len(labels), *inputs.shape, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    low, high = (inputs.normalise(torch.full((1, *inputs.shape), level)) for level in (0.0, 1.0))
    steps = torch.optim.Adam([images], lr=0.1)
    for iteration in range(iterations):
        if iteration in (iterations * 3 // 8, iterations * 5 // 8, iterations * 7 // 8):
            steps.param_groups[0]["lr"] *= 0.3
        made = gradient(parameters, images, labels)
        product = sum((made[name] * sent[name]).flatten(1).sum(dim=1) for name in names)
        own = sum(made[name].flatten(1).square().sum(dim=1) for name in names).sqrt()
        variation = (images.diff(dim=2).abs().mean(dim=(1, 2, 3)) + images.diff(dim=3).abs().mean(dim=(1, 2, 3))) / 2
        total = (1 - product / (own * norm + 1e-12) + weights * variation).sum()
        (slope,) = torch.autograd.grad(total, images)
        images.grad = slope.sign()
        steps.step()
        with torch.no_grad():
            images.copy_(torch.maximum(torch.minimum(images, high), low))
    kept = images.detach().reshape(len(chosen), len(WEIGHTS), *inputs.shape)
    return [kept[:, place] for place in range(len(WEIGHTS))]
