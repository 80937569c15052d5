"""Contents of replies in clear beside the update, and what they disclose, measured with the truth. Evaluation only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from attacker.audit.federations.federation import AuditedFederation
from attacker.audit.record.channels import ReplyChannel
from attacker.gradients.batch_norm import batch_norms
from attacker.gradients.observed import steps_behind
from attacker.gradients.replay import Replay
from attacker.gradients.returned_statistics import LayerStatistics, returned_statistics
from attacker.objectives.feature_prior import received_by
from attacker.optim.deadline import time_is_up
from attacker.reasons import Reason
from attacker.wording import count, counted, joined
from fl_precode.observation import Observation
from fl_precode.tape import TapeEntry
from fl_precode.tape.announced_settings import examples_of, is_examples

MOST_UPDATES: Final = 16
"""Updates that are loaded for it; what stands in a tape's manifest is looked at for all that are attacked."""

_CLOSE: Final = 1e-3
"""Relative difference up to which a figure is that of the client's images, beside the rounding of float32."""

_SECURE: Final = "secure aggregation, which shows the server a sum only"


@dataclass(frozen=True, kw_only=True)
class _Reply:
    """One reply with its truth.

    Attributes:
        entry: Entry of the tape.
        observation: As the tape has it; None where it was not loaded.
        labels: (images,) true classes; None where they are not known.
    """

    entry: TapeEntry
    observation: Observation | None
    labels: Tensor | None


def reply_channels(federation: AuditedFederation) -> list[ReplyChannel]:
    """What the replies of the attacked updates hold, the update itself first; fewer measured where a deadline comes.

    Args:
        federation: The federation, no control.
    """
    replies: list[_Reply] = []
    for number, entry in enumerate(federation.entries):
        load = number < MOST_UPDATES and (number == 0 or not time_is_up())
        observation = federation.subject.tape.load(entry) if load else None
        replies.append(_Reply(entry=entry, observation=observation, labels=federation.true_labels(entry)))
    return [
        _update(federation, replies),
        *_examples(federation, replies),
        *_values(federation, replies),
        *_label_counts(federation, replies),
        *_statistics(federation, replies),
        *_counters(federation, replies),
        *_records(federation, replies),
    ]


def _update(federation: AuditedFederation, replies: Sequence[_Reply]) -> ReplyChannel:
    seen = next(reply.observation for reply in replies if reply.observation is not None)
    numbers = sum(value.numel() for value in seen.update.values())
    what = "the gradient" if seen.kind == "gradient" else "weights after local training"
    return _channel(
        federation,
        replies,
        replies,
        "update",
        what,
        held=f"{count(numbers)} numbers in {counted(len(seen.update), 'array')}",
        needed_by="the server's aggregation",
        gave_away="what the lines on images and labels say",
        drop=f"{_SECURE}; differential privacy blurs what is left",
    )


def _examples(federation: AuditedFederation, replies: Sequence[_Reply]) -> list[ReplyChannel]:
    named = [(reply, _examples_named(reply)) for reply in replies]
    holding = [(reply, value) for reply, value in named if value is not None]
    if not holding:
        return []
    compared = [(value, len(reply.labels)) for reply, value in holding if reply.labels is not None]
    exact = sum(value == images for value, images in compared)
    told = "how much data the client has, or how often it used it"
    if exact:
        of = counted(len(compared), "reply", "replies")
        told = f"exactly how many images the client has behind the update, in {exact} of {of}"
    channel = _channel(
        federation,
        replies,
        [reply for reply, _ in holding],
        "examples",
        holding[0][0].entry.weighted_by,
        held=_range([float(value) for _, value in holding]),
        needed_by="a strategy that weights replies by it, as FedAvg does",
        gave_away=f"{told}; label recovery and several attacks need the number",
        exact=exact if compared else None,
        compared=len(compared) or None,
        drop=f"the same number of every client, so that all weigh alike; or {_SECURE}",
    )
    return [channel]


def _examples_named(reply: _Reply) -> int | None:
    return examples_of({**reply.entry.metrics, **reply.entry.configs}, reply.entry.weighted_by)


def _values(federation: AuditedFederation, replies: Sequence[_Reply]) -> list[ReplyChannel]:
    """Single values of metrics and settings, each by its name."""
    by_name: dict[tuple[str, bool], list[tuple[_Reply, float | str]]] = {}
    for reply in replies:
        for metric, records in ((True, reply.entry.metrics), (False, reply.entry.configs)):
            for record in records.values():
                for key, value in record.items():
                    if not is_examples(key, reply.entry.weighted_by):
                        by_name.setdefault((key, metric), []).append((reply, value))
    return [_value(federation, replies, name, metric, found) for (name, metric), found in sorted(by_name.items())]


