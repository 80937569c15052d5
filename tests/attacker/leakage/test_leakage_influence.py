"""The influence function: exact, by products, and against what really happens to images."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attacker.leakage import (
    Jacobian,
    Spectrum,
    eigenvalues,
    expected_error,
    influence,
    largest,
    lower_bound,
    released,
    spectrum,
)
from attacker.leakage.krylov import largest_eigenvalue, solve_damped, trace_of
from attacker.victim import Victim
from fl_precode.models import InputSpec
from tests.attacker import literature

SPEC = InputSpec(channels=1, height=6, width=6, classes=4, mean=(0.5,), std=(0.5,))


def lenet_like(outputs: int = 6) -> Victim:
    """Two convolutions with sigmoids and a Linear layer, all U(-0.5, 0.5); float64."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, outputs, 3, 1, 1), nn.Sigmoid(), nn.Conv2d(outputs, 6, 3, 2, 1), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(54, 4),
    ).double()  # fmt: skip
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return Victim(model=model, inputs=SPEC)


@pytest.fixture(scope="module")
def seen() -> tuple[Jacobian, Spectrum]:
    jacobian = Jacobian(released(lenet_like(), torch.tensor([2])), literature.image(0, SPEC))
    return jacobian, spectrum(jacobian)


def noise(jacobian: Jacobian, seed: int = 0, std: float = 1e-3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return std * torch.randn(jacobian.columns, generator=generator, dtype=torch.float64)


def inverted(jacobian: Jacobian, change: torch.Tensor) -> torch.Tensor:
    """argmin over images of ||gradient(image) - (gradient + change)||², by Gauss-Newton steps from the truth."""
    pixels, target = jacobian.pixels.clone(), jacobian.gradient + change
    for _ in range(30):
        here = Jacobian(jacobian.of, pixels)
        matrix = here.matrix()
        step = torch.linalg.solve(matrix @ matrix.T, matrix @ (target - here.gradient))
        pixels = pixels + step.reshape(pixels.shape)
    return pixels - jacobian.pixels


def test_against_the_formula(seen):
    jacobian, found = seen
    matrix, change = jacobian.matrix(), noise(jacobian)
    expected = torch.linalg.solve(matrix @ matrix.T, matrix @ change)
    product = jacobian.to_image(change)
    torch.testing.assert_close(found.error(product, damping=0), expected, rtol=1e-6, atol=1e-10)
    assert float(found.influence(product, damping=0)) == pytest.approx(float(expected.norm()), rel=1e-8)
    assert float(found.influence(product)) == pytest.approx(float(expected.norm()), rel=1e-4)
    damped = matrix @ matrix.T + 1e-3 * found.largest * torch.eye(36, dtype=torch.float64)
    expected = torch.linalg.solve(damped, matrix @ change)
    assert float(found.influence(product, damping=1e-3)) == pytest.approx(float(expected.norm()), rel=1e-8)


def test_eigenvalues_alone(seen):
    jacobian, found = seen
    alone = eigenvalues(jacobian)
    torch.testing.assert_close(alone.values, found.values, rtol=1e-9, atol=1e-14 * found.largest)
    assert (alone.rank, alone.shape, alone.tolerance) == (found.rank, found.shape, found.tolerance)
    assert alone.expected_rmse(1.0) == pytest.approx(found.expected_rmse(1.0), rel=1e-6)
    assert eigenvalues(jacobian, tolerance=0.5).rank < alone.rank


@pytest.mark.parametrize("place", [0, 5, 17, 30, 35])
def test_the_law_of_one_over_lambda(seen, place):
    """A change along the k-th right singular vector moves the image by its size over the root of lambda_k."""
    jacobian, found = seen
    root = math.sqrt(float(found.values[place]))
    direction = jacobian.to_gradient(found.direction(place).flatten()) / root
    assert float(direction.norm()) == pytest.approx(1, rel=1e-6)
    size = 1e-3 * root  # so that the image moves by 1e-3
    moved = inverted(jacobian, size * direction)
    mse = float(moved.square().mean())
    assert mse == pytest.approx(size**2 / (36 * float(found.values[place])), rel=0.01)
    predicted = float(found.influence(jacobian.to_image(size * direction), damping=0))
    assert predicted == pytest.approx(float(moved.norm()), rel=0.01)


def test_it_predicts_what_noise_does(seen):
    jacobian, found = seen
    change = noise(jacobian, std=1e-7)
    predicted = found.error(jacobian.to_image(change), damping=0)
    moved = inverted(jacobian, change).flatten()
    assert float((predicted - moved).norm()) < 0.01 * float(moved.norm())


def test_the_expectation_over_noise(seen):
    jacobian, found = seen
    products = torch.stack([jacobian.to_image(noise(jacobian, seed)) for seed in range(400)])
    measured = found.influence(products).square().mean() / 36
    assert math.sqrt(float(measured)) == pytest.approx(found.expected_rmse(1e-3), rel=0.1)
    assert found.expected_rmse(found.noise_for(0.1)) == pytest.approx(0.1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), std=st.sampled_from([1e-6, 1e-2, 1.0]), sparse=st.booleans())
