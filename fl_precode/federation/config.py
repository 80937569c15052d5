"""The one place where run-config strings become objects, and where wrong ones are refused, all at once."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Final

from fl_precode.data import check_dataset
from fl_precode.defences.registry import check_defence, defence_parts
from fl_precode.loss import load_loss
from fl_precode.models import check_model
from fl_precode.observation import CROSS_ENTROPY, Protocol, UpdateKind
from fl_precode.places.object_store import check_url, path_of, url_of
from fl_precode.privacy.canaries import Canaries
from fl_precode.tape.sampling import Sampling

Value = str | int | float | bool


class SettingsError(ValueError):
    """One or more run-config values are wrong; the message names every one of them and what was expected."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        lines = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"the run configuration has {len(problems)} problem(s):\n{lines}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A federation's run configuration. Field ``num_clients`` is run-config key ``num-clients``, and so on.

    Attributes:
        num_server_rounds: Rounds, at least 1.
        num_clients: Clients and partitions, at least 1.
        protocol: ``fedsgd`` (clients send the gradient of one batch) or ``fedavg`` (they train and send weights).
        dataset: Name from ``fl-precode datasets``, or ``npz:PATH``, ``folder:PATH``.
        data_root: Folder of downloaded data sets; empty means ``~/.cache/fl-precode``.
        partition: ``iid``, ``dirichlet`` or ``pathological``.
        dirichlet_alpha: Concentration, positive; small is skewed. Used by ``dirichlet``.
        classes_per_client: Used by ``pathological``.
        model: Name from ``fl-precode models``, or ``package.module:factory``.
        defence: Spec from ``fl-precode defences``.
        batch_size: Images behind one gradient; a client with fewer uses all it has.
        learning_rate: Step of the server (fedsgd) or of the clients' local optimiser (fedavg).
        local_optimiser: fedavg: ``sgd`` or ``adam``, begun anew in every round. Attacks replay SGD only; for the other
            they go by the update's direction, or refuse.
        local_steps: fedavg: optimiser steps in a round; 0 when ``local_epochs`` is given.
        local_epochs: fedavg: passes over the client's data in a round; 0 when ``local_steps`` is given.
        momentum: fedavg: of the clients' local SGD, in [0, 1).
        weight_decay: fedavg: of the clients' local SGD, 0 or more.
        batch_norm: What clients normalise by while they train: the images of the ``batch``, as is usual, or the
            ``buffers`` that were sent.
        loss: What clients minimise: ``cross-entropy``, or ``package.module:function`` of (scores, labels), importable
            where clients and server run; see `fl_precode.loss`.
        seed: Seed of initialisation, partition and batches; not negative. The server has it.
        seeded_noise: Draws the clients' noise from the seed too, so that a test can be repeated. Whoever has the seed
            takes that noise away: epsilon is not stated, and no report says that such noise protects.
        canaries: Known gradients that enter each update with probability 1/2, by which an audit measures what privacy
            there is at most: ``count=1000,norm=1``, or ``count=200,as=images`` for known images; empty for none. For
            runs that are made to be audited: they disturb the training. See `fl_precode.privacy.canaries.Canaries`.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        tape: Absolute folder that receives every update, or the URL of an object store, ``s3://bucket/tape``; empty:
            nobody listens.
        tape_sampling: Which updates the tape keeps, ``reservoir:n=120``, as `fl_precode.tape.sampling.Sampling` reads
            it; empty for all.
        output_dir: Absolute folder for ``result.json`` and the evaluation-only ``evaluation.json``; empty: none.
        audit_every: Rounds after which the server audits the newest rounds of the tape, in a process of its own; 0 for
            never. What it finds is in ``audits`` in the output folder.
        code_fingerprint: Hash of the code that the launcher submitted; empty: computed by the server.
    """

    num_server_rounds: int = 3
    num_clients: int = 4
    protocol: str = "fedsgd"
    dataset: str = "faces"
    data_root: str = ""
    partition: str = "iid"
    dirichlet_alpha: float = 0.5
    classes_per_client: int = 1
    model: str = "lenet"
    defence: str = "none"
    batch_size: int = 1
    learning_rate: float = 0.1
    local_optimiser: str = "sgd"
    local_steps: int = 0
    local_epochs: int = 0
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_norm: str = "batch"
    loss: str = CROSS_ENTROPY
    seed: int = 0
    seeded_noise: bool = False
    canaries: str = ""
    device: str = "auto"
    tape: str = ""
    tape_sampling: str = ""
    output_dir: str = ""
    audit_every: int = 0
    code_fingerprint: str = ""

    def __post_init__(self) -> None:
        problems = [
            *_range_problems(self),
            *_choice_problems(self),
            *_registry_problems(self),
            *_contradictions(self),
        ]
        if problems:
            raise SettingsError(problems)

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Value]) -> Settings:
        """Settings from kebab-case keys; keys left out keep their defaults.

        Raises:
            SettingsError: Unknown keys, values of the wrong type, values out of range and contradictions, all named.
        """
        known = {field.name.replace("_", "-"): field for field in fields(cls)}
        problems: list[str] = []
        values: dict[str, Value] = {}
        for key, value in run_config.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"expected one of: {', '.join(sorted(known))}"
                problems.append(f"unknown key {key!r}; {hint}")
                continue
            field = known[key]
            converted = _converted(value, type(field.default))
            if converted is None:
                problems.append(f"{key}: expected {_TYPE_WORDS[type(field.default)]}, got {value!r}")
            else:
                values[field.name] = converted
        try:
            settings = cls(**values)  # type: ignore[arg-type]  # types were checked by name just above
        except SettingsError as error:
            raise SettingsError(problems + error.problems) from None
        if problems:
            raise SettingsError(problems)
        return settings

    def to_run_config(self) -> dict[str, Value]:
        """The same settings under their kebab-case keys; some only where they are not those of most runs."""
        found = {field.name.replace("_", "-"): getattr(self, field.name) for field in fields(self)}
        if self.loss == CROSS_ENTROPY:  # so that records of one federation stay equal, whenever it was taped
            del found["loss"]
        for key in ("canaries", "tape-sampling"):
            if not found[key]:
                del found[key]
        return found

    @property
    def kind(self) -> UpdateKind:
        """What the clients of this protocol send."""
        return "gradient" if self.protocol == "fedsgd" else "weights"

    @property
    def announced(self) -> Protocol:
        """What the server knows about the clients' work."""
        fedsgd = self.protocol == "fedsgd"
        return Protocol(
            name=self.protocol,
            local_steps=1 if fedsgd else (self.local_steps or None),
            local_epochs=None if fedsgd else (self.local_epochs or None),
            learning_rate=self.learning_rate,
            defence=self.defence,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            batch_norm="buffers" if self.batch_norm == "buffers" else "batch",
            optimiser=None if fedsgd else "adam" if self.local_optimiser == "adam" else "sgd",
            loss=self.loss,
        )


