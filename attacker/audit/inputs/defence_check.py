"""Check that clients applied the announced defence and no other, as far as their updates show it.

A client that announces a defence and does not apply it looks protected in the books and is not; one that applies a
defence that nobody knows of makes attacks fail for a reason that the report does not name. Both are read from the
update itself: zeros, numbers of different values, the norm, and noise, which shows in Linear layers: the gradient of
N rows of input is a sum of N outer products at most. Much else that honest clients do shows there as well, so that the
sentences say what was seen, and which innocent reasons it may have. Only what none of them explains contradicts.

What follows later in the chain of defences may hide what an earlier part did; then nothing is said about that part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from attacker.attacks.base import check_observation
from attacker.audit.inputs.filter_check import why_not_filtered
from attacker.audit.inputs.innocent_reasons import InnocentReason, half_precision, innocent_reasons
from attacker.audit.inputs.outer_products import Beyond, layers_beyond, rounding_of, told_adam
from attacker.gradients.observed import steps_behind
from attacker.gradients.uncompared_parameters import settled
from attacker.reasons import Reason, because
from attacker.victim import Victim
from fl_precode.defences.dp_sgd import DpSgd
from fl_precode.defences.flower_dp import CentralDp, LocalDp
from fl_precode.defences.nvflare_filters import PercentileFilter, SvtFilter
from fl_precode.defences.on_gradients import Clip, GaussianNoise, GradientDefence, LaplaceNoise, Prune, Quantise, Sign
from fl_precode.defences.ppp import PartialNoise
from fl_precode.defences.registry import gradient_defence
from fl_precode.defences.soteria import Soteria
from fl_precode.observation import Observation
from fl_precode.tape.optimiser_traces import optimiser_trace

_logger = logging.getLogger(__name__)

_NOISES = (GaussianNoise, LaplaceNoise, PartialNoise, DpSgd, LocalDp)
_BREAKS_RANK = (Prune, Quantise, Sign, PercentileFilter, SvtFilter)

_FEW_VALUES = 256
"""A tensor of thousands of numbers with no more different ones was rounded on purpose."""

_MANY = 1_000
"""Numbers below which a tensor says nothing about how its values are spread."""

_LOOKED_AT = 20_000
"""Numbers of a tensor, evenly chosen, that are enough to tell how its values are spread."""

_GAP = 0.02
"""Of many numbers the smallest non-zero one is less than this share of the median, unless small ones were cut off."""

_OUTSTANDING = 30.0
"""What is this many times larger than the rounding of 16 bits is no rounding."""

_LOOKED_AT_LINES = 140
"""Rows and columns of a matrix that are enough to tell where its zeros are."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """Something that an update shows and that was not announced, or the reverse.

    Attributes:
        sentence: What was seen, with its figures, and which reasons there can be; its code is the same for updates that
            show the same.
        contradicts: Whether it contradicts what was announced; else an honest client can show it.
        size: Rank among sightings of one code: the one with the largest size stands for all.
    """

    sentence: Reason
    contradicts: bool = True
    size: float = 0.0


def doubts(victim: Victim, observation: Observation, defence: str) -> tuple[str, ...]:
    """What contradicts the announced defence in an update, in sentences; see `sightings`."""
    return tuple(sighting.sentence for sighting in sightings(victim, observation, defence) if sighting.contradicts)


def sightings(victim: Victim, observation: Observation, defence: str) -> tuple[Sighting, ...]:
    """What an update shows that its announced defence does not account for; empty when nothing does.

    Args:
        victim: Public knowledge about the model.
        observation: One update.
        defence: The announced spec; ``none`` says that there is no defence, and nothing contradicts ``unknown``.

    Raises:
        ValueError: If the spec is not one that exists.
    """
    if check_observation(victim, observation) is not None:  # attacks say so themselves
        return ()
    victim, observation = settled(victim, observation)
    if not observation.parameters:
        return ()
    chain = None if defence == "unknown" else gradient_defence(defence)
    parts = () if chain is None else chain.parts
    findings = []
    for place, part in enumerate(parts):
        findings += _checked(type(part).__name__, partial(_not_applied, part, parts[place + 1 :], observation))
    cut: list[Sighting] = []
    if not any(isinstance(part, (*_BREAKS_RANK, Soteria)) for part in parts):
        cut = _checked("a cut", partial(_unannounced_cut, observation, said=defence != "unknown"))
    # What is pruned or rounded has any rank, as if noise were in it.
    check = partial(_noise, victim, observation, parts, said=defence != "unknown")
    return tuple(findings + (cut or _checked("noise", check)))


def _checked(what: str, check: Callable[[], Sighting | None]) -> list[Sighting]:
    """What a check finds, or that it could not be made: one check must not cost the others."""
    try:
        sighting = check()
    except Exception as error:  # models are foreign code, and updates are whatever clients sent
        _logger.warning("whether %s shows in an update could not be checked", what, exc_info=True)
        return [Sighting(sentence=because("not-checked", what=what, kind=type(error).__name__, error=error))]
    return [] if sighting is None else [sighting]


def common_sightings(each: Sequence[Iterable[Sighting]]) -> tuple[list[Reason], list[Reason]]:
    """What several updates show, each kind once, with the number of updates that show it.

    Returns:
        What contradicts the announced defence, and what an honest client can show as well.
    """
    kinds: dict[tuple[str, bool], list[Sighting]] = {}
    for sighting in (member for group in each for member in group):
        code = sighting.sentence.code
        kinds.setdefault((sighting.sentence if code == "not-checked" else code, sighting.contradicts), []).append(
            sighting
        )
    sentences: dict[bool, list[Reason]] = {True: [], False: []}
    for (_, contradicts), of_kind in kinds.items():
        largest = max(of_kind, key=lambda member: member.size)
        text = f"{largest.sentence} ({len(of_kind)} of {len(each)} updates looked at)"
        sentences[contradicts].append(Reason(text, *largest.sentence.codes))
    return sentences[True], sentences[False]


def _not_applied(part: GradientDefence, later: Sequence[GradientDefence], observation: Observation) -> Sighting | None:
    """What shows that the update cannot be what ``part`` leaves behind."""
    if any(isinstance(defence, _NOISES) for defence in later):
        return None
    exact = observation.kind == "gradient"  # weights that were added and subtracted are rounded
    match part:
        case Prune(share=share) if _fewer_zeros(observation, share):
            return Sighting(sentence=because("pruning-not-applied", share=share))
        case Clip(max_norm=largest) if not later and _norm(observation) > largest * 1.001:
            return Sighting(sentence=because("clipping-not-applied", largest=largest))
        case Quantise(bits=bits) if exact and _most_values(observation) > 2**bits - 1:
            return Sighting(sentence=because("rounding-not-applied", bits=bits))
        case Sign() if exact and _most_values(observation) > 3:
            return Sighting(sentence=because("signs-not-applied"))
        case Soteria(share=share) if exact and not _zero_columns(observation, share):
            return Sighting(sentence=because("soteria-not-applied", share=share))
        case LocalDp() | CentralDp() | PercentileFilter() | SvtFilter() if not later:
            sentence = why_not_filtered(part, observation)
            return None if sentence is None else Sighting(sentence=sentence)
    return None


def _fewer_zeros(observation: Observation, share: float) -> bool:
    return any(int((value == 0).sum()) < round(share * value.numel()) for value in observation.update.values())


def _norm(observation: Observation) -> float:
    return math.sqrt(sum(float(value.double().square().sum()) for value in observation.update.values()))


def _most_values(observation: Observation) -> int:
    return max((_different(value) for value in observation.update.values()), default=0)


def _different(value: Tensor) -> int:
    """Different values, not counting 0 and minus 0 apart, among the numbers looked at."""
    return len(torch.unique(_sample(value)))


def _sample(value: Tensor) -> Tensor:
    flat = value.flatten()
    return flat[:: max(1, len(flat) // _LOOKED_AT)]


def _zero_columns(observation: Observation, share: float) -> bool:
    matrices = (value for value in observation.update.values() if value.dim() == 2)
    return any(int((value == 0).all(dim=0).sum()) >= round(share * value.shape[1]) for value in matrices)


def _unannounced_cut(observation: Observation, *, said: bool) -> Sighting | None:
    """Pruned or rounded updates, when nothing of that kind was announced.

    Args:
        observation: One update.
        said: Whether it was announced that there is no such defence.
    """
    if told_adam(observation):  # its first step is nearly a sign
        return None
    large = [value for value in observation.update.values() if value.numel() >= _MANY]
    if observation.kind == "weights":  # small steps of large weights are few whole steps of their last digit
        rounding = _rounding_of_what_was_sent(observation)
        large = [value for value in large if _usual(value) > rounding]
    busy = [value for value in large if int((_sample(value) != 0).sum()) >= _MANY // 20]
    samples = [_sample(value) for value in busy]
    if busy and all(_different(value) <= min(_FEW_VALUES, int((value != 0).sum()) // 4) for value in samples):
        return _few_values(observation, said=said)
    if any(_cut_off(value) for value in busy):
        return Sighting(sentence=because("was-pruned"), contradicts=said)
    return None


def _usual(value: Tensor) -> float:
    """Median size of the numbers that are not zero; zero without any."""
    sizes = _sample(value).abs()
    sizes = sizes[sizes != 0]
    return float(sizes.median()) if len(sizes) else 0.0


def _few_values(observation: Observation, *, said: bool) -> Sighting:
    optimiser = observation.protocol.optimiser
    if observation.kind == "weights" and optimiser is None:
        trace = optimiser_trace(observation.update, steps=steps_behind(observation), learning_rate=None)
        if trace is not None and trace.optimiser == "adam":
            return Sighting(sentence=because("was-rounded.adaptive", evidence=trace.evidence), contradicts=False)
    return Sighting(sentence=because("was-rounded"), contradicts=said)


def _rounding_of_what_was_sent(observation: Observation) -> float:
    """Steps of the last digit that the returned weights have, where they were sent in 16 bits."""
    grid = half_precision(observation)
    if grid is None:
        return rounding_of(observation)
    kind, usual = grid
    return max(rounding_of(observation), _OUTSTANDING * torch.finfo(kind).eps * usual)


def _cut_off(value: Tensor) -> bool:
    """Whether small numbers are missing in scattered places.

    Zeros in whole rows and columns, or in patterns that rows share, come from units that were off: dropout, ReLU,
    black pixels. Their places say nothing about the numbers' sizes.
    """
    lines = value.flatten(1) if value.dim() > 1 else value.reshape(1, -1)
    every = [max(1, size // _LOOKED_AT_LINES) for size in lines.shape] if len(lines) > 1 else [1, 1]
    lines = lines[:: every[0], :: every[1]]
    zero = lines == 0
    lines = lines[~zero.all(dim=1)][:, ~zero.all(dim=0)]
    zero = lines == 0
    if lines.numel() < _MANY // 20 or float(zero.double().mean()) <= 0.02:
        return False
    zero = zero if len(zero) <= zero.shape[1] else zero.T  # lines as long as there are
    if len(zero) > 1 and len(torch.unique(zero, dim=0)) < len(zero) / 2:
        return False
    sizes = lines[lines != 0].abs()
    return float(sizes.min()) > _GAP * float(sizes.median())


def _noise(
    victim: Victim, observation: Observation, parts: Sequence[GradientDefence], *, said: bool
) -> Sighting | None:
    """What the Linear layers show about noise, announced or not."""
    if any(isinstance(part, _BREAKS_RANK) for part in parts):
        return None
    layers = layers_beyond(victim, observation)
    announced = next((part for part in parts if isinstance(part, _NOISES)), None)
    if announced is not None:
        clipped = any(isinstance(part, Clip | CentralDp) for part in parts)
        sentence = _noise_left_out([layer.rest for layer in layers], announced, observation, clipped=clipped)
        return None if sentence is None else Sighting(sentence=sentence)
    rounding = rounding_of(observation)
    noisy = [layer for layer in layers if layer.size > rounding]
    if observation.protocol.weight_decay:  # it was announced, and nothing else is there
        noisy = [layer for layer in noisy if layer.rest > rounding]
    findings = [_not_a_sum(layer, innocent_reasons(observation, layer), said=said) for layer in noisy]
    return max(findings, key=lambda finding: (finding.contradicts, finding.size), default=None)


def _not_a_sum(beyond: Beyond, reasons: Sequence[InnocentReason], *, said: bool) -> Sighting:
    """That a layer's update is more than its inputs explain, with the figures and the innocent reasons."""
    by_state = {
        state: [f"{reason.name} ({reason.because})" for reason in reasons if reason.state == state]
        for state in ("seen", "possible", "excluded", "denied")
    }
    layer = f"of the layer {beyond.layer!r}" if beyond.layer else "of the layer"
    rest = because("more-than-its-inputs", layer=layer, most=beyond.most, size=beyond.size, share=beyond.share)
    if by_state["denied"]:
        sentence = because("unexplained-rest.denied", rest=rest, reasons="; ".join(by_state["denied"]))
    elif by_state["seen"]:
        sentence = because("innocent-rest", rest=rest, reasons="; ".join(by_state["seen"]))
    elif by_state["possible"]:
        sentence = because("open-rest", rest=rest, reasons="; or ".join(by_state["possible"]))
    else:
        sentence = because("unexplained-rest", rest=rest, reasons="; ".join(by_state["excluded"]))
    explained = bool(by_state["seen"] or by_state["possible"])
    return Sighting(
        sentence=sentence,
        contradicts=said and not explained,
        size=beyond.share,
    )


def _noise_left_out(
    levels: Sequence[float], announced: GradientDefence | None, observation: Observation, *, clipped: bool
) -> Reason | None:
    """That announced noise is not in the Linear layers, where it would stand out; None where that is not seen."""
    if not levels or announced is None:
        return None
    rounding = rounding_of(observation)
    if isinstance(announced, PartialNoise):
        if announced.std > rounding and max(levels) <= rounding:
            return because("noise-not-applied.some-layers", std=announced.std)
        return None
    std = _announced_std(announced, observation)
    # What clips after the noise shrinks it, by nobody knows how much.
    if std is None or clipped or std <= rounding or min(levels) > std / 2:
        return None
    return because("noise-not-applied", std=std, least=min(levels))


def _announced_std(part: GradientDefence, observation: Observation) -> float | None:
    if isinstance(part, GaussianNoise | LaplaceNoise | LocalDp):
        return part.std
    if isinstance(part, DpSgd) and observation.kind == "gradient" and observation.batch_size:
        return part.noise_multiplier * part.max_norm / observation.batch_size
    return None