def test_the_lower_bound_is_one(seed, std, sparse):
    torch.manual_seed(seed)
    spec = InputSpec(channels=1, height=3, width=3, classes=2, mean=(0.5,), std=(0.5,))
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)).double()
    jacobian = Jacobian(released(Victim(model=model, inputs=spec), torch.tensor([1])), literature.image(seed, spec))
    found = spectrum(jacobian)
    change = noise(jacobian, seed, std)
    if sparse:
        change = torch.where(change.abs() > std, 0, -jacobian.gradient)
    assert lower_bound(jacobian, change, found.largest) <= float(found.influence(jacobian.to_image(change))) * (
        1 + 1e-9
    )


def test_singular_without_damping_is_refused():
    jacobian = Jacobian(released(lenet_like(), torch.tensor([2])).restricted(["5.bias"]), literature.image(0, SPEC))
    found = spectrum(jacobian)
    assert found.rank == 3  # the four numbers of softmax minus one-hot add up to zero
    product = jacobian.to_image(noise(jacobian))
    with pytest.raises(ValueError, match=r"JJ\^T is singular \(rank 3 of 36\)"):
        found.influence(product, damping=0)
    with pytest.raises(ValueError, match="expected a damping of 0 or more"):
        found.influence(product, damping=-1)
    with pytest.raises(ValueError, match="products cannot tell"):
        influence(jacobian, noise(jacobian), found.largest, damping=0)
    pseudo = torch.linalg.pinv(jacobian.matrix() @ jacobian.matrix().T, rtol=1e-10) @ product
    assert float(found.influence(product)) == pytest.approx(float(pseudo.norm()), rel=1e-6)
    assert found.lost().sum() == pytest.approx(33)


@pytest.mark.parametrize("damping", [1e-2, 1e-4, 1e-6])
def test_conjugate_gradients_equal_the_dense_solve(seen, damping):
    jacobian, found = seen
    change = noise(jacobian)
    solved = influence(jacobian, change, found.largest, damping=damping, tolerance=1e-6)
    expected = found.error(jacobian.to_image(change), damping=damping)
    assert solved.bound <= 1e-6
    assert float((solved.error - expected).norm()) <= 1e-6 * solved.norm
    assert solved.rmse == pytest.approx(solved.norm / 6)


def test_iterations_that_do_not_suffice_say_so(seen):
    jacobian, found = seen
    solved = influence(jacobian, noise(jacobian), found.largest, damping=1e-6, steps=2)
    assert solved.steps == 2
    exact = found.error(jacobian.to_image(noise(jacobian)), damping=1e-6)
    assert 1e-2 < float((solved.error - exact).norm()) / solved.norm <= solved.bound


def test_the_largest_eigenvalue(seen, generator):
    jacobian, found = seen
    top = largest(jacobian, generator=generator, tolerance=1e-6)
    assert top.value == pytest.approx(found.largest, rel=1e-6)
    assert abs(float(top.vector @ found.direction(0).flatten())) == pytest.approx(1, rel=1e-6)
    again = largest(jacobian, generator=generator, start=top.vector, tolerance=1e-6)
    assert again.steps < top.steps
    assert top.upper >= found.largest


def test_the_expected_error_by_quadrature(seen, generator):
    jacobian, found = seen
    exact = found.expected_rmse(1.0, damping=1e-6)
    estimate = expected_error(jacobian, found.largest, generator=generator, probes=24, steps=36)
    assert estimate.low < exact < estimate.high
    assert estimate.rmse == pytest.approx(exact, rel=0.3)
    assert expected_error(jacobian, found.largest, generator=generator, probes=2, steps=8).steps == 2 * 8


def test_krylov_on_a_known_matrix(generator):
    values = torch.logspace(0, -6, 40, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
    matrix = basis * values @ basis.T
    right = torch.randn(40, generator=generator, dtype=torch.float64)
    solved = solve_damped(matrix.mv, right, 1e-5, tolerance=1e-8)
    expected = torch.linalg.solve(matrix + 1e-5 * torch.eye(40, dtype=torch.float64), right)
    torch.testing.assert_close(solved.solution, expected, rtol=1e-6, atol=1e-4)
    trace = trace_of(matrix.mv, lambda v: v.sqrt(), right, probes=200, steps=40, generator=generator)
    assert trace.deviation is not None
    assert trace.value == pytest.approx(float(values.sqrt().sum()), abs=4 * trace.deviation)
    assert trace_of(matrix.mv, lambda v: v, right, probes=1, steps=5, generator=generator).deviation is None
    with pytest.raises(ValueError, match="expected a positive damping"):
        solve_damped(matrix.mv, right, 0.0)
    with pytest.raises(ValueError, match="no positive eigenvalue"):
        largest_eigenvalue(torch.zeros_like, right)


def test_nothing_moves_where_nothing_changes(seen):
    jacobian, found = seen
    still = torch.zeros(jacobian.columns, dtype=torch.float64)
    assert influence(jacobian, still, found.largest).norm == 0
    assert influence(jacobian, still, found.largest).bound == 0
