"""A job: plain data that says what is to be done, and where the code is that does it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

Tell = Callable[[float], None]
"""Receives the share of a job that is done, in [0, 1]."""

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work that any process can do; what it gives depends on it alone.

    Attributes:
        id: Unique among the jobs of one store; names its files.
        work: Dotted name of a `Work`, as ``package.module:NAME``.
        title: For people.
        content: What the work is given: numbers, texts, lists and mappings of them, so that it can be sent anywhere.
        cost: What it is expected to take, in any unit that all jobs share.
        seconds: After which it should end with the best that it has; None for as long as it takes.
        patience: Seconds after which whoever runs it ends it by force; None waits for ever.
    """

    id: str
    work: str
    title: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0
    seconds: float | None = None
    patience: float | None = None

    def to_json(self) -> str:
        """Text from which `from_json` makes an equal job, but for tuples, which become lists."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote."""
        return cls(**json.loads(text))


class Codec(Protocol[R]):
    """How results become a file: what is no tensor as JSON, tensors as safetensors."""

    @property
    def format(self) -> str:
        """Names the kind of file."""

    @property
    def version(self) -> int:
        """Version of the format; files of another are refused."""

    def encode(self, result: R) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """What is no tensor, and the tensors by name."""

    def decode(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> R:
        """The result that was encoded; tensors are on the CPU."""


class Work(Codec[R], Protocol[R]):
    """What jobs of one kind do, and how their results are kept."""

    def do(self, content: Mapping[str, Any], *, seconds: float | None, tell: Tell) -> R:
        """The result of a job.

        Args:
            content: Content of the job.
            seconds: Seconds of the job, less what passed until it was begun.
            tell: Told how far it is.
        """


@dataclass(frozen=True)
class Event:
    """What a worker says of its job.

    Attributes:
        kind: "progress", "done"; "raised", the job cannot be done at all; "died", with its worker; "ended" by force,
            because its time was over and it did not return.
        job: Id.
        text: What was raised, or how the worker ended.
        share: Share of the job that is done.
    """

    kind: Literal["progress", "done", "raised", "died", "ended"]
    job: str
    text: str = ""
    share: float = 0.0


def work_of(name: str) -> Work[Any]:
    """The work of a dotted name.

    Raises:
        ValueError: If the name is of another form.
        ImportError: If there is no such module.
        AttributeError: If the module has no such name.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ValueError(f"expected the dotted name of a work, as package.module:NAME, got {name!r}")
    work: Work[Any] = getattr(importlib.import_module(module), attribute)
    return work
