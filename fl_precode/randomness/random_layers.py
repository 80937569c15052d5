"""Common part of random layers: the source of their noise, and the readers of their KL term.

Nothing is stored on a module, so that a model can be copied, pickled and transformed by `torch.func` at any time; who
wants the KL term opens `track_kl` around the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor, nn

from fl_precode.randomness.entropy import system_generator


class KlTracker:
    """The KL terms of every bottleneck that ran while the tracker was open. Made by `track_kl`."""

    def __init__(self) -> None:
        self._terms: list[tuple[Tensor, Tensor]] = []

    def __len__(self) -> int:
        """How many bottlenecks ran."""
        return len(self._terms)

    def record(self, kl: Tensor, penalty: Tensor) -> None:
        """Keep one term: ``kl`` in nats and what it adds to the loss, both (batch,), one value per example."""
        self._terms.append((kl.mean(), penalty.mean()))

    def nats(self, like: Tensor) -> Tensor:
        """The batch mean of KL(N(mu, sigma²) || N(0, 1)), summed over latent units and bottlenecks.

        Args:
            like: Gives dtype and device (usually the logits).

        Returns:
            Scalar in nats; 0 when no bottleneck ran.
        """
        return self._sum(like, [kl for kl, _ in self._terms])

    def penalty(self, like: Tensor) -> Tensor:
        """What the defence adds to the loss: beta * KL, summed over bottlenecks; scalar, 0 when none ran."""
        return self._sum(like, [penalty for _, penalty in self._terms])

    @staticmethod
    def _sum(like: Tensor, terms: list[Tensor]) -> Tensor:
        total = torch.zeros((), dtype=like.dtype, device=like.device)
        for term in terms:
            total = total + term.to(total)
        return total


class _NoiseSource(Protocol):
    def draw(self, like: Tensor) -> Tensor: ...


class _SystemNoise:
    """From the operating system, with a generator for every draw, so that no seed that an app sets gives it away."""

    def draw(self, like: Tensor) -> Tensor:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "expected a bottleneck to run outside of backward passes, where it draws noise of its own; this one "
                "runs again in one, as torch.utils.checkpoint does, and would draw other noise than before; open "
                "fl_precode.sample_noise() around the forward and the backward pass, which takes torch's own "
                "generator, or checkpoint all but the bottleneck"
            )
        # Out of place, and drawn inside, as vmap(randomness="different") asks for.
        source = system_generator(like.device)
        return torch.randn(like.shape, generator=source, dtype=like.dtype, device=like.device)


class _GlobalNoise:
    """Torch's global generator; out of place, as vmap(randomness="different") asks for."""

    def draw(self, like: Tensor) -> Tensor:
        return torch.randn_like(like)


class _GeneratorNoise:
    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def draw(self, like: Tensor) -> Tensor:
        device = self._generator.device
        noise = torch.randn(like.shape, generator=self._generator, dtype=like.dtype, device=device)
        return noise.to(like.device)


class _GivenNoise:
    def __init__(self, values: Sequence[Tensor]) -> None:
        self._values = list(values)
        self._used = 0

    def draw(self, like: Tensor) -> Tensor:
        if self._used == len(self._values):
            raise ValueError(
                f"sample_noise was given {len(self._values)} noise tensor(s), but a further bottleneck ran; "
                "give one for each bottleneck and forward pass, in execution order"
            )
        value = self._values[self._used]
        if value.shape != like.shape:
            raise ValueError(
                f"expected noise tensor {self._used} to have shape (batch, latent) = {tuple(like.shape)}, "
                f"got {tuple(value.shape)}"
            )
        self._used += 1
        return value.to(like)

    def check_used(self) -> None:
        if self._used != len(self._values):
            raise ValueError(
                f"sample_noise was given {len(self._values)} noise tensor(s), but only {self._used} bottleneck(s) ran; "
                "give one for each bottleneck and forward pass, in execution order"
            )


