"""The options that ``audit`` and ``plan`` share, stated once, and how both begin."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from attacker.cli.device import AUTO, Device, find_device
from attacker.cli.options import (
    DEFAULT_BUDGET,
    Attacks,
    Budget,
    CanarySecret,
    Classes,
    Defence,
    Evaluation,
    Images,
    Know,
    LabelsOption,
    Loss,
    Mean,
    Model,
    NoControl,
    NoTruth,
    Rounds,
    Seed,
    Std,
    Threads,
    Truth,
    Victims,
    Withhold,
    check_truth,
    find_own_models,
    looks_like_a_tape,
    parse_budget,
    parse_inputs,
    parse_knowledge,
    parse_rounds,
    read_secret,
    split_attacks,
)
from attacker.cli.progress import Ticker
from attacker.cli.reasons import columns, end_of_nothing, wrapped
from fl_precode.places.object_store import url_of

if TYPE_CHECKING:
    from attacker.audit.inputs.tape_source import TapeSource
    from attacker.audit.settings import AuditSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What `audit` and `plan` are asked for alike; each field is an option, whose annotation says what it means."""

    attacks: Attacks = None
    victims: Victims = 4
    budget: Budget = None
    seed: Seed = 0
    labels: LabelsOption = None
    know: Know = None
    withhold: Withhold = None
    no_control: NoControl = False
    rounds: Rounds = None
    evaluation: Evaluation = None
    canary_secret: CanarySecret = None
    truth: Truth = None
    no_truth: NoTruth = False
    model: Model = None
    loss: Loss = None
    defence: Defence = None
    images: Images = None
    classes: Classes = None
    mean: Mean = None
    std: Std = None
    threads: Threads = 1
    device: Device = AUTO

    def sources(self, tapes: Sequence[Path]) -> list[TapeSource]:
        """The tapes, each with what the options say of it; a wrong option is bad usage."""
        inputs = parse_inputs(self.images, self.classes, self.mean, self.std)
        truth = check_truth(self.no_truth, self.evaluation, self.truth)

        from attacker.audit.inputs.tape_source import TapeSource
        from fl_precode.tape.fetched import local_tape

        return [
            TapeSource(
                tape=local_tape(tape), evaluation=self.evaluation, truth=truth, model=self.model, defence=self.defence,
                inputs=inputs, loss=self.loss,
            )
            for tape in tapes
        ]  # fmt: skip

    def settings(self, *, leakage: bool, **more: Any) -> AuditSettings:
        """Settings of the audit; a wrong option is bad usage and stops before anything is opened.

        Args:
            leakage: Whether leakage indices are computed.
            **more: What the command has options of its own for.
        """
        where = find_device(self.device)

        from attacker.audit.settings import AuditSettings, build_attacks

        wanted = tuple(spec for text in self.attacks for spec in split_attacks(text)) if self.attacks else None
        try:
            if wanted is not None:
                build_attacks(wanted)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--attacks") from None
        limited = wanted is None or self.budget is not None
        return AuditSettings(
            attacks=wanted,
            victims=self.victims,
            seed=self.seed,
            knowledge=parse_knowledge(self.know, self.withhold, self.labels),
            budget=parse_budget(self.budget or DEFAULT_BUDGET) if limited else None,
            control=not self.no_control,
            rounds=parse_rounds(self.rounds),
            device=str(where),
            threads=self.threads,
            leakage=leakage,
            canary_secret=read_secret(self.canary_secret),
            **more,
        )


def with_audit_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `AuditOptions`, in the place of its parameter ``options``."""
    fields = dataclasses.fields(AuditOptions)
    hints = get_type_hints(AuditOptions, include_extras=True) | get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for argument in inspect.signature(command).parameters.values():
        stands_for = (
            [(argument.name, argument.default)]
            if argument.name != "options"
            else [(option.name, option.default) for option in fields]
        )
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in stands_for
        ]

    @functools.wraps(command)
    def expanded(**given: Any) -> None:
        options = AuditOptions(**{field.name: given.pop(field.name) for field in fields})
        command(options=options, **given)

    # What typer reads.
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded


@contextmanager
def begun(tapes: Sequence[Path], title: str) -> Iterator[Ticker]:
    """Say within a moment what is begun, and what is being done until the block ends.

    Args:
        tapes: Where there is none, nothing is said but the error that follows.
        title: What is begun.

    Raises:
        typer.Exit: With code 3, if nothing could be attacked; why, and what mends it, is said.
    """
    # What comes next takes seconds, PyTorch alone two: the first line must not wait for it.
    ticker = Ticker("loading PyTorch")
    known = all(url_of(tape) or looks_like_a_tape(tape) for tape in tapes)
    if known:
        ticker.say("\n".join(wrapped(title, columns())))
    try:
        with ticker if known else nullcontext():
            find_own_models()
            yield ticker
    except ValueError as error:
        if ended := end_of_nothing(error):
            raise ended from None
        raise
