"""Shared fixtures."""

from __future__ import annotations

import os
from itertools import count
from pathlib import Path

# Before torch is imported: several tests start processes, and oversubscribed cores are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from fl_precode import sample_noise
from fl_precode.places.cache_folder import VARIABLE

QUICK = frozenset((Path(__file__).parent / "quick.txt").read_text().split())
"""Files of `make check`, wherever they lie: each takes a few seconds on one core at most, and all of them less than a
minute and a half on two. A new file is quick once it is named there."""

_NUMBERS = count()

collect_ignore = ["fl_precode/broken_plugin.py"]
"""It raises whoever imports it, as its tests want, and doctests import every module."""

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make check` asks for the quick files only, before anything else is imported."""
    parser.addoption("--quick", action="store_true", help="collect the files of `make check` only")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the other test files where only the quick ones are asked for."""
    other = collection_path.match("test_*.py") and collection_path.stem not in QUICK
    return True if other and config.getoption("--quick") else None


@pytest.fixture(autouse=True)
def _seeded():
    """Tests ask for seeded noise: bottlenecks draw from torch's generators, and those start from a seed.

    ``contextvars.Context().run(...)`` is without this request.
    """
    torch.manual_seed(0)
    with sample_noise():
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What a test keeps in the cache folder is its own: costs of one must not change the plans of another."""
    monkeypatch.setenv(VARIABLE, str(tmp_path_factory.getbasetemp() / f"cache-{next(_NUMBERS)}"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shared_data():
    """The folder of real images for measurements; not part of the product."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is not on this machine")
    return SHARED_DATA