def _value(
    federation: AuditedFederation,
    replies: Sequence[_Reply],
    name: str,
    metric: bool,
    found: Sequence[tuple[_Reply, float | str]],
) -> ReplyChannel:
    numbers = [(reply, float(value)) for reply, value in found if not isinstance(value, str)]
    words = set(re.split(r"[^a-z]+", name.lower()))
    held = _range([value for _, value in numbers]) if numbers else counted(len({said for _, said in found}), "text")
    holding = [reply for reply, _ in found]
    if metric and numbers and words & {"loss", "nll", "entropy"}:
        exact, compared = _agreeing(numbers, lambda reply, value: _is_its_loss(federation, reply, value))
        about = _about_loss(exact, compared)
    elif metric and numbers and any(word.startswith("acc") for word in words):
        exact, compared = _agreeing(numbers, _is_a_count)
        about = _about_accuracy(exact, compared)
    else:
        exact, compared, about = 0, 0, _ABOUT_OTHERS
    channel, needed_by, gave_away, drop = about
    return _channel(
        federation,
        replies,
        holding,
        channel or ("metric" if metric else "setting"),
        name,
        held=held,
        needed_by=needed_by,
        gave_away=gave_away,
        exact=exact if compared else None,
        compared=compared or None,
        drop=drop,
    )


_ABOUT_OTHERS: Final = (
    "",
    "whoever wrote the app knows",
    "what it says, of each client by itself",
    "leave it out where nothing goes by it",
)
"""Channel, who needs it, what it gives away, how to drop it; and so below."""


def _about_loss(exact: int, compared: int) -> tuple[str, str, str, str]:
    checked = f"; it is that of exactly these images in {exact} of {compared}" if exact else ""
    return (
        "loss",
        "nobody who trains: it is for charts",
        "how well the model knows the client's images, which membership inference goes by; of one image the "
        f"probability of its class{checked}",
        "leave it out, or add noise to it; DP-SGD does not cover it",
    )


def _about_accuracy(exact: int, compared: int) -> tuple[str, str, str, str]:
    whole = f"; times the number of examples it is a whole number in {exact} of {compared}" if exact else ""
    return (
        "accuracy",
        "nobody who trains: it is for charts",
        f"how many of the client's images the model has right{whole}",
        "leave it out, or evaluate at the server on public images",
    )


def _agreeing(numbers: Iterable[tuple[_Reply, float]], test: Callable[[_Reply, float], bool | None]) -> tuple[int, int]:
    """Number of values that a test holds for, and number of those that it could be made for."""
    answers = [answer for reply, value in numbers if (answer := test(reply, value)) is not None]
    return sum(answers), len(answers)


def _is_a_count(reply: _Reply, value: float) -> bool | None:
    """Whether an accuracy is that of a whole number of the named examples; None where it need not say so."""
    examples = _examples_named(reply)
    if examples is None or not 0 <= value <= 1 or value in (0.0, 1.0):
        return None
    return abs(value * examples - round(value * examples)) < 1e-4 * examples


def _is_its_loss(federation: AuditedFederation, reply: _Reply, value: float) -> bool | None:
    """Whether a loss is the mean loss of the true images at the weights that were sent; None where nobody can tell."""
    truth, observation = federation.truth(reply.entry), reply.observation
    victim = federation.subject.victim
    if truth is None or observation is None or steps_behind(observation) != 1 or batch_norms(victim.model):
        return None
    like = next(iter(observation.parameters.values()))
    inputs = victim.inputs.normalise(truth.images).to(like)
    try:
        with torch.no_grad():
            own = float(
                Replay(victim, observation.parameters, observation.buffers).loss(
                    observation.parameters, inputs, truth.labels, ()
                )
            )
    except Exception:  # noqa: BLE001 - the model is foreign code, and this is a gift
        return None
    return math.isclose(own, value, rel_tol=_CLOSE)


def _label_counts(federation: AuditedFederation, replies: Sequence[_Reply]) -> list[ReplyChannel]:
    """Lists of numbers; those with one for each class are most likely the client's classes."""
    by_name: dict[str, list[tuple[_Reply, Sequence[float]]]] = {}
    for reply in replies:
        for record in reply.entry.lists.values():
            for key, values in record.items():
                by_name.setdefault(key, []).append((reply, values))
    return [_list(federation, replies, name, found) for name, found in sorted(by_name.items())]


def _list(
    federation: AuditedFederation,
    replies: Sequence[_Reply],
    name: str,
    found: Sequence[tuple[_Reply, Sequence[float]]],
) -> ReplyChannel:
    classes = federation.subject.victim.inputs.classes
    answers = [answer for reply, values in found if (answer := _is_its_classes(reply, values, classes)) is not None]
    of_classes = all(len(values) == classes for _, values in found)
    told = "a number for each class, of each client by itself" if of_classes else "what it says"
    if any(answers):
        told = f"the classes of the client's images, exactly in {sum(answers)} of {len(answers)}"
    return _channel(
        federation,
        replies,
        [reply for reply, _ in found],
        "label-counts" if of_classes else "metric",
        name,
        held=f"lists of {joined(sorted({str(len(values)) for _, values in found}))} numbers",
        needed_by="samplers that balance clients by class" if of_classes else "whoever wrote the app knows",
        gave_away=told,
        exact=sum(answers) if answers else None,
        compared=len(answers) or None,
        drop=f"leave it out, or {_SECURE}",
    )


