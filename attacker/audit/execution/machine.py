"""The machine and the versions that an audit was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import psutil
import torch

from attacker.audit.record.schema import Machine

_PACKAGES = ("fl-precode", "torch", "numpy", "flwr", "scikit-image", "scipy")


@contextmanager
def threads_restored() -> Iterator[None]:
    """Whoever calls an audit has as many of PyTorch's threads afterwards as before; chunks set them to work with."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def this_machine() -> Machine:
    """Processor, cores, memory and GPUs of this computer."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Machine(
        cpu=_cpu_model(), cores=os.cpu_count() or 1, memory_bytes=int(psutil.virtual_memory().total), gpus=gpus
    )


def versions() -> dict[str, str]:
    """Python's version and those of the packages that matter, as installed; absent ones are left out."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine() or "unknown"