_TYPE_WORDS: dict[type, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


_OWN_GRADIENTS: Final = frozenset({"dp", "ppp"})
"""Defences that compute the loss themselves, one image or one draw after another."""


def _parts_of(defence: str) -> set[str]:
    try:
        return {part.name for part in defence_parts(defence)}
    except ValueError:  # named among the other problems
        return set()


def _converted(value: object, wanted: type) -> Value | None:
    """The value in the wanted type, or None. A bool is no number here, although Python says so."""
    if isinstance(value, bool):
        return value if wanted is bool else None
    if wanted is float and isinstance(value, int | float):
        return float(value)
    return value if isinstance(value, wanted) else None  # type: ignore[return-value]


def _range_problems(s: Settings) -> list[str]:
    at_least = [("num-server-rounds", s.num_server_rounds, 1), ("num-clients", s.num_clients, 1)]
    at_least += [("batch-size", s.batch_size, 1), ("classes-per-client", s.classes_per_client, 1)]
    at_least += [("local-steps", s.local_steps, 0), ("local-epochs", s.local_epochs, 0), ("seed", s.seed, 0)]
    at_least += [("audit-every", s.audit_every, 0)]
    problems = [f"{key}: expected at least {low}, got {value}" for key, value, low in at_least if value < low]
    for key, number in (("learning-rate", s.learning_rate), ("dirichlet-alpha", s.dirichlet_alpha)):
        if not 0 < number < float("inf"):
            problems.append(f"{key}: expected a positive number, got {number}")
    if not 0 <= s.momentum < 1:
        problems.append(f"momentum: expected a number from 0 to below 1, got {s.momentum}")
    if not 0 <= s.weight_decay < float("inf"):
        problems.append(f"weight-decay: expected a number of 0 or more, got {s.weight_decay}")
    return problems


def _choice_problems(s: Settings) -> list[str]:
    choices = [
        ("protocol", s.protocol, ("fedsgd", "fedavg")),
        ("partition", s.partition, ("iid", "dirichlet", "pathological")),
        ("batch-norm", s.batch_norm, ("batch", "buffers")),
        ("local-optimiser", s.local_optimiser, ("sgd", "adam")),
        ("device", s.device, ("auto", "cpu", "cuda")),
    ]
    problems = [
        f"{key}: expected one of {', '.join(ok)}, got {value!r}" for key, value, ok in choices if value not in ok
    ]
    for key, place, more in (("tape", s.tape, ", the URL of an object store"), ("output-dir", s.output_dir, "")):
        # Flower starts its processes in other folders, so that a relative path would mean another place.
        if place and not (more and url_of(place)) and not path_of(place).is_absolute():
            problems.append(f"{key}: expected an absolute path{more} or nothing, got {place!r}")
    return problems


_MAY_BE_EMPTY: Final = ("canaries", "tape-sampling", "tape")


def _registry_problems(s: Settings) -> list[str]:
    checks: list[tuple[str, Callable[[str], object], str]] = [
        ("dataset", check_dataset, s.dataset),
        ("model", check_model, s.model),
        ("defence", check_defence, s.defence),
        ("loss", load_loss, s.loss),
        ("canaries", Canaries.parse, s.canaries),
        ("tape-sampling", Sampling.parse, s.tape_sampling),
        ("tape", check_url, url_of(s.tape) or ""),
    ]
    problems = []
    for key, check, value in checks:
        try:
            if value or key not in _MAY_BE_EMPTY:
                check(value)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    return problems


def _contradictions(s: Settings) -> list[str]:
    if s.loss != CROSS_ENTROPY and (own := _OWN_GRADIENTS & _parts_of(s.defence)):
        return [f"loss: {', '.join(sorted(own))} takes gradients of cross-entropy itself; expected {CROSS_ENTROPY!r}"]
    if s.tape_sampling and not s.tape:
        return ["tape-sampling: nobody listens; expected a tape that keeps some updates, or nothing"]
    if s.audit_every > 0 and url_of(s.tape):
        return ["audit-every: the tape leaves this machine as it is written; expected a folder as the tape, or 0"]
    if s.audit_every > 0 and not s.tape:
        return ["audit-every: nobody listens; expected a tape to audit, or 0"]
    if s.protocol == "fedsgd" and (s.local_steps or s.local_epochs):
        return ["local-steps, local-epochs: fedsgd sends one gradient; expected 0 for both, or protocol 'fedavg'"]
    if s.protocol == "fedsgd" and (s.momentum > 0 or s.weight_decay > 0):
        return ["momentum, weight-decay: fedsgd clients take no step; expected 0 for both, or protocol 'fedavg'"]
    if s.local_optimiser == "adam" and (s.protocol == "fedsgd" or s.momentum > 0):
        return ["local-optimiser: adam is for protocol 'fedavg', without momentum; expected 'sgd'"]
    if s.protocol == "fedavg" and (s.local_steps > 0) == (s.local_epochs > 0):
        return [
            "local-steps, local-epochs: fedavg trains locally; expected exactly one of them to be positive, "
            f"got {s.local_steps} and {s.local_epochs}"
        ]
    return []
