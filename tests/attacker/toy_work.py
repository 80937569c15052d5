"""Work for tests of the job layer: roots of numbers, with tensors beside them; and what goes wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attacker.jobs.job import Job, Tell


class Roots:
    format = "toy-roots"
    version = 1

    def do(self, content: Mapping[str, Any], *, seconds: float | None, tell: Tell) -> Tensor:
        tell(0.5)
        if content.get("dies"):
            os._exit(9)
        while content.get("hangs"):
            time.sleep(0.01)
        if content["number"] < 0:
            raise ArithmeticError(f"{content['number']} has no root")
        return torch.tensor([content["number"]], dtype=torch.float64).sqrt()

    def encode(self, result: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {"whole": bool(result == result.round())}, {"root": result}

    def decode(self, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["root"]


class Devices(Roots):
    """Which GPU a job was given, which process it ran in, and from when to when."""

    def do(self, content: Mapping[str, Any], *, seconds: float | None, tell: Tell) -> Tensor:
        began = time.time()
        time.sleep(1.0)
        device = int(os.environ.get("CUDA_VISIBLE_DEVICES") or -1)
        return torch.tensor([device, os.getpid(), began, time.time()], dtype=torch.float64)

    def encode(self, result: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return {}, {"root": result}


WORK = Roots()
DEVICES = Devices()


def device_job(number: int) -> Job:
    return Job(id=f"device-{number}", work="tests.attacker.toy_work:DEVICES", title="", content={})


def job(number: float, *, cost: float = 1.0, patience: float | None = None, **content: Any) -> Job:
    return Job(
        id=f"root-{number:g}",
        work="tests.attacker.toy_work:WORK",
        title=f"root of {number:g}",
        content={"number": number, **content},
        cost=cost,
        patience=patience,
    )
