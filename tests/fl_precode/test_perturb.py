"""Defences on gradients that need nothing else: their mathematics, their statistics, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_precode.defences.on_gradients import Clip, GaussianNoise, LaplaceNoise, Prune, Quantise, Sign

EACH = [
    GaussianNoise(std=0.1),
    LaplaceNoise(std=0.1),
    Prune(share=0.5),
    Clip(max_norm=0.1),
    Quantise(bits=3),
    Sign(),
]


def seeded_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(dtype=torch.float32):
    g = seeded_generator(9)
    shapes = {"conv.weight": (4, 3, 5, 5), "conv.bias": (4,), "scale": (), "empty": (0,), "fc.weight": (7, 100)}
    return {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("defence", EACH, ids=lambda d: type(d).__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_names_shapes_and_dtypes_stay_and_the_argument_is_left_alone(defence, dtype):
    given_ = gradients(dtype)
    kept = {name: value.clone() for name, value in given_.items()}
    global_state = torch.random.get_rng_state()
    out = defence(given_, generator=seeded_generator())
    assert list(out) == list(given_)
    assert {n: (v.shape, v.dtype) for n, v in out.items()} == {n: (v.shape, v.dtype) for n, v in given_.items()}
    assert all(torch.equal(value, kept[name]) for name, value in given_.items())
    assert torch.equal(torch.random.get_rng_state(), global_state)
    assert not torch.equal(out["fc.weight"], given_["fc.weight"])
    assert all(bool(value.isfinite().all()) for value in out.values())


@pytest.mark.parametrize("defence", [GaussianNoise(std=0.1), LaplaceNoise(std=0.1), Quantise(bits=3)])
def test_the_generator_decides_and_goes_on(defence):
    first = defence(gradients(), generator=seeded_generator(1))["fc.weight"]
    generator = seeded_generator(1)
    again, next_one = (defence(gradients(), generator=generator)["fc.weight"] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_one)


@pytest.mark.parametrize(
    ("defence", "kurtosis", "spread"),
    # Kurtosis of a normal variable is 3 with a standard error of sqrt(96 / n); of a Laplace variable 6, with sqrt of
    # (E x^8 - (E x^4)^2) / n = sqrt((8! / 2^4 - 36) / n) for the fourth moment alone.
    [(GaussianNoise(std=0.02), 3.0, math.sqrt(96)), (LaplaceNoise(std=0.02), 6.0, math.sqrt(2484))],
)
def test_noise_has_the_standard_deviation_and_the_shape_that_it_says(defence, kurtosis, spread):
    n = 1_000_000
    zero = {"w": torch.full((n,), 0.3, dtype=torch.float64)}
    noise = (defence(zero, generator=seeded_generator(3))["w"] - 0.3) / defence.std
    # Standard errors: of the mean 1 / sqrt(n), of the variance sqrt((kurtosis - 1) / n); five of them are allowed.
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 5 * math.sqrt((kurtosis - 1) / n)
    assert abs((noise**4).mean() - kurtosis) < 5 * spread / math.sqrt(n)
    both = noise[:-1] * noise[1:]
    assert abs(both.mean()) < 5 / math.sqrt(n), "neighbours are independent"


def test_noise_is_drawn_anew_for_every_tensor():
    out = GaussianNoise(std=1.0)({"a": torch.zeros(50), "b": torch.zeros(50)}, generator=seeded_generator())
    assert not torch.equal(out["a"], out["b"])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 60), st.floats(0, 0.99), st.integers(0, 10**6))
def test_pruning_zeroes_exactly_the_smallest_share(n, share, seed):
    value = torch.randn(n, generator=seeded_generator(seed), dtype=torch.float64)
    out = Prune(share=share)({"w": value}, generator=seeded_generator())["w"]
    gone = out == 0
    assert int(gone.sum()) == round(share * n)
    assert torch.equal(out[~gone], value[~gone])
    if gone.any() and not gone.all():
        assert value[gone].abs().max() <= value[~gone].abs().min()


def test_pruning_is_exact_for_ties_and_for_every_tensor_by_itself():
    out = Prune(share=0.25)({"ties": torch.ones(2, 4), "small": 1e-9 * torch.ones(4)}, generator=seeded_generator())
    assert int((out["ties"] == 0).sum()) == 2
    assert int((out["small"] == 0).sum()) == 1


def test_clipping_bounds_the_norm_of_everything_together():
    values = {"a": torch.full((3,), 3.0), "b": torch.full((1,), 3.0)}  # norm 6
    out = Clip(max_norm=1.5)(values, generator=seeded_generator())
    assert math.sqrt(sum(float(v.square().sum()) for v in out.values())) == pytest.approx(1.5)
    assert torch.allclose(out["a"], values["a"] / 4)
    for unbound in (Clip(max_norm=6.0), Clip(max_norm=100.0)):
        assert torch.equal(unbound(values, generator=seeded_generator())["a"], values["a"])
    zero = Clip(max_norm=1.0)({"a": torch.zeros(3)}, generator=seeded_generator())
    assert torch.equal(zero["a"], torch.zeros(3))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_quantisation_keeps_the_mean_and_has_that_many_values(bits):
    n, value = 200_000, 0.137
    given_ = torch.cat([torch.full((n,), value), torch.tensor([-1.0, 1.0, 0.0])]).double()
    out = Quantise(bits=bits)({"w": given_}, generator=seeded_generator(4))["w"]
    step = 1 / (2 ** (bits - 1) - 1)
    assert torch.allclose((out / step).round() * step, out, atol=1e-12)
    assert ((out - given_).abs() < step).all()
    assert out[-3:].tolist() == [-1.0, 1.0, 0.0], "the ends and zero stay"
    # A Bernoulli variable times step: its standard error is at most step / (2 sqrt(n)).
    assert abs(out[:n].mean() - value) < 5 * step / (2 * math.sqrt(n))
    spread = torch.randn(5000, generator=seeded_generator(5))
    found = Quantise(bits=bits)({"w": spread}, generator=seeded_generator(6))["w"].unique()
    assert len(found) <= 2**bits - 1
    assert bits == 8 or len(found) == 2**bits - 1


def test_nothing_to_quantise_stays_nothing():
    assert torch.equal(Quantise(bits=2)({"w": torch.zeros(3)}, generator=seeded_generator())["w"], torch.zeros(3))


def test_the_sign_keeps_each_tensors_mean_magnitude():
    values = {"a": torch.tensor([1.0, -3.0, 0.0, 4.0]), "b": torch.tensor([-0.5])}
    out = Sign()(values, generator=seeded_generator())
    assert out["a"].tolist() == [2.0, -2.0, 0.0, 2.0]
    assert out["b"].tolist() == [-0.5]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianNoise(std=0.0), "positive, finite std, got 0"),
        (lambda: LaplaceNoise(std=-1.0), "positive, finite std, got -1"),
        (lambda: GaussianNoise(std=math.inf), "positive, finite std, got inf"),
        (lambda: GaussianNoise(std=math.nan), "positive, finite std, got nan"),
        (lambda: Prune(share=1.0), "at least 0 and less than 1, got 1"),
        (lambda: Prune(share=-0.1), "at least 0 and less than 1"),
        (lambda: Clip(max_norm=0.0), "positive, finite max_norm, got 0"),
        (lambda: Quantise(bits=1), "2 to 16 bits, got 1; for a single bit use the defence 'sign'"),
        (lambda: Quantise(bits=17), "2 to 16 bits, got 17"),
    ],
)
def test_settings_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.gpu
def test_the_numbers_are_the_same_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    for defence in EACH:
        here = defence(gradients(), generator=seeded_generator())
        there = defence({n: v.to("cuda") for n, v in gradients().items()}, generator=seeded_generator())
        for name, value in here.items():
            torch.testing.assert_close(there[name].cpu(), value)
