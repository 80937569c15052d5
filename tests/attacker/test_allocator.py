"""Freed memory stays with a process that asks for that, for good or while it searches."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

import pytest

from attacker.allocator import keep_freed_memory

# In a process of its own, because the settings stay, and because glibc adapts them to what was freed before.
PROGRAM = """
import ctypes, json
from attacker.allocator import keep_freed_memory

class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Counts
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
found = []

def look():
    start, every = library.mallinfo2(), [library.malloc(24 << 20) for _ in range(4)]
    mapped = library.mallinfo2().hblks - start.hblks
    for block in every:
        library.free(block)
    found.append([mapped, library.mallinfo2().arena, start.arena])

def attack():
    import torch
    from attacker.attacks import GradientMatching
    from tests.attacker import tiny
    spec = tiny.inputs()
    victim = tiny.victim(tiny.mlp(spec), spec)
    seen = [tiny.observe(victim, tiny.images(spec, 1, seed=0), [0])]
    progress = lambda *_: found or look()
    GradientMatching(iterations=1)(victim, seen, generator=torch.Generator().manual_seed(0), progress=progress)

BODY
mapped, freed, start = found[0]
print(json.dumps([mapped, freed - start, library.mallinfo2().arena - start]))
"""
FREED = 4 * (24 << 20) - (1 << 20)  # the heap has a little room at the start


class Seen(NamedTuple):
    """What four blocks of 24 MiB show.

    Attributes:
        mapped: How many the kernel mapped for one alone, to take them back when they are freed.
        kept: Bytes by which the heap is larger once they are freed.
        end: The same at the end of the program.
    """

    mapped: int
    kept: int
    end: int


def seen(body: str) -> Seen:
    program = PROGRAM.replace("BODY", body)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return Seen(*json.loads(done.stdout))


glibc = pytest.mark.skipif(
    sys.platform != "linux", reason="freed memory is kept by glibc's allocator, which is not here"
)


@glibc
def test_a_freed_block_serves_the_next_tensor():
    assert seen("look()") == (4, 0, 0)
    kept = seen("assert keep_freed_memory(); look()")
    assert kept.mapped == 0
    assert kept.kept == kept.end >= FREED


@glibc
def test_an_attack_leaves_the_allocator_of_its_process_alone():
    assert seen("attack()").end < FREED // 2


@glibc
def test_a_process_that_keeps_memory_for_good_does_so_beyond_its_searches():
    assert seen("keep_freed_memory()\nattack()").end >= FREED


def test_another_system_or_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr("attacker.allocator.ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()
    monkeypatch.undo()
    monkeypatch.setattr("attacker.allocator.sys.platform", "darwin")
    assert not keep_freed_memory()
