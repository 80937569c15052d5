"""Memory of one evaluation, measured, so that a budget decides how many candidates run together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attacker.gradients.base import GradientProducts

GIB = 2**30

# Results that torch's kernels pack for themselves are not seen on a CPU; they are smaller than what they work on.
_UNSEEN = 1.25
# More images in one pass do not run faster per image on a CPU.
_IMAGES_AT_ONCE_ON_CPU = 64
# Adam's two moments, its iterate, gradient and trial, and the best iterate.
_COPIES_OF_A_CANDIDATE = 6


@dataclass(frozen=True, kw_only=True)
class EvaluationMemory:
    """Bytes that one evaluation of distance and gradient takes at its peak.

    Attributes:
        fixed: Whatever the number of candidates.
        per_candidate: For each candidate on top.
        per_victim: For each victim on top, such as weights of its own.
    """

    fixed: int
    per_candidate: int
    per_victim: int = 0

    def candidates_within(self, budget: int, *, images: int, restarts: int, device: torch.device) -> int:
        """How many candidates of ``images`` images fit into ``budget`` bytes and pay, at least 1.

        Args:
            budget: Bytes.
            images: Images of one candidate.
            restarts: Candidates of one victim.
            device: Where they are.
        """
        fits = (budget - self.fixed) // max(1, self.per_candidate + self.per_victim // restarts)
        if device.type == "cpu":
            fits = min(fits, _IMAGES_AT_ONCE_ON_CPU // images)
        return max(1, fits)


def default_budget(device: torch.device) -> int:
    """Bytes for candidates where none are named: 2 GiB on a CPU, half of a GPU.

    Fixed for a machine: what happens to be free at the moment must not decide how sums are split and rounded.
    """
    if device.type == "cuda":
        _, whole = torch.cuda.mem_get_info(device)
        return int(whole) // 2
    return 2 * GIB


def evaluation_memory(
    products: GradientProducts, candidate: Tensor, latents: Sequence[Sequence[int]], *, history: int = 0
) -> EvaluationMemory:
    """Measure one evaluation with one candidate and with two of the same victim.

    Args:
        products: Products of one victim.
        candidate: (batch, channels, height, width), any values.
        latents: Shape of the noise that each bottleneck draws for one image.
        history: Steps that an L-BFGS search will remember for every candidate.

    Returns:
        The peaks, what a search keeps of every candidate included.
    """
    batch = len(candidate)

    def evaluate(restarts: int) -> None:
        candidates = candidate.detach().expand(1, restarts, *candidate.shape).clone().requires_grad_(True)
        labels = torch.zeros(1, restarts, batch, dtype=torch.long, device=candidate.device)
        noise = [candidates.new_zeros(1, restarts, batch, *latent) for latent in latents]
        result = products(candidates, labels, noise)
        torch.autograd.grad((result.inner + result.square).sum(), candidates)

    one, two = (peak_bytes(lambda n=n: evaluate(n), candidate.device) for n in (1, 2))  # type: ignore[misc]
    kept = candidate.numel() * candidate.element_size() * (_COPIES_OF_A_CANDIDATE + 2 * history)
    return EvaluationMemory(fixed=max(0, 2 * one - two), per_candidate=int(_UNSEEN * max(0, two - one)) + kept)


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes that ``work`` holds at once at its worst, beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - int(before)
    with _Allocations() as allocations:
        work()
    return int(allocations.peak)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations return, and takes them off again when they are freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Or else torch loads its compiler, which takes more than a second of every process, to keep out of it."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation and note the storages of what it returns."""
        del types
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in result if isinstance(result, tuple | list) else (result,):
            # A view of what was there before is no memory.
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in given:
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            self._now -= size
            self._alive.pop(key, None)

        self._alive[key] = weakref.ref(storage, freed)
        self._now += size
        self.peak = max(self.peak, self._now)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch failed for want of memory, on a GPU or a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
