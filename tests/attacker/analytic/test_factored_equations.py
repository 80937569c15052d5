"""A factor of the normal matrix solves the same system as the plain solver, and hands over what it cannot."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from attacker.analytic import factored_equations
from attacker.analytic.factored_equations import MOST_UNKNOWNS, is_factored, normal_matrix, solve_determined
from attacker.analytic.linear_systems import LayerSystem, Patches
from attacker.analytic.row_weights import WeightedEquations
from attacker.optim.lsmr import solve

LAYERS = {
    "strided": (nn.Conv2d(3, 12, 5, stride=2, padding=2), (3, 12, 12)),
    "unpadded": (nn.Conv2d(2, 9, 3), (2, 9, 8)),
    "groups": (nn.Conv2d(4, 12, 3, padding=1, groups=2), (4, 7, 7)),
    "dilated": (nn.Conv2d(2, 12, (3, 2), padding=(2, 1), dilation=(2, 1)), (2, 8, 6)),
    "thin": (nn.Conv2d(3, 2, 3, padding=1), (3, 8, 8)),
    "linear": (nn.Linear(20, 30), (20,)),
}  # fmt: skip


def equations_of(name, victims=2, own_weights=False):
    layer, shape = LAYERS[name]
    torch.manual_seed(3)
    patches = Patches.of(layer, shape)
    weight = torch.randn(victims if own_weights else 1, *layer.weight.shape, dtype=torch.float64)
    system = LayerSystem(
        patches=patches,
        weight=weight if own_weights else weight[0],
        delta=torch.randn(victims, patches.outputs, *patches.output_size, dtype=torch.float64),
    )
    weights = torch.rand(victims, patches.weight_rows, dtype=torch.float64) + 0.05
    scale = torch.rand(victims, 1, dtype=torch.float64) + 0.5
    shape = torch.Size((victims, patches.outputs, *patches.output_size))
    return WeightedEquations(system, weights, scale, shape)


def one_of(equations):
    return factored_equations._of_one(equations, 1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("own_weights", [False, True])
def test_the_normal_matrix_is_the_product_of_the_rows(name, own_weights):
    equations = one_of(equations_of(name, own_weights=own_weights))
    unit = torch.eye(equations.system.patches.unknowns, dtype=torch.float64)
    expected = torch.cat([equations.transposed(equations.apply(vector[None])) for vector in unit])
    torch.testing.assert_close(normal_matrix(equations).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["strided", "groups", "linear"])
def test_the_solution_is_that_of_the_plain_solver_in_few_iterations(name):
    equations = equations_of(name)
    inputs = torch.randn(2, equations.system.patches.unknowns, dtype=torch.float64)
    noise = 0.01 * torch.randn_like(equations.apply(inputs))
    for rows, expected in (
        (equations.apply(inputs), inputs),
        (
            equations.apply(inputs) + noise,
            solve(equations.apply, equations.transposed, equations.apply(inputs) + noise).x,
        ),
    ):
        found = solve_determined(equations, rows)
        torch.testing.assert_close(found.x, expected, rtol=1e-9, atol=1e-9)
        assert found.converged.all()
        assert found.iterations < 60
        length = (rows - equations.apply(found.x)).norm(dim=1) / rows.norm(dim=1)
        torch.testing.assert_close(found.residuals, length)


def test_dependent_columns_are_left_to_the_solver_of_minimum_norm():
    equations = equations_of("thin")
    rows = equations.apply(torch.randn(2, equations.system.patches.unknowns, dtype=torch.float64))
    assert factored_equations._factor(normal_matrix(one_of(equations))) is None
    found, expected = solve_determined(equations, rows), solve(equations.apply, equations.transposed, rows)
    torch.testing.assert_close(found.x, expected.x, rtol=1e-9, atol=1e-9)
    assert found.iterations > 20, "the plain solver's"


def test_where_the_preconditioned_solver_does_not_end_the_plain_one_is_taken(monkeypatch):
    equations = equations_of("strided")
    inputs = torch.randn(2, equations.system.patches.unknowns, dtype=torch.float64)
    monkeypatch.setattr(factored_equations, "_ITERATIONS", 1)
    torch.testing.assert_close(solve_determined(equations, equations.apply(inputs)).x, inputs, rtol=1e-8, atol=1e-8)


def test_large_layers_and_pooled_ones_are_not_factored():
    equations = equations_of("strided")
    assert is_factored(equations)
    pooled = LayerSystem(
        patches=equations.system.patches,
        weight=equations.system.weight,
        delta=equations.system.delta,
        behind=lambda z: z,
        behind_transposed=lambda z: z,
    )
    assert not is_factored(WeightedEquations(pooled, equations.weights, equations.scale, equations.shape))
    side = int((MOST_UNKNOWNS / 3) ** 0.5) + 1
    patches = Patches.of(nn.Conv2d(3, 12, 5, stride=2, padding=2), (3, side, side))
    large = LayerSystem(
        patches=patches,
        weight=equations.system.weight,
        delta=torch.zeros(1, 12, *patches.output_size, dtype=torch.float64),
    )
    assert not is_factored(WeightedEquations(large, equations.weights, equations.scale, equations.shape))
