"""Loss of the clients: mean cross-entropy, or any loss of class scores and labels that can be imported by name.

A loss is called with the scores of a batch, (batch, classes), or (batch, 1) where one logit decides, and with its
labels, and gives a scalar. It stands as ``package.module:function`` beside a tape, or as a class with its settings,
``torch.nn:CrossEntropyLoss(label_smoothing=0.1)``, so that whoever replays the clients' work can import it.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fl_precode.import_path import is_import_path, load, split_path
from fl_precode.observation import CROSS_ENTROPY

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of (scores, labels), a scalar; `Criterion` says which labels."""

_MOST_PROBES = 512


class LossError(ValueError):
    """A loss that cannot be imported, or that cannot be replayed: what was wrong, and what was expected."""


@dataclass(frozen=True)
class NamedLoss:
    """A loss that was imported, with the name by which others import it.

    Attributes:
        spec: ``package.module:function``, or a class with settings.
        call: The loss.
    """

    spec: str
    call: Loss = field(repr=False)

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.call(scores, labels)


def load_loss(spec: str) -> NamedLoss | None:
    """The loss that a spec names; None for ``cross-entropy``, which everything takes where no loss is named.

    Args:
        spec: ``cross-entropy``; ``package.module:name`` of a function or of an object that can be called; or a class,
            which is built, with settings in parentheses if it has any. Settings of a function are handed on to it.

    Raises:
        LossError: If it cannot be imported, or is nothing that can be called.
    """
    if spec == CROSS_ENTROPY:
        return None
    if not is_import_path(spec):
        raise LossError(
            f"loss {spec!r}: expected {CROSS_ENTROPY!r} or package.module:function, a function of (scores, labels) "
            "that gives a scalar, such as my_app.task:loss"
        )
    try:
        _, _, settings = split_path(spec, "loss")
        found = load(spec, "loss")
    except ValueError as error:
        raise LossError(str(error)) from error
    if isinstance(found, type):
        found = _built(spec, found, settings)
    elif settings:
        found = partial(found, **settings)
    if not callable(found):
        raise LossError(
            f"loss {spec!r}: expected a function of (scores, labels), a class or an object that can be called, got "
            f"{type(found).__name__}"
        )
    return NamedLoss(spec, found)


def importable_name(loss: Loss | str) -> str:
    """The name under which another process imports a loss.

    Args:
        loss: A function or a class at the top of a module, what `load_loss` gave, or the name itself, which is only
            read: the server need not have the clients' code.

    Raises:
        LossError: If there is no such name: of lambdas, functions within functions, objects, and what stands in the
            program that was started.

    >>> importable_name(nn.functional.cross_entropy)
    'torch.nn.functional:cross_entropy'
    """
    if isinstance(loss, str):
        if loss != CROSS_ENTROPY and not is_import_path(loss):
            raise LossError(f"loss {loss!r}: expected {CROSS_ENTROPY!r} or package.module:function")
        return loss
    if isinstance(loss, NamedLoss):
        return loss.spec
    name = described(loss)
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if module == "__main__" or found is not loss:
        raise LossError(
            f"loss {name!r} cannot be imported by this name: expected a function or a class at the top of a module "
            "that is installed or on PYTHONPATH, as an audit runs in other processes. Name an object by where it "
            'stands, loss="my_app.task:criterion"'
        )
    return name


