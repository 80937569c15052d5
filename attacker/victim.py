"""The victim as the attacker knows it: model, loss and input domain, all public."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attacker.model_copy import check_runs_alone, own_copy
from attacker.reasons import Reason, because
from fl_precode.assumption import Assumption
from fl_precode.defences.precode import track_kl
from fl_precode.loss import Criterion, Loss, checked_loss
from fl_precode.models.input_spec import InputSpec
from fl_precode.models.outputs import class_scores, describe_output, is_plain, output_tensors
from fl_precode.randomness.random_layers import sample_noise

_DROPOUT = nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | nn.AlphaDropout | nn.FeatureAlphaDropout
_SHAPES = ("View", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Alias", "Expand", "Select")
"""Steps of autograd that change the shape of a value alone, as the names of their nodes begin."""


class NoLossError(ValueError):
    """The model returns no class scores, so that there is no loss to replay."""


@dataclass(frozen=True, kw_only=True)
class OutputForm:
    """What a model returns.

    Attributes:
        why_no_loss: Why there is no loss to replay; None where there are class scores.
        one_logit: Whether one number decides between two classes.
        is_probability: Whether that number went through a sigmoid already.
        several: What is returned, in words, where it is more than the class scores.
    """

    why_no_loss: Reason | None = None
    one_logit: bool = False
    is_probability: bool = False
    several: str | None = None


_NOT_LOOKED_AT = OutputForm()


@dataclass(frozen=True, kw_only=True)
class Victim:
    """Public knowledge about the clients' model.

    Attributes:
        model: The architecture, defence included. Its own weights are irrelevant: each observation brings the weights.
            A deep copy of the model that is given, which stays as it is; kept in evaluation mode.
        inputs: Shape, normalisation and number of classes of the images.
        name: Model spec as it stands in the tape, for records (``lenet``).
        loss: What the clients minimise, of (scores, labels), a scalar; None for cross-entropy, or the binary one of one
            logit. The penalty of bottlenecks comes on top.
        form: What the model returns, found out by two random images unless given. `dataclasses.replace` hands it on: a
            model that is adapted to an attack returns what it did before, and is not copied again.
        criterion: The loss where it is not cross-entropy, as it is replayed; found out likewise.

    Raises:
        ModelCopyError: If the model cannot be copied.
        LossError: If the loss is none that can be replayed.
    """

    model: nn.Module
    inputs: InputSpec
    name: str = "model"
    loss: Loss | None = None
    form: OutputForm = field(default=_NOT_LOOKED_AT, repr=False, compare=False)
    criterion: Criterion | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # At once: later it may be asked for inside of a transformation, or under hooks that count what runs.
        if self.form is _NOT_LOOKED_AT:
            given = self.model
            object.__setattr__(self, "model", own_copy(given).eval())
            object.__setattr__(self, "form", self._looked_at(given))
            object.__setattr__(self, "criterion", self._checked_loss())
        self.model.eval()

    def training_loss(self, inputs: Tensor, labels: Tensor, batch_size: int | None = None) -> Tensor:
        """The clients' training loss, a mean over the batch, plus the penalty of every bottleneck in the model.

        `loss`, or cross-entropy; for one logit of a binary task, binary cross-entropy of its sigmoid (which the model
        may take itself). Where class scores stand in what the model returns: `fl_precode.models.outputs.class_scores`.

        Args:
            inputs: (batch, channels, height, width), normalised.
            labels: (batch,) class indices, or numbers of sets of classes where the loss takes these (`Criterion.rows`);
                under cross-entropy also (batch, classes) probabilities.
            batch_size: Images of one batch where several stand one behind the other; the mean of their losses is given.

        Returns:
            Scalar, in nats.

        Raises:
            NoLossError: If the model returns no class scores.
        """
        with track_kl() as kl:
            output = self.model(inputs)
        scores = class_scores(output, self.inputs.classes)
        if scores is None:
            raise NoLossError(_no_scores(output, self.inputs))
        if self.criterion is not None:
            return self.criterion.of_batches(scores, labels, batch_size) + kl.penalty(scores)
        return self._cross_entropy(scores, labels) + kl.penalty(scores)

    def _cross_entropy(self, scores: Tensor, labels: Tensor) -> Tensor:
        if scores.shape[1] == self.inputs.classes:
            return F.cross_entropy(scores, labels)
        target = (labels if labels.dim() == 1 else labels[:, 1]).to(scores.dtype)
        binary = F.binary_cross_entropy if self.form.is_probability else F.binary_cross_entropy_with_logits
        return binary(scores[:, 0], target)

    def _checked_loss(self) -> Criterion | None:
        """The loss as it is replayed; None where it is cross-entropy, by whatever name."""
        if self.loss is None or self.form.why_no_loss is not None:
            return None
        columns = 1 if self.form.one_logit else self.inputs.classes
        return checked_loss(self.loss, self._cross_entropy, columns=columns, probabilities=self.form.is_probability)

    def why_not_cross_entropy(self, what: str) -> Reason | None:
        """Reason why a property of cross-entropy does not hold here, or None where it does.

        Args:
            what: What needs it, as a sentence begins: ``label recovery``.
        """
        if self.criterion is None:
            return None
        return because("needs-cross-entropy", what=what, loss=self.criterion.name)

    @property
    def minimises_cross_entropy(self) -> bool:
        """Whether what holds under cross-entropy holds here."""
        return self.why_no_loss is None and self.criterion is None

    @property
    def label_numbers(self) -> int:
        """Number of labels, counted from 0: as many as classes, more where an image may have several."""
        classes = self.inputs.classes
        several = self.criterion is not None and self.criterion.rows and self.criterion.columns > 1
        return classes + 2**classes if several else classes

    def outcome(self, inputs: Tensor) -> Tensor:
        """A scalar that depends on everything that the model returns, for questions in which the loss is of no matter.

        Args:
            inputs: (batch, channels, height, width), normalised.
        """
        total = torch.zeros((), dtype=inputs.dtype, device=inputs.device)
        for place, output in enumerate(output_tensors(self.model(inputs))):
            if output.is_floating_point():
                flat = output.flatten()
                # Weights without a pattern, so that nothing cancels: a sum of softmax values would be constant.
                weights = torch.sin(torch.arange(1, len(flat) + 1, device=flat.device) * (1.0 + place)).to(flat.dtype)
                total = total + (flat * weights).sum()
        return total

    @property
    def why_no_loss(self) -> Reason | None:
        """Reason why the clients' loss cannot be replayed, as attacks that search must, or None when it can."""
        return self.form.why_no_loss

    def _looked_at(self, given: nn.Module) -> OutputForm:
        """What the copy of a model returns for two random images; as if it were class scores where it cannot be run."""
        like = next(
            (parameter for parameter in self.model.parameters() if parameter.is_floating_point()), torch.zeros(())
        )
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn((2, *self.inputs.shape), generator=generator).to(like)
        noise = torch.Generator(like.device).manual_seed(0)
        try:
            with torch.random.fork_rng(devices=[]), torch.enable_grad(), sample_noise(generator=noise):
                output: object = self.model(probe)
        except Exception:  # a foreign model may raise anything; whoever runs it says what
            return OutputForm()
        check_runs_alone(self.model, given, output_tensors(output))
        scores = class_scores(output, self.inputs.classes)
        if scores is None:
            return OutputForm(why_no_loss=_no_scores(output, self.inputs))
        one_logit = scores.shape[1] == 1
        several = None if is_plain(output) else describe_output(output)
        return OutputForm(
            one_logit=one_logit, is_probability=one_logit and _went_through_sigmoid(scores), several=several
        )

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """Assumptions about the clients' training that the model's form suggests."""
        return assumptions_of(self)


