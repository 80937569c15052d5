"""Least squares: the least norm, and the same digits each time."""

from __future__ import annotations

import torch

from attacker.optim.least_squares import least_squares


def test_the_solution_of_least_norm_of_any_shape(generator):
    for rows, unknowns, rank in ((10, 4, 4), (4, 10, 4), (10, 8, 3)):
        left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        left = left @ torch.randn(rank, unknowns, generator=generator, dtype=torch.float64)
        right = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(least_squares(left, right), torch.linalg.pinv(left) @ right)


def test_the_same_to_the_last_bit_each_time(generator):
    left = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    right = torch.randn(10, 288, generator=generator, dtype=torch.float64)
    found, elsewhere = set(), []
    for number in range(2000):
        elsewhere = [*elsewhere[-40:], torch.zeros(1 + number * 37 % 191)]  # so that memory lies differently
        found.add(least_squares(left.clone(), right.clone()).numpy().tobytes())
    assert len(found) == 1
