"""Freed memory stays with a process that asks for that."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from attacker.allocator import keep_freed_memory

# In a process of its own, because the settings stay, and because glibc adapts them to what was freed before.
PROGRAM = """
import ctypes, json, sys
from attacker.allocator import keep_freed_memory

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Counts
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
assert sys.argv[1] == "returned" or keep_freed_memory()
before = library.mallinfo2()
block = library.malloc(24 << 20)
mapped = library.mallinfo2().hblks - before.hblks
library.free(block)
print(json.dumps([mapped, library.mallinfo2().arena - before.arena]))
"""


def after_a_block(mode):
    """Blocks of 24 MiB that the kernel mapped for it alone, and bytes that the heap has grown by once it is freed."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="freed memory is kept by glibc's allocator, which is not here")
def test_a_freed_block_serves_the_next_tensor():
    assert after_a_block("returned") == [1, 0]
    mapped, kept = after_a_block("kept")
    assert mapped == 0
    assert kept >= 24 << 20


def test_another_system_or_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("attacker.allocator.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr("attacker.allocator.sys.platform", "darwin")
    assert not keep_freed_memory()
