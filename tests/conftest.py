"""Shared fixtures."""

from __future__ import annotations

import os
from pathlib import Path

# Before torch is imported: several tests start processes, and oversubscribed cores are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from fl_precode import sample_noise

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded():
    """Tests ask for seeded noise: bottlenecks draw from torch's generators, and those start from a seed.

    ``contextvars.Context().run(...)`` is without this request.
    """
    torch.manual_seed(0)
    with sample_noise():
        yield


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shared_data():
    """The folder of real images for measurements; not part of the product."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not on this machine")
    return SHARED_DATA
