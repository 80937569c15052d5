"""Freed memory stays with a process that asks for that, and only with such a one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attacker.jobs.allocator import keep_freed_memory

# In a process of its own, because the settings stay: how many of four blocks of 24 MiB the kernel maps for one alone,
# to take them back when they are freed.
PROGRAM = """
import ctypes

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Counts
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
BEFORE
start = library.mallinfo2().hblks
for _ in range(4):
    library.malloc(24 << 20)
print(library.mallinfo2().hblks - start)
"""


def mapped(before: str) -> int:
    program = PROGRAM.replace("BEFORE", before)
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="freed memory is kept by glibc's allocator, which is not here")
def test_a_freed_block_serves_the_next_tensor_where_a_process_asks_for_it():
    assert mapped("") == 4
    assert mapped("from attacker.jobs.allocator import keep_freed_memory; assert keep_freed_memory()") == 0


def test_another_system_or_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("attacker.jobs.allocator.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr("attacker.jobs.allocator.sys.platform", "darwin")
    assert not keep_freed_memory()