def _is_its_classes(reply: _Reply, values: Sequence[float], classes: int) -> bool | None:
    """Whether the numbers are, up to a factor, the images of each class; None where they cannot be."""
    if reply.labels is None or len(values) != classes or sum(values) <= 0:
        return None
    true = torch.bincount(reply.labels.long(), minlength=classes).double()
    said = torch.tensor(values, dtype=torch.float64)
    return len(true) == classes and bool(torch.allclose(said / said.sum(), true / true.sum(), atol=1e-6))


def _statistics(federation: AuditedFederation, replies: Sequence[_Reply]) -> list[ReplyChannel]:
    model, found = federation.subject.victim.model, []
    for reply in replies:
        statistics = None if reply.observation is None else returned_statistics(model, reply.observation)
        if statistics is not None and not isinstance(statistics, Reason):
            found.append((reply, statistics))
    if not found:
        return []
    single = [(reply, one) for reply, one in found if all(layer.of_one_batch for layer in one.values())]
    errors = [error for reply, one in single if (error := _error_of_mean(federation, reply, one)) is not None]
    layers = counted(len(found[0][1]), "layer")
    told = f"a weighted mean of the batches' statistics at {layers}"
    if single:
        told = f"the exact mean and variance of one batch at {layers}"
        told += f"; compared with the true images at the first, to {max(errors):.0e} of its size" if errors else ""
    channel = _channel(
        federation,
        replies,
        [reply for reply, _ in found],
        "statistics",
        "running means and variances",
        held=f"{count(sum(2 * len(layer.mean) for layer in found[0][1].values()))} numbers of {layers}",
        needed_by="the global model, if it normalises by them; clients that keep their own need none",
        gave_away=told,
        exact=sum(error < _CLOSE for error in errors) if errors else None,
        compared=len(errors) or None,
        drop="keep them at the clients (FedBN), freeze them, or use GroupNorm; most defences do not touch them",
    )
    return [channel]


def _error_of_mean(federation: AuditedFederation, reply: _Reply, found: Mapping[str, LayerStatistics]) -> float | None:
    """Relative difference of the first layer's mean from that of what the true images send into it, where it shows."""
    truth, observation, victim = federation.truth(reply.entry), reply.observation, federation.subject.victim
    layer = next(iter(batch_norms(victim.model)))
    if truth is None or observation is None or layer not in found:
        return None
    mean = found[layer].mean
    like = next(iter(observation.parameters.values()))
    replay = Replay(victim, observation.parameters, observation.buffers)
    try:
        with torch.no_grad():
            inputs = victim.inputs.normalise(truth.images).to(like)
            entering = received_by(replay, inputs, (), batch=len(inputs), layers=[layer])[layer]
    except Exception:  # noqa: BLE001 - the model is foreign code, and this is a gift
        return None
    own = entering.mean(dim=[0, *range(2, entering.dim())])
    return float((own - mean).norm() / own.norm().clamp_min(1e-12))


def _counters(federation: AuditedFederation, replies: Sequence[_Reply]) -> list[ReplyChannel]:
    steps = []
    for reply in replies:
        seen = reply.observation
        names = [] if seen is None else [name for name in seen.returned if name.endswith("num_batches_tracked")]
        if seen is not None and names and names[0] in seen.buffers:
            steps.append((reply, int(seen.returned[names[0]]) - int(seen.buffers[names[0]])))
    if not any(made for _, made in steps):
        return []
    return [
        _channel(
            federation,
            replies,
            [reply for reply, _ in steps],
            "step-counters",
            "num_batches_tracked",
            held=_range([float(made) for _, made in steps]),
            needed_by="layers that average all batches (momentum=None); others do not use it",
            gave_away="how many local steps the client made",
            drop="leave it out of the reply",
        )
    ]


def _records(federation: AuditedFederation, replies: Sequence[_Reply]) -> list[ReplyChannel]:
    names = sorted({extra.record for reply in replies for extra in reply.entry.extras})
    return [
        _channel(
            federation,
            replies,
            [one for one in replies if any(extra.record == name for extra in one.entry.extras)],
            "records",
            name,
            held="arrays beside the update",
            needed_by="a strategy with state at its clients, such as SCAFFOLD's control variates",
            gave_away="no attack here reads it; it is as open as the update",
            drop=f"leave it out, or {_SECURE}",
        )
        for name in names
    ]


def _channel(
    federation: AuditedFederation,
    replies: Sequence[_Reply],
    holding: Sequence[_Reply],
    channel: str,
    name: str,
    **more: object,
) -> ReplyChannel:
    different = {reply.entry.file for reply in holding}
    return ReplyChannel.model_validate(
        {
            "federation": federation.id,
            "channel": channel,
            "name": name,
            "replies": len(different),
            "of": len(replies),
            **more,
        }
    )


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"
