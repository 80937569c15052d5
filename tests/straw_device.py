"""A second device without hardware: tensors on "straw" compute on the CPU, but refuse to meet the CPU's tensors.

What runs on straw runs on CUDA as far as the places of tensors and generators go. torch lets a backend be written in
Python; everything here is torch's experimental interface, so that only a process of its own should call `register`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

STRAW = "straw"
# These may take indices from the CPU, as on CUDA.
_INDEXING = ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
# torch composes these from others by resizing results, or by writing into views: straw runs them in one piece.
_IN_ONE_PIECE = (
    "abs", "_conj", "isfinite", "linalg_qr", "nonzero", "bincount", "repeat_interleave.Tensor", "slice_backward",
    "select_backward", "diagonal_backward", "linalg_solve_triangular", "_linalg_svd", "gather", "std", "tril",
    "triu", "diag_embed", "constant_pad_nd", "arange", "arange.start", "arange.start_step", "as_strided_scatter",
    "slice_scatter", "select_scatter", "embedding_dense_backward",
)  # fmt: skip

_libraries: list[torch.library.Library] = []
_values: dict[int, Tensor] = {}
_copied_views: set[int] = set()
_own_generators: set[int] = set()
_CPUGenerator = torch.Generator


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _wrap(values: Tensor) -> Tensor:
    made: Tensor = torch._C._acc.create_empty_tensor(values.shape, values.dtype)
    key, whole = _key(made), values.resolve_conj().contiguous()
    _values[key] = whole
    (_copied_views.add if whole is not values else _copied_views.discard)(key)
    return made


def _is_straw(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == STRAW


def _unwrap(value: Any) -> Any:
    if _is_straw(value):
        whole = _values[_key(value)]
        if (whole.shape, whole.stride(), 0) == (value.shape, value.stride(), value.storage_offset()):
            return whole
        # torch itself made a view of the same storage.
        return whole.as_strided(value.shape, value.stride(), whole.storage_offset() + value.storage_offset())
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _check(name: str, flat: list[Any]) -> None:
    tensors = [value for value in flat if isinstance(value, Tensor)]
    foreign = [value for value in tensors if not _is_straw(value) and value.dim()]
    if foreign and len(foreign) < len(tensors) and name not in _INDEXING:
        raise RuntimeError(f"{name}: expected all tensors on one device, found straw and {foreign[0].device}")
    if any(isinstance(value, _CPUGenerator) and value._cdata not in _own_generators for value in flat):
        raise RuntimeError(f"{name}: expected a generator on straw for a tensor on straw, found one on the CPU")


def _copy(source: Tensor, target: Tensor) -> Tensor:
    if _is_straw(target) and _key(target) in _copied_views:
        raise NotImplementedError("straw cannot write into a view that it had to copy")
    _unwrap(target).copy_(_unwrap(source))
    return target


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operation: check the devices, compute on the CPU, wrap what is new."""
    name = op._schema.name
    if name == "aten::_copy_from":
        return _copy(args[0], args[1])
    flat, structure = pytree.tree_flatten((args, kwargs))
    _check(name, flat)
    inner = [_unwrap(value) for value in flat]
    known = {id(one): value for one, value in zip(inner, flat, strict=True) if _is_straw(value)}
    values, options = pytree.tree_unflatten(inner, structure)
    values = list(values)
    for place, (value, expected) in enumerate(zip(values, op._schema.arguments, strict=False)):
        if isinstance(value, bool | int | float) and isinstance(expected.type, torch._C.TensorType):
            values[place] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        if expected.alias_info is not None and expected.alias_info.is_write and _is_straw(args[place]):
            assert _key(args[place]) not in _copied_views, f"{name} writes into a view that straw had to copy"
    if name == "aten::as_strided" and len(values) > 3 and values[3] is not None:
        values[3] += values[0].storage_offset()
    result = values[0].reshape(values[1]) if name == "aten::view" else op(*values, **options)
    if any(_is_straw(outer) and one.shape != outer.shape for one, outer in zip(inner, flat, strict=True)):
        raise NotImplementedError(f"{name} resizes a result: name the operation in _IN_ONE_PIECE")

    def wrap(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        return _wrap(value) if isinstance(value, Tensor) else value

    return pytree.tree_map(wrap, result)


def _bound(op: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: _run(op, *args, **kwargs)


class StrawGenerator(_CPUGenerator):
    """``torch.Generator(device)`` with one more device."""

    def __new__(cls, device: Any = "cpu") -> Any:
        if torch.device(device).type != STRAW:
            return _CPUGenerator(device)
        made = _CPUGenerator.__new__(cls)
        _own_generators.add(made._cdata)
        return made

    def __init__(self, device: Any = "cpu") -> None:
        del device

    def __del__(self) -> None:
        _own_generators.discard(self._cdata)

    @property
    def device(self) -> torch.device:
        return torch.device(STRAW, 0)


def _backward_of_convolution(gradient: Tensor, received: Tensor, weight: Tensor, *rest: Any) -> Any:
    return _run(torch.ops.aten.convolution_backward.default, gradient, received, weight, None, *rest)


def register() -> None:
    """Add the device to this process, for good; torch 2.9 and newer."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(STRAW)
    torch.Generator = StrawGenerator  # type: ignore[misc]
    aten, every = torch.library.Library("aten", "IMPL"), torch.library.Library("_", "IMPL")
    _libraries.extend((aten, every))  # what they register lasts as long as they do
    aten.impl("convolution_overrideable", _bound(torch.ops.aten.convolution.default), "PrivateUse1")
    aten.impl("convolution_backward_overrideable", _backward_of_convolution, "PrivateUse1")
    for name in _IN_ONE_PIECE:
        base, _, overload = name.partition(".")
        aten.impl(name, _bound(getattr(getattr(torch.ops.aten, base), overload or "default")), "PrivateUse1")
    every.fallback(_run, "PrivateUse1")
