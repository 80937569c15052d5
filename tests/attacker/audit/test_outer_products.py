"""What is left of a large matrix beyond its outer products, by its Gram matrix as by its singular values."""

from __future__ import annotations

import pytest
import torch

from attacker.audit.inputs.outer_products import _evenly, _singular_values, _size

ROWS, COLUMNS, RANK = 450, 600, 60


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_the_gram_matrix_tells_noise_from_rounding_as_singular_values_do(noise, offset):
    random = torch.Generator().manual_seed(0)
    part = torch.randn(ROWS, RANK, generator=random) @ torch.randn(RANK, COLUMNS, generator=random) + offset
    part = (part + noise * part.std() * torch.randn(ROWS, COLUMNS, generator=random)).double()
    most = RANK + 1
    exact, quick = (_size(_singular_values(part, kind), part.shape, most) for kind in (torch.float64, torch.float32))
    rounding = 30 * float(part.abs().max()) * torch.finfo(torch.float32).eps
    assert (quick > rounding) == (exact > rounding) == (noise == 1e-3)
    if noise == 1e-3:
        rest = (ROWS - most, COLUMNS - most)
        assert quick == pytest.approx(exact, rel=1e-3)
        assert _evenly(_singular_values(part, torch.float32)[most:], rest)


def test_a_small_matrix_keeps_its_singular_values():
    part = torch.randn(30, 40, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(_singular_values(part, torch.float32), torch.linalg.svdvals(part))
