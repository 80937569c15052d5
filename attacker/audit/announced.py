"""Whether clients applied the defence that they announced, and applied nothing else, as far as their updates show it.

A client that announces a defence and does not apply it looks protected in the books and is not; one that applies a
defence that nobody knows of makes attacks fail for a reason that the report does not name. Both are read from the
update itself: zeros, numbers of different values, the norm, and noise, which shows in Linear layers: the gradient of
N rows of input has rank N at most, so that whatever stands beyond the N largest singular values was added.

What follows later in the chain of defences may hide what an earlier part did; then nothing is said about that part.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from attacker.attacks.attack import check_observation
from attacker.engine import steps_behind, trace
from attacker.engine.constants import settled
from attacker.victim import Victim
from fl_precode.defences import gradient_defence
from fl_precode.observation import Observation
from fl_precode.perturb import Clip, GaussianNoise, GradientDefence, LaplaceNoise, Prune, Quantise, Sign
from fl_precode.perturb_partly import PartialNoise
from fl_precode.private_sgd import DpSgd
from fl_precode.soteria import Soteria

_logger = logging.getLogger(__name__)

_NOISES = (GaussianNoise, LaplaceNoise, PartialNoise, DpSgd)
_BREAKS_RANK = (Prune, Quantise, Sign)

_FEW_VALUES = 256
"""A tensor of thousands of numbers with no more different ones was rounded on purpose."""

_MANY = 1_000
"""Numbers below which a tensor says nothing about how its values are spread."""

_LOOKED_AT = 20_000
"""Numbers of a tensor, evenly chosen, that are enough to tell how its values are spread."""

_GAP = 0.02
"""Of many numbers the smallest non-zero one is less than this share of the median, unless small ones were cut off."""

_OUTSTANDING = 30.0
"""Noise this many times larger than the rounding of the arithmetic is no rounding."""


def doubts(victim: Victim, observation: Observation, defence: str) -> tuple[str, ...]:
    """What an update shows that contradicts its announced defence, in sentences; empty when nothing does.

    Args:
        victim: Public knowledge about the model.
        observation: One update.
        defence: The announced spec; ``none`` or ``unknown`` announce nothing.

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
    found = []
    for place, part in enumerate(parts):
        check = partial(_not_applied, part, parts[place + 1 :], observation)
        found.append(_checked(type(part).__name__, check))
    cut = ""
    if not any(isinstance(part, (*_BREAKS_RANK, Soteria)) for part in parts):
        cut = _checked("a cut", lambda: _unannounced_cut(observation))
    # What is pruned or rounded has any rank, as if noise were in it.
    found.append(cut or _checked("noise", lambda: _noise_doubt(victim, observation, parts)))
    return tuple(sentence for sentence in found if sentence)


def _checked(what: str, check: Callable[[], str]) -> str:
    """What a check finds, or that it could not be made: one check must not cost the others."""
    try:
        return check()
    except Exception as error:  # models are foreign code, and updates are whatever clients sent
        _logger.warning("whether %s shows in an update could not be checked", what, exc_info=True)
        return f"whether {what} shows in the update could not be checked: {type(error).__name__}: {error}"


def common_doubts(each: Sequence[Iterable[str]]) -> list[str]:
    """The doubts about several updates, each once, with the number of updates that raise it."""
    counts = Counter(sentence for one in each for sentence in one)
    return [f"{sentence} ({number} of {len(each)} updates looked at)" for sentence, number in counts.items()]


def _not_applied(part: GradientDefence, later: Sequence[GradientDefence], observation: Observation) -> str:
    """A sentence when the update cannot be what ``part`` leaves behind."""
    if any(isinstance(one, _NOISES) for one in later):
        return ""
    exact = observation.kind == "gradient"  # weights that were added and subtracted are rounded
    match part:
        case Prune(share=share) if _fewer_zeros(observation, share):
            return f"pruning of {share:.0%} was announced, and the update has fewer zeros than that"
        case Clip(max_norm=largest) if not later and _norm(observation) > largest * 1.001:
            return f"a norm of at most {largest:g} was announced, and the update is larger"
        case Quantise(bits=bits) if exact and _most_values(observation) > 2**bits - 1:
            return f"rounding to {bits} bits was announced, and the update has more different values"
        case Sign() if exact and _most_values(observation) > 3:
            return "signs were announced, and the update has more than one magnitude in a tensor"
        case Soteria(share=share) if exact and not _zero_columns(observation, share):
            return (
                f"soteria on {share:.0%} of a layer's columns was announced, and no layer has as many columns of zeros"
            )
    return ""


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


