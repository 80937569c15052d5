"""Jacobian of the released gradient, J = d(gradient)/d(pixels), whole or by products with vectors.

J has a row for each unknown number (pixels, and the bottleneck's noise where it counts as unknown) and a column for
each number of the gradient, as in Zhang et al., I2F (NeurIPS 2023): what a change of the gradient does to an image
is governed by JJ^T.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from attacker.leakage.released import Released

EXACT_NUMBERS = 4096
"""Unknown numbers up to which JJ^T is formed: 3x32x32 images have 3072."""
_MEMORY = 2**30
_CHUNK = 128
_WORKING_COPIES = 6
_BLOCKS = 8
"""Of rows, for a product that is symmetric: of 8, 36 of 64 blocks are computed."""
# Differences between forward and reverse mode, as shares of the largest number, that rounding does not reach.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}


class Jacobian:
    """J at one image, by double backward through one graph that is kept.

    Every product is one backward pass through the graph of the gradient, right for whatever autograd differentiates
    twice: residual nets, attention, batch normalisation by running buffers.

    Args:
        of: The gradient as a function of the image.
        pixels: (batch, channels, height, width) in [0, 1]; device and dtype are those of the weights.
        noise_unknown: Count the bottlenecks' noise among the unknowns, after the pixels.

    Attributes:
        unknowns: Shapes of the unknown tensors, pixels first.
        rows: Unknown numbers, the first axis of J.
        columns: Numbers of the gradient, the second axis of J.
        pixels: The image.
        gradient: The released gradient at this image as one vector, (columns,), without a graph.

    Raises:
        ValueError: If the image does not fit, or the gradient is zero or not finite.
    """

    def __init__(self, of: Released, pixels: Tensor, *, noise_unknown: bool = False) -> None:
        of.replay.victim.inputs.check(pixels)
        self.of = of
        at = [pixels, *(of.noise if noise_unknown else ())]
        self._at = tuple(value.detach().clone().contiguous() for value in at)
        self.unknowns = tuple(tuple(value.shape) for value in self._at)
        self.rows = sum(value.numel() for value in self._at)
        self.columns = of.gradient_numbers
        self.pixels = self._at[0]
        self._x = [value.clone().requires_grad_(True) for value in self._at]
        self._weights = {name: value.clone().requires_grad_(True) for name, value in of.weights.items()}
        self._by_x, self._by_weights = self._graph()
        self.gradient = torch.cat([value.detach().flatten() for value in self._by_weights])
        self._check_gradient()

    def to_image(self, change: Tensor) -> Tensor:
        """J v: a change of the gradient (columns,) to the right-hand side that it leaves in image space (rows,)."""
        parts = [v.reshape(w.shape) for v, w in zip(self._split(change), self._weights.values(), strict=True)]
        return self._backward(self._by_weights, self._x, parts)

    def to_gradient(self, change: Tensor) -> Tensor:
        """J^T u: what a change of the unknowns (rows,) does to the gradient, (columns,)."""
        return torch.cat([value.flatten() for value in self._moved(change)])

    def gram_product(self, change: Tensor) -> Tensor:
        """JJ^T u, (rows,) to (rows,)."""
        return self._backward(self._by_weights, self._x, self._moved(change))  # one vector would cost two copies

    def matrix(self) -> Tensor:
        """J, (rows, columns), in the dtype of the weights.

        Forward over reverse mode for many rows at once where it agrees with double backward, else row by row.

        Raises:
            ValueError: If there are more than `EXACT_NUMBERS` unknowns.
        """
        self._check_exact()
        return torch.cat(list(self._row_blocks()))

    def gram(self, *, memory: int = _MEMORY) -> Tensor:
        """JJ^T in float64, (rows, rows).

        Where J fits into ``memory`` it is formed in the dtype of the weights and multiplied in float64: an error of e
        in J moves singular values by e, so that eigenvalues are known down to e². Otherwise products with unit
        vectors in float64 give one column after another, and J is never held.

        Args:
            memory: Bytes that J may take.

        Raises:
            ValueError: If there are more than `EXACT_NUMBERS` unknowns.
        """
        self._check_exact()
        if self.rows * self.columns * 8 <= memory:
            return _by_own_transpose(self.matrix().double())
        if self.gradient.dtype != torch.float64:
            return Jacobian(self.of.double(), self._at[0].double(), noise_unknown=len(self._at) > 1).gram(memory=memory)
        eye = torch.eye(self.rows, dtype=torch.float64, device=self.gradient.device)
        columns = torch.stack([self.gram_product(unit) for unit in eye])
        return (columns + columns.T) / 2

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """A vector (columns,) as tensors by the names of the parameters."""
        parts = zip(self._weights.items(), self._split(flat), strict=True)
        return {name: part.reshape(weight.shape) for (name, weight), part in parts}

    def _graph(self) -> tuple[list[Tensor], list[Tensor]]:
        with torch.enable_grad():
            loss = self.of.loss(self._weights, self._x[0], self._x[1:] or self.of.noise)
            wanted = [*self._x, *self._weights.values()]
            derivatives = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        return list(derivatives[: len(self._x)]), list(derivatives[len(self._x) :])

    def _check_gradient(self) -> None:
        size = float(self.gradient.norm())
        if not torch.isfinite(self.gradient).all():
            raise ValueError("the gradient of this image holds infinite numbers or NaN; check the weights")
        if size == 0:
            raise ValueError(
                "the gradient of this image is exactly zero: the model is certain of its label to the last digit, or "
                "no weight can change; it reveals nothing, and its Jacobian cannot rank pixels; take float64 or "
                "earlier weights"
            )

    def _check_exact(self) -> None:
        if self.rows > EXACT_NUMBERS:
            need = self.rows**2 * 8 / 2**30
            raise ValueError(
                f"JJ^T of {self.rows} unknown numbers would be a matrix of {need:.1f} GiB and take {self.rows} passes "
                f"to form; exact analysis goes up to {EXACT_NUMBERS} (3x32x32 has 3072). Take products with vectors "
                "(CG, Lanczos) or smaller images"
            )

    def _split(self, flat: Tensor) -> Sequence[Tensor]:
        parts: Sequence[Tensor] = torch.split(flat, [value.numel() for value in self._weights.values()])
        return parts

    def _moved(self, change: Tensor) -> Sequence[Tensor]:
        """J^T u, a tensor for each parameter."""
        sizes = [value.numel() for value in self._x]
        parts = [u.reshape(x.shape) for u, x in zip(torch.split(change, sizes), self._x, strict=True)]
        return self._parts(self._by_x, list(self._weights.values()), parts)

    @classmethod
    def _backward(cls, outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        return torch.cat([value.flatten() for value in cls._parts(outputs, inputs, weights)])

    @staticmethod
    def _parts(outputs: Sequence[Tensor], inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Derivative of <outputs, weights>; outputs that are constant do not count."""
        live = [(out, weight) for out, weight in zip(outputs, weights, strict=True) if out.requires_grad]
        if not live:
            return [torch.zeros_like(value) for value in inputs]
        return torch.autograd.grad(
            [out for out, _ in live], inputs, [weight for _, weight in live], retain_graph=True, materialize_grads=True
        )

    def _row_blocks(self) -> Iterator[Tensor]:
        per_row = self.columns * self.gradient.element_size() * _WORKING_COPIES
        chunk = max(1, min(_CHUNK, _MEMORY // per_row))
        first = 0
        forward = chunk > 1 and self._forward_is_right()
        while first < self.rows:
            count = min(chunk, self.rows - first)
            units = self._units(first, count)
            yield self._forward(units) if forward else torch.stack([self.to_gradient(unit) for unit in units])
            first += count

    def _units(self, first: int, count: int) -> Tensor:
        units = self.gradient.new_zeros(count, self.rows)
        units[torch.arange(count), torch.arange(first, first + count)] = 1
        return units

    def _forward(self, changes: Tensor) -> Tensor:
        """J^T u for many u (count, rows) by ``vmap`` of forward over reverse mode: (count, columns)."""
        sizes = [value.numel() for value in self._at]

        def gradient(*at: Tensor) -> Mapping[str, Tensor]:
            gradients: Mapping[str, Tensor] = grad(lambda w: self.of.loss(w, at[0], at[1:] or self.of.noise))(
                self.of.weights
            )
            return gradients

        def along(change: Tensor) -> Tensor:
            parts = [u.reshape(x.shape) for u, x in zip(torch.split(change, sizes), self._at, strict=True)]
            moved = jvp(gradient, self._at, tuple(parts))[1]
            return torch.cat([moved[name].flatten() for name in self.of.matched])

        with warnings.catch_warnings():
            # torch 2.15 compiles some of its own forward rules by the torch.jit that it announces to remove.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            products: Tensor = vmap(along)(changes)
        return products.detach()

    def _forward_is_right(self) -> bool:
        """Whether forward mode agrees with double backward on two random directions.

        torch's rules for forward mode and batches lack some operations and are wrong for others.
        """
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn(2, self.rows, generator=generator, dtype=torch.float64, device=generator.device)
        directions = drawn.to(self.gradient)
        plain = torch.stack([self.to_gradient(direction) for direction in directions])
        try:
            forward = self._forward(directions)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):  # an operation without a forward rule
            return False
        tolerance = _TOLERANCES.get(self.gradient.dtype, 1e-1)
        return bool((forward - plain).norm() <= tolerance * plain.norm())


def _by_own_transpose(matrix: Tensor) -> Tensor:
    """``A A^T``, of which half is computed and the rest is equal to it."""
    product = matrix.new_empty(len(matrix), len(matrix))
    step = -(-len(matrix) // _BLOCKS)
    for first in range(0, len(matrix), step):
        own = slice(first, first + step)
        block = matrix[first:] @ matrix[own].T
        product[first:, own] = block
        product[own, first:] = block.T
    return product