def described(loss: Loss) -> str:
    """What a loss is called, for messages; not always a name that can be imported."""
    if isinstance(loss, NamedLoss):
        return loss.spec
    inner = loss.func if isinstance(loss, partial) else loss
    of = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{of.__module__}:{of.__qualname__}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Criterion:
    """A loss other than cross-entropy that was seen to be one that can be replayed.

    Attributes:
        given: The loss as it was given.
        columns: Columns of the scores.
        rows: Whether it takes labels as rows of zeros and ones, (batch, columns), as ``BCEWithLogitsLoss`` does, so
            that an image may have several classes or none; else it takes class indices, (batch,).
        of_images: Whether it is a mean over images. With class weights it is not: their sum in the batch divides it.
        double: Whether it takes scores in float64; others are given them in float32.
    """

    given: Loss = field(repr=False)
    columns: int
    rows: bool = False
    of_images: bool = True
    double: bool = True
    _copies: dict[tuple[torch.dtype, torch.device], nn.Module] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """What it is called."""
        return described(self.given)

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Loss of one batch, a scalar.

        Args:
            scores: (batch, columns).
            labels: (batch,) whole numbers: class indices, or where the loss takes `rows` sets of classes, as
                `set_numbers` counts them.
        """
        taken = scores if self.double or scores.dtype != torch.float64 else scores.float()
        wanted = label_rows(labels, self.columns).to(taken.dtype) if self.rows else labels
        return self._at(taken)(taken, wanted).to(scores.dtype)

    def of_batches(self, scores: Tensor, labels: Tensor, batch_size: int | None) -> Tensor:
        """Mean loss of batches that stand one behind the other, of ``batch_size`` images each; None for one batch."""
        if batch_size is None or self.of_images or len(scores) == batch_size:
            return self(scores, labels)
        parts = zip(torch.split(scores, batch_size), torch.split(labels, batch_size), strict=True)
        return torch.stack([self(*part) for part in parts]).mean()

    def _at(self, scores: Tensor) -> Loss:
        """The loss; of one that holds tensors, such as class weights, a copy in the type and place of the scores."""
        inner = self.given.call if isinstance(self.given, NamedLoss) else self.given
        if not isinstance(inner, nn.Module):
            return self.given
        key = scores.dtype, scores.device
        if key not in self._copies:
            self._copies[key] = copy.deepcopy(inner).to(dtype=scores.dtype, device=scores.device)
        return self._copies[key]


def checked_loss(loss: Loss, default: Loss, *, columns: int, probabilities: bool = False) -> Criterion | None:
    """A loss as it can be replayed, or None where it is what is replayed without one.

    Args:
        loss: As it was given.
        default: What is replayed without one, for class indices.
        columns: Columns of the scores: as many as classes, or 1.
        probabilities: Whether the model's scores went through a sigmoid.

    Raises:
        LossError: If it cannot be called with scores and labels, gives no scalar, draws at random, or is not twice
            differentiable, as searches need.
    """
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        scores, labels = _probes(columns, probabilities)
        found = _callable_one(loss, scores, labels)
        scores = scores if found.double else scores.float()
        _check_twice_differentiable(found, scores, labels)
        if (columns == 1 or not found.rows) and _same(found, default, scores, labels):
            return None
        singles = torch.stack([found(scores[i : i + 1], labels[i : i + 1]) for i in range(len(labels))])
        whole = found(scores, labels)
        means = bool((singles.mean() - whole).abs() <= 1e-5 * whole.abs().clamp_min(1e-12))
    return Criterion(given=loss, columns=columns, rows=found.rows, of_images=means, double=found.double)


def criterion(spec: str, classes: int) -> Criterion | None:
    """What clients of a model with one score for each class minimise; None for cross-entropy.

    Raises:
        LossError: As `load_loss` and `checked_loss`.
    """
    found = load_loss(spec)
    return None if found is None else checked_loss(found, nn.functional.cross_entropy, columns=classes)


def label_rows(labels: Tensor, columns: int) -> Tensor:
    """Rows of zeros and ones of labels, the inverse of `set_numbers`; of one column the labels themselves.

    Args:
        labels: (...,) whole numbers.
        columns: Classes, or 1.

    >>> label_rows(torch.tensor([2, 3 + 0b101]), 3).tolist()
    [[0, 0, 1], [1, 0, 1]]
    """
    if columns == 1:
        return labels.unsqueeze(-1)
    bits = torch.where(labels < columns, torch.ones_like(labels) << labels.clamp(max=62), labels - columns)
    return (bits.unsqueeze(-1) >> torch.arange(columns, device=labels.device)) & 1


def set_numbers(rows: Tensor) -> Tensor:
    """The number of each set of classes: of a single class its index, of others the classes as bits behind all indices.

    So that a label is one whole number whatever the loss, and the label of an image with one class is that class.

    Args:
        rows: (batch, classes) of zeros and ones, 1 to 62 classes.

    Raises:
        ValueError: If there are other values, or more classes.

    >>> set_numbers(torch.tensor([[0, 0, 1], [1, 0, 1], [0, 0, 0]])).tolist()
    [2, 8, 3]
    """
    classes = rows.shape[1]
    if not 1 <= classes <= 62:
        raise ValueError(f"expected labels of 1 to 62 classes where an image may have several, got {classes}")
    if not bool(((rows == 0) | (rows == 1)).all()):
        raise ValueError("expected rows of zeros and ones, one column for each class; soft labels are not replayed")
    whole = rows.long()
    bits = (whole << torch.arange(classes, device=rows.device)).sum(dim=1)
    return torch.where(whole.sum(dim=1) == 1, whole.argmax(dim=1), bits + classes)


def _built(spec: str, kind: type, settings: dict[str, object]) -> Any:
    try:
        return kind(**settings)
    except Exception as error:
        raise LossError(f"loss {spec!r}: building it failed: {type(error).__name__}: {error}") from error


def _probes(columns: int, probabilities: bool) -> tuple[Tensor, Tensor]:
    """Scores, of another number of images than there are classes, so that nothing fits by broadcasting; and labels."""
    classes = max(columns, 2)
    count = min(classes, _MOST_PROBES) + 1
    count += count == columns
    scores = torch.randn((count, columns), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return scores.sigmoid() if probabilities else scores, torch.arange(count) % classes


def _callable_one(loss: Loss, scores: Tensor, labels: Tensor) -> Criterion:
    """The way in which it can be called: with class indices or rows, in float64 or float32."""
    failures: dict[bool, str] = {}
    for rows in (False, True):
        for double in (True, False):
            one = Criterion(given=loss, columns=scores.shape[1], rows=rows, double=double)
            try:
                value: object = one._at(scores if double else scores.float())(
                    scores if double else scores.float(),
                    label_rows(labels, scores.shape[1]).to(scores if double else torch.float32) if rows else labels,
                )
            except Exception as error:  # noqa: BLE001 - a loss is foreign code
                failures[rows] = f"{type(error).__name__}: {error}"
                continue
            _check_scalar(loss, value, scores)
            return one
    raise LossError(
        f"loss {described(loss)!r}: it fails for scores of shape {tuple(scores.shape)} with class indices "
        f"({failures[False]}), and with rows of zeros and ones ({failures[True]}). Expected a function of "
        "(scores, labels), as the clients call it"
    )


def _check_scalar(loss: Loss, value: object, scores: Tensor) -> None:
    name = described(loss)
    if not isinstance(value, Tensor):
        raise LossError(f"loss {name!r}: expected a scalar tensor, got {type(value).__name__}")
    if value.dim() != 0:
        raise LossError(
            f"loss {name!r}: expected a scalar, the loss of the whole batch, got a tensor of shape "
            f"{tuple(value.shape)} for {len(scores)} images; take its mean, as reduction='mean' does"
        )
    if not bool(value.isfinite()):
        raise LossError(f"loss {name!r}: expected a finite number for random scores, got {float(value)}")


def _check_twice_differentiable(loss: Criterion, scores: Tensor, labels: Tensor) -> None:
    name = loss.name
    if not torch.equal(loss(scores, labels), loss(scores, labels)):
        raise LossError(f"loss {name!r}: expected the same value for the same scores; it draws at random")
    try:
        gradient, at = _gradient(loss, scores, labels)
        if gradient.requires_grad:
            torch.autograd.grad(gradient.sum(), at, allow_unused=True)
            return
    except RuntimeError as error:
        raise LossError(f"{_expected(name)}: {error}") from error
    if not bool(gradient.any()):
        raise LossError(f"loss {name!r}: its gradient is zero for random scores, so that no update tells anything")
    # Without a graph of its own the gradient is constant, as that of a sum of scores, or its backward pass hides it.
    further, _ = _gradient(loss, scores + 0.1 * scores.roll(1, 0), labels)
    if not torch.allclose(further, gradient, rtol=1e-6):
        raise LossError(f"{_expected(name)}: its backward pass is not one that torch can differentiate")


def _expected(name: str) -> str:
    return (
        f"loss {name!r}: expected a loss that is twice differentiable in the scores, as the gradients of candidates "
        "are differentiated again"
    )


def _gradient(loss: Criterion, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient, with its own graph, and the scores that it is of."""
    at = scores.detach().requires_grad_(True)
    value = loss(at, labels)
    if not value.requires_grad:
        raise RuntimeError("it does not depend on the scores in a way that torch can follow")
    (gradient,) = torch.autograd.grad(value, at, create_graph=True)
    return gradient, at


def _same(loss: Criterion, default: Loss, scores: Tensor, labels: Tensor) -> bool:
    """Whether it gives the default's value and gradient."""
    at = scores.detach().requires_grad_(True)
    values = loss(at, labels), default(at, labels)
    own, other = (torch.autograd.grad(value, at)[0] for value in values)
    values = values[0].detach(), values[1].detach()
    tolerance = 1e-9 if loss.double else 1e-5
    return all(float((one - two).norm()) <= tolerance * float(two.norm()) for one, two in (values, (own, other)))