_tracker: ContextVar[KlTracker | None] = ContextVar("fl_precode_kl_tracker", default=None)
_noise: ContextVar[_NoiseSource | None] = ContextVar("fl_precode_noise", default=None)


@contextmanager
def track_kl() -> Iterator[KlTracker]:
    """Collect the KL terms of the forward passes inside the block.

    Open it inside the function that `torch.func` transforms; only the innermost open tracker records, so that tensors
    of an inner transformation never leak into an outer one.

    Yields:
        The tracker, to be asked after (or in) the block.

    >>> from fl_precode import VariationalBottleneck
    >>> bottleneck = VariationalBottleneck(4, latent=2)
    >>> with track_kl() as kl:
    ...     out = bottleneck(torch.zeros(3, 4))
    >>> len(kl), kl.nats(out).shape
    (1, torch.Size([]))
    """
    tracker = KlTracker()
    token = _tracker.set(tracker)
    try:
        yield tracker
    finally:
        _tracker.reset(token)


@contextmanager
def sample_noise(generator: torch.Generator | None = None, values: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Say where the bottlenecks inside the block take their eps from; with neither argument, torch's global generator.

    Without such a block they draw from the operating system, whatever seeds were set: whoever can draw eps again sees
    through the bottleneck. This is for tests, for experiments that are to be repeated, and for attacks.

    Args:
        generator: Draw standard normal noise from it.
        values: Explicit eps, (batch, latent) each, or (batch, latent, height, width) for a convolutional bottleneck;
            one for each bottleneck and forward pass in execution order. Gradients flow through them.

    Raises:
        ValueError: If both are given, a value has the wrong shape, or their number is not that of the bottlenecks run.

    >>> from fl_precode import VariationalBottleneck
    >>> bottleneck = VariationalBottleneck(4, latent=2)
    >>> with sample_noise(values=[torch.zeros(1, 2)]):
    ...     quiet = bottleneck(torch.ones(1, 4))
    >>> torch.equal(quiet, bottleneck.decoder(bottleneck.encoder(torch.ones(1, 4))[:, :2]))
    True
    """
    if generator is not None and values is not None:
        raise ValueError("expected a generator or explicit values for the noise, got both; give one of them")
    given = _GivenNoise(values) if values is not None else None
    source: _NoiseSource = given or (_GeneratorNoise(generator) if generator is not None else _GlobalNoise())
    token = _noise.set(source)
    try:
        yield
    finally:
        _noise.reset(token)
    if given is not None:
        given.check_used()


def noise_is_given() -> bool:
    """Whether a `sample_noise` is open."""
    return _noise.get() is not None


class RandomLayer(nn.Module):
    """A layer that draws numbers in its forward pass, where `sample_noise` can give it others."""

    def latent_shape(self, hidden: Sequence[int]) -> tuple[int, ...]:
        """Shape of the noise for one image, without the batch, when ``hidden`` is the shape of what enters for one."""
        raise NotImplementedError

    @staticmethod
    def noise(like: Tensor) -> Tensor:
        """Standard normal numbers in the shape of ``like``, from where `sample_noise` says; else from the system."""
        return (_noise.get() or _SystemNoise()).draw(like)

    @staticmethod
    def given(like: Tensor) -> Tensor | None:
        """The next of the values that `sample_noise` was given, in the shape of ``like``; None without values."""
        source = _noise.get()
        return source.draw(like) if isinstance(source, _GivenNoise) else None


class Bottleneck(RandomLayer):
    """A variational bottleneck of any shape: encode to a Gaussian, sample, decode.

    Attributes:
        latent: Numbers in the latent vector, or channels of the latent maps.
        beta: Weight of the KL term in the loss.
        encoder: What runs before the noise is drawn; everything in it is deterministic, given what enters.
    """

    latent: int
    beta: float
    encoder: nn.Module

    @staticmethod
    def record(kl: Tensor, penalty: Tensor) -> None:
        """Tell the open tracker, if there is one; see `KlTracker.record`."""
        tracker = _tracker.get()
        if tracker is not None:
            tracker.record(kl, penalty)
