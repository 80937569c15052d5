"""Risk by a few products, beside the eigenvalues themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attacker.leakage import Jacobian, glance, released, spectrum
from attacker.victim import Victim
from fl_precode.models import InputSpec
from tests.attacker import literature

SPEC = InputSpec(channels=1, height=5, width=5, classes=3, mean=(0.5,), std=(0.5,))


def jacobian_of(seed: int, *, hidden: int = 4, dtype: torch.dtype = torch.float64) -> Jacobian:
    """A small net with weights of a seed, at an image of that seed."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, hidden, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(25 * hidden, 3))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    victim = Victim(model=model.to(dtype), inputs=SPEC)
    return Jacobian(released(victim, torch.tensor([1])), literature.image(seed, SPEC).to(dtype))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signs_of(seed: int) -> Tensor:
    """The vector that a run with this seed starts from."""
    return (torch.randint(2, (25,), generator=seeded(seed)) * 2 - 1).double()


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_it_rises_from_the_lower_bound_to_the_mean_of_its_vector(seed):
    jacobian, z = jacobian_of(seed), signs_of(seed)
    gram = jacobian.gram()
    exact = math.sqrt(float(z @ torch.linalg.solve(gram, z)) / 25)
    found = [glance(jacobian, generator=seeded(seed), steps=steps) for steps in (1, 2, 4, 6, 10)]
    rising = [one.at_least for one in found]
    assert rising == sorted(rising)
    assert rising[-1] <= exact * (1 + 1e-6)
    assert all(one.lower_bound <= one.at_least for one in found)
    first = float(z @ gram @ z) / 25
    assert found[0].at_least == pytest.approx(1 / math.sqrt(first))  # one node: the inverse of the mean
    assert found[-1].lower_bound == pytest.approx(math.sqrt(first) / found[-1].largest.upper)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_steps_give_the_inverse_exactly(seed):
    jacobian, z = jacobian_of(seed), signs_of(seed)
    whole = glance(jacobian, generator=seeded(seed), steps=25)
    exact = math.sqrt(float(z @ torch.linalg.solve(jacobian.gram(), z)) / 25)
    assert whole.at_least == pytest.approx(exact, rel=1e-5)
    assert whole.largest.value == pytest.approx(spectrum(jacobian).largest, rel=1e-9)


def test_on_average_it_is_no_more_than_the_expected_error():
    jacobian = jacobian_of(3)
    exact = spectrum(jacobian).expected_rmse(1.0, damping=0)
    squares = [glance(jacobian, generator=seeded(seed), steps=6).at_least ** 2 for seed in range(200)]
    mean = math.sqrt(sum(squares) / 200)
    assert 0.02 * exact < mean < exact
    whole = [glance(jacobian, generator=seeded(seed), steps=25).at_least ** 2 for seed in range(200)]
    assert math.sqrt(sum(whole) / 200) == pytest.approx(exact, rel=0.15)


def test_the_lower_bound_is_that_of_noise(generator):
    jacobian = jacobian_of(4)
    top = spectrum(jacobian).largest
    drawn = torch.randn(300, jacobian.columns, generator=generator, dtype=torch.float64)
    noisy = torch.stack([jacobian.to_image(one) for one in drawn]).square().sum(dim=1).mean() / 25
    found = [glance(jacobian, generator=seeded(seed)).lower_bound ** 2 for seed in range(200)]
    assert math.sqrt(sum(found) / 200) == pytest.approx(math.sqrt(float(noisy)) / top, rel=0.05)


def test_single_precision_is_enough():
    double, single = jacobian_of(5), jacobian_of(5, dtype=torch.float32)
    one, other = (glance(jacobian, generator=seeded(0)) for jacobian in (double, single))
    assert other.at_least == pytest.approx(one.at_least, rel=1e-3)
    assert other.largest.value == pytest.approx(one.largest.value, rel=1e-4)


def test_where_the_image_is_not_determined_it_stays_finite():
    jacobian = Jacobian(jacobian_of(6).of.restricted(["3.bias"]), literature.image(6, SPEC))
    assert spectrum(jacobian).rank == 2
    found = glance(jacobian, generator=seeded(0), steps=25)
    assert 0 < found.lower_bound <= found.at_least < math.inf


def test_no_step_is_refused():
    with pytest.raises(ValueError, match="at least one Lanczos step"):
        glance(jacobian_of(0), generator=seeded(0), steps=0)