def _unannounced_cut(observation: Observation) -> str:
    """Pruned or rounded updates, when nothing of that kind was announced."""
    large = [_sample(value) for value in observation.update.values() if value.numel() >= _MANY]
    if _by_adam(observation):  # its first step is nearly a sign
        return ""
    if observation.kind == "weights":  # small steps of large weights are few whole steps of their last digit
        large = [value for value in large if float(value.abs().median()) > _OUTSTANDING * _rounding(observation)]
    busy = [value for value in large if int((value != 0).sum()) >= _MANY // 20]
    if busy and all(_different(value) <= min(_FEW_VALUES, int((value != 0).sum()) // 4) for value in busy):
        return "the update consists of few different values: it was rounded, and no such defence was announced"
    if any(_cut_off(value) for value in busy):
        return "the smallest numbers of the update are missing: it was pruned, and no such defence was announced"
    return ""


def _cut_off(value: Tensor) -> bool:
    sizes = value[value != 0].abs()
    return len(sizes) < 0.98 * len(value) and float(sizes.min()) > _GAP * float(sizes.median())


def _noise_doubt(victim: Victim, observation: Observation, parts: Sequence[GradientDefence]) -> str:
    if any(isinstance(part, _BREAKS_RANK) for part in parts):
        return ""
    levels = _noise_levels(victim, observation)
    if not levels:
        return ""
    announced = next((part for part in parts if isinstance(part, _NOISES)), None)
    smallest, largest = min(levels), max(levels)
    if announced is None or isinstance(announced, PartialNoise):
        expected = None if announced is None else announced.std
        noisy = [level for level in levels if level > _rounding(observation)]
        if announced is None and noisy:
            return (
                f"noise with a standard deviation of about {largest:.1g} is in the update, and none was announced "
                "(or the client computes in low precision)"
            )
        if expected is not None and expected > _rounding(observation) and not noisy:
            return f"noise on some layers (std {expected:g}) was announced, and no Linear layer shows any"
        return ""
    std = _announced_std(announced, observation)
    clipped = any(isinstance(part, Clip) for part in parts)  # after the noise it shrinks it, by nobody knows how much
    if std is None or clipped or std <= _rounding(observation) or smallest > std / 2:
        return ""
    return f"noise (std {std:g}) was announced, and the update shows {smallest:.1g} in a Linear layer"


def _announced_std(part: GradientDefence, observation: Observation) -> float | None:
    if isinstance(part, GaussianNoise | LaplaceNoise):
        return part.std
    if isinstance(part, DpSgd) and observation.kind == "gradient" and observation.batch_size:
        return part.noise_multiplier * part.max_norm / observation.batch_size
    return None


def _rounding(observation: Observation) -> float:
    """Noise up to here may be the rounding of gradients, or of weights that were added and subtracted."""
    largest = max((float(value.abs().max()) for value in observation.update.values() if value.numel()), default=0.0)
    if observation.kind == "weights":
        largest += max((float(one.abs().max()) for one in observation.parameters.values() if one.numel()), default=0.0)
    kinds = [value.dtype for value in observation.update.values() if value.is_floating_point()]
    return _OUTSTANDING * largest * max(torch.finfo(kind).eps for kind in kinds)


def _noise_levels(victim: Victim, observation: Observation) -> list[float]:
    """Standard deviation of what stands beyond the possible rank of each Linear layer's update, where one can tell."""
    rows = _rows(observation)
    if rows is None:
        return []
    seen = trace(victim)
    linear = [layer.module for layer in seen.layers if isinstance(layer.module, nn.Linear)]
    often = Counter(id(module.weight) for module in linear)  # each run of a weight adds as much to its rank
    levels = []
    for layer in seen.layers:
        weight = f"{layer.name}.weight" if layer.name else "weight"
        if not isinstance(layer.module, nn.Linear) or layer.inputs is None or weight not in observation.update:
            continue
        if often[id(layer.module.weight)] > 1:
            continue
        for_one = math.ceil(layer.inputs.numel() / layer.inputs.shape[-1] / len(seen.probe))
        level = _beyond(observation.update[weight], rows * for_one)
        levels += [] if level is None else [level]
    return levels


def _rows(observation: Observation) -> int | None:
    """Images that the update's steps used, repeated ones counted again; None when the update may have any rank."""
    steps, batch = steps_behind(observation), observation.batch_size
    protocol = observation.protocol
    if steps is None or batch is None or protocol.weight_decay or _by_adam(observation):
        return None
    of_step = min(protocol.batch_size or batch, batch)
    return batch if observation.kind == "gradient" else steps * of_step


def _by_adam(observation: Observation) -> bool:
    """Whether each entry was divided by its own size, so that the update is no sum of gradients."""
    return observation.kind == "weights" and observation.protocol.optimiser == "adam"


def _beyond(matrix: Tensor, rank: int) -> float | None:
    """Root mean square of a matrix's entries beyond its ``rank`` largest singular values, scaled to noise of full rank.

    Some rows and columns, chosen at random, keep it quick and have the same standard deviation.
    """
    rest = min(matrix.shape) - rank
    if rest < max(4, rank):
        return None
    kept = min(matrix.shape[0], 4 * rank + 64)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randperm(matrix.shape[1], generator=generator)[: 4 * rank + 1024].to(matrix.device)
    rows = torch.randperm(matrix.shape[0], generator=generator)[:kept].to(matrix.device)
    part = matrix[rows][:, columns].double()
    height, width = part.shape
    if min(height, width) <= rank:
        return None
    singular = torch.linalg.svdvals(part)
    return float((singular[rank:].square().sum() / ((height - rank) * (width - rank))).sqrt())
