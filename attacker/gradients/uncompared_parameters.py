"""Parameters that no gradient is compared for: frozen ones, those that were not sent, and those that have no gradient.

They are constants of the victim's model, as its buffers are: the forward pass needs their values, and nothing is known
of their change. So a model with constants keeps them as buffers, and its parameters are those that moved.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from attacker.model_copy import copied
from attacker.victim import Victim
from fl_precode.observation import Observation

_MARK = "_constants_of_the_update"

# By model object and names: the model with these constants.
_MADE: MutableMapping[nn.Module, dict[frozenset[str], nn.Module]] = WeakIdKeyDictionary(ref_type=weakref.ref)


@dataclass(frozen=True)
class LookedAt:
    """What was found in the entries of a tensor.

    Attributes:
        version: Version of the tensor, which counts changes in place; None where nobody counts.
        moves: Whether one is not zero.
        finite: Whether all are finite.
    """

    version: int | None
    moves: bool
    finite: bool


_LOOKED_AT: MutableMapping[Tensor, LookedAt] = WeakIdKeyDictionary()


def looked_at(value: Tensor) -> LookedAt:
    """What is in a tensor; found once while it stays as it is, as every attack asks for all tensors of an update."""
    version = None if value.is_inference() else value._version
    known = _LOOKED_AT.get(value)
    if known is None or known.version is None or known.version != version:
        known = LookedAt(version, bool(value.any()), bool(value.isfinite().all()))
        _LOOKED_AT[value] = known
    return known


def only_moving(observation: Observation) -> Observation:
    """The observation with every parameter that gives no equation among its frozen ones.

    These are complex and integer parameters, which gradients are not compared for; those without entries; and those
    whose update is zero in every entry, while others moved: layers that the client did not train, or never used.
    """
    still = {name for name, value in observation.update.items() if not value.is_floating_point() or value.numel() == 0}
    zero = {name for name, value in observation.update.items() if name not in still and not looked_at(value).moves}
    if len(still) + len(zero) < len(observation.update):  # else the whole update is zero, and attacks say so
        still |= zero
    if not still:
        return observation
    return replace(
        observation,
        parameters={name: value for name, value in observation.parameters.items() if name not in still},
        update={name: value for name, value in observation.update.items() if name not in still},
        buffers={**observation.buffers, **{name: observation.parameters[name] for name in still}},
        frozen=observation.frozen | still,
    )


def by_first_name(model: nn.Module, observation: Observation) -> Observation:
    """The observation with every tied tensor under one name, the first by which the model lists it.

    State dicts have a tied weight under each of its names, and a model has it once.
    """
    first: dict[int, str] = {}
    other: dict[str, str] = {}
    for listed in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
        for name, value in listed:
            if first.setdefault(id(value), name) != name:
                other[name] = first[id(value)]
    if not other or not other.keys() & {*observation.parameters, *observation.buffers}:
        return observation
    parameters = _renamed(observation.parameters, other)
    buffers = {name: value for name, value in _renamed(observation.buffers, other).items() if name not in parameters}
    return replace(
        observation,
        parameters=parameters,
        update=_renamed(observation.update, other),
        buffers=buffers,
        frozen=frozenset({other.get(name, name) for name in observation.frozen} & buffers.keys()),
        returned=_renamed(observation.returned, other),
    )


def settled(victim: Victim, observation: Observation) -> tuple[Victim, Observation]:
    """The victim and the update as attacks take them: tied weights once, and what does not move as constants.

    Args:
        victim: Stays as it is.
        observation: One that belongs to it.
    """
    moving = only_moving(by_first_name(victim.model, observation))
    return with_constants(victim, moving.frozen), moving


def with_constants(victim: Victim, names: Collection[str]) -> Victim:
    """The victim with parameters as buffers of the same names; the others are taken as trained by its clients.

    Args:
        victim: Stays as it is.
        names: Names of the constants; those that are no parameters of the model are none of its concern.
    """
    model = victim.model
    chosen = frozenset(name for name, _ in model.named_parameters() if name in names)
    if not chosen and all(parameter.requires_grad for parameter in model.parameters()):
        return victim
    made = _MADE.setdefault(model, {})
    if chosen not in made:
        made[chosen] = _fixed(model, chosen)
    return replace(victim, model=made[chosen])


def constants_of(module: nn.Module) -> frozenset[str]:
    """Names, within the module, of its own parameters that are constants."""
    names: frozenset[str] = vars(module).get(_MARK, frozenset())
    return names


def has_weights(module: nn.Module) -> bool:
    """Whether the module owns parameters, or owned those that are constants."""
    return bool(constants_of(module)) or any(True for _ in module.parameters(recurse=False))


def owns(module: nn.Module, name: str) -> bool:
    """Whether a tensor of the module is its own, not one that is computed anew at each call (spectral norm)."""
    return module._parameters.get(name) is not None or name in constants_of(module)


def moves(module: nn.Module, name: str) -> bool:
    """Whether the module has a parameter of this name whose change is known."""
    return module._parameters.get(name) is not None


def reference(model: nn.Module) -> Tensor:
    """A tensor in the type and on the device of the model's images: its first real weight; zero without one."""
    tensors = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
    return next(tensors, torch.zeros((), device="cpu"))


def _renamed(values: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Values by other names; where a value has its new name already, that one stays."""
    return {names.get(name, name): value for name, value in values.items() if names.get(name, name) not in values} | {
        name: value for name, value in values.items() if name not in names
    }


def _fixed(model: nn.Module, names: frozenset[str]) -> nn.Module:
    changed = copied(model)
    by_name = dict(changed.named_parameters())
    fixed = {id(by_name[name]): by_name[name].detach() for name in names}  # one tensor, however many modules have it
    for module in changed.modules():
        gone = [name for name, value in module._parameters.items() if value is not None and id(value) in fixed]
        for name in gone:
            value = fixed[id(module._parameters[name])]
            del module._parameters[name]
            module.register_buffer(name, value)
        if gone:
            module.__dict__[_MARK] = constants_of(module) | frozenset(gone)
    for value in changed.parameters():
        value.requires_grad_(value.is_floating_point() or value.is_complex())
    return changed