def assumptions_of(victim: Victim) -> tuple[Assumption, ...]:
    """Assumptions about the clients' training that the model's form suggests.

    Args:
        victim: Its model is run once, on random images.
    """
    return tuple(_assumed(victim))


def _assumed(victim: Victim) -> Iterator[Assumption]:
    form = victim.form
    if victim.loss is not None:
        pass  # it was said
    elif form.one_logit:
        end = "a probability (its sigmoid is in the model)" if form.is_probability else "one logit"
        yield Assumption(
            code="loss-assumed-bce",
            sentence=f"The clients' loss is binary cross-entropy, because the model returns {end} for each image.",
            doubt="Clients that minimise another loss, such as a squared error, give gradients that no image matches.",
        )
    elif form.several is not None:
        yield Assumption(
            code="loss-on-logits-alone",
            sentence=f"The clients' loss is cross-entropy of the class scores alone in {form.several}.",
            doubt="A loss that looks at the other values as well gives gradients that no image matches.",
        )
    dropping = dropout_in(victim.model)
    if dropping:
        yield Assumption(
            code="dropout-active",
            sentence=f"Dropout was active while clients trained ({', '.join(dropping[:3])}), as model.train() has it; "
            "dropout-inversion searches the masks, the other attacks replay without them.",
            doubt="Clients that train in evaluation mode drop nothing: then the other attacks match better.",
        )


def dropout_in(model: nn.Module) -> list[str]:
    """Names of the layers that drop a part of their input while clients train, but not all of it."""
    return [
        name or "the model"
        for name, module in model.named_modules()
        if isinstance(module, _DROPOUT) and 0 < module.p < 1
    ]


def _went_through_sigmoid(scores: Tensor) -> bool:
    node: Any = scores.grad_fn
    while node is not None and node.name().startswith(_SHAPES):
        node = node.next_functions[0][0] if node.next_functions else None
    return node is not None and node.name().startswith("SigmoidBackward")


def _no_scores(output: object, inputs: InputSpec) -> Reason:
    """Why there is no loss, in one sentence."""
    first = next(output_tensors(output), None)
    shape = None if first is None else tuple(first.shape[1:])
    pixels = inputs.channels * inputs.height * inputs.width
    what = describe_output(output)
    if first is not None and (shape == inputs.shape or (first.dim() > 1 and first[0].numel() == pixels)):
        what = "images"
    return because("no-class-scores", what=what)
