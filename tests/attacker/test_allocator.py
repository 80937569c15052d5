"""Freed memory stays with the process, and an audit's processes ask for that."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attacker.allocator import keep_freed_memory

FAULTS = """
import resource, sys, torch
from attacker.allocator import keep_freed_memory
assert sys.argv[1] == "returned" or keep_freed_memory()

def cycle():
    images = torch.ones(60 << 17)  # 30 MiB
    more = images + 1
    most = more * 2
    del images, more, most

for _ in range(20):
    cycle()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    cycle()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="freed memory is kept by glibc's allocator, which is not here")
def test_freed_memory_serves_the_next_tensors():
    assert faults("kept") < 1000 < faults("returned")


def test_another_system_or_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("attacker.allocator.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr("attacker.allocator.sys.platform", "darwin")
    assert not keep_freed_memory()
